// A mixture of small experts for a few tokens, of which only those are read that some token uses; formulas in
// hasten/kernels/expert_ffn.py. Two passes with a barrier between: every inner value of the experts in use, then the
// sum of their output rows, a thread to a range of output columns.
#pragma once

#include <cstdint>

namespace hasten {

struct ExpertArgs {
  int64_t tokens = 0, width = 0, experts = 0, each = 0;  // each: inner values of an expert
  bool bf16 = false;                                     // what the weights are
  const float* x = nullptr;                              // (tokens, width)
  const float* scores = nullptr;                         // (tokens, experts); 0 is inactive
  const void *up = nullptr, *down = nullptr;             // (experts * each, width) both
  const int32_t* used = nullptr;                         // the experts that some token uses
  int64_t count = 0;
  float* inner = nullptr;  // (count * each, tokens)
  float* y = nullptr;      // (tokens, width)
};

struct ExpertsKernels {
  int64_t (*up)(const ExpertArgs&, int64_t begin, int64_t end);  // rows of inner; returns products of rows made
  void (*down)(const ExpertArgs&, int64_t begin, int64_t end);   // output columns
};

}  // namespace hasten

#if defined(HASTEN_ISA)
#include "simd.hpp"

namespace hasten {
namespace {

// Dot products of one weight row with `tokens` tokens, four chains each: a token's sum has the same order, and so the
// same bits, alone and among others.
template <class T, int tokens>
HASTEN_INLINE void expert_dots(const T* row, const float* const* x, int64_t width, float* out) {
  vec sums[tokens][4];
  for (auto& chains : sums)
    for (vec& s : chains) s = zero();
  int64_t c = 0;
  for (; c + 4 * kLanes <= width; c += 4 * kLanes)
    for (int i = 0; i < 4; ++i) {
      const vec w = load_part(row + c + i * kLanes, kLanes);
      for (int t = 0; t < tokens; ++t) sums[t][i] = fma(w, load(x[t] + c + i * kLanes), sums[t][i]);
    }
  for (; c < width; c += kLanes) {
    const vec w = load_part(row + c, width - c);
    for (int t = 0; t < tokens; ++t) sums[t][0] = fma(w, load_part(x[t] + c, width - c), sums[t][0]);
  }
  for (int t = 0; t < tokens; ++t) out[t] = sum(add(add(sums[t][0], sums[t][1]), add(sums[t][2], sums[t][3])));
}

template <class T>
int64_t experts_up_as(const ExpertArgs& e, int64_t begin, int64_t end) {
  int64_t products = 0;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t expert = e.used[r / e.each];
    const T* row = static_cast<const T*>(e.up) + (expert * e.each + r % e.each) * e.width;
    float* inner = e.inner + r * e.tokens;
    const float* tokens[4];
    int64_t which[4];
    int filled = 0;
    for (int64_t t = 0; t <= e.tokens; ++t) {
      if (t < e.tokens) {
        inner[t] = 0;
        if (e.scores[t * e.experts + expert] == 0) continue;
        tokens[filled] = e.x + t * e.width;
        which[filled++] = t;
      }
      if (filled == 4 || (t == e.tokens && filled)) {
        float dots[4];
        switch (filled) {
          case 1: expert_dots<T, 1>(row, tokens, e.width, dots); break;
          case 2: expert_dots<T, 2>(row, tokens, e.width, dots); break;
          case 3: expert_dots<T, 3>(row, tokens, e.width, dots); break;
          default: expert_dots<T, 4>(row, tokens, e.width, dots);
        }
        for (int i = 0; i < filled; ++i) inner[which[i]] = dots[i];
        products += filled;
        filled = 0;
      }
    }
  }
  // silu, and each token's score
  for (int64_t r = begin; r < end; ++r) {
    float* inner = e.inner + r * e.tokens;
    const int64_t expert = e.used[r / e.each];
    for (int64_t t = 0; t < e.tokens; t += kLanes) {
      const int64_t count = e.tokens - t;
      float scores[kLanes] = {};
      for (int64_t i = 0; i < kLanes && i < count; ++i) scores[i] = e.scores[(t + i) * e.experts + expert];
      const vec v = load_part(inner + t, count);
      store_part(inner + t, mul(mul(v, sigmoid(v)), load(scores)), count);
    }
  }
  return products;
}

template <class T, int tokens, int vectors>
HASTEN_INLINE void experts_down_tile(const ExpertArgs& e, int64_t t, int64_t c) {
  vec sums[tokens][vectors];
  for (auto& row : sums)
    for (vec& s : row) s = zero();
  for (int64_t u = 0; u < e.count; ++u) {
    const T* down = static_cast<const T*>(e.down) + e.used[u] * e.each * e.width + c;
    const float* inner = e.inner + u * e.each * e.tokens + t;
    for (int64_t j = 0; j < e.each; ++j, down += e.width, inner += e.tokens) {
      __builtin_prefetch(down + 8 * e.width);
      for (int v = 0; v < vectors; ++v) {
        const vec w = load_part(down + v * kLanes, kLanes);
        for (int i = 0; i < tokens; ++i) sums[i][v] = fma(w, broadcast(inner[i]), sums[i][v]);
      }
    }
  }
  for (int i = 0; i < tokens; ++i)
    for (int v = 0; v < vectors; ++v) store(e.y + (t + i) * e.width + c + v * kLanes, sums[i][v]);
}

template <class T>
HASTEN_INLINE void experts_down_tail(const ExpertArgs& e, int64_t t, int64_t c, int64_t count) {
  vec s = zero();
  for (int64_t u = 0; u < e.count; ++u)
    for (int64_t j = 0; j < e.each; ++j) {
      const T* down = static_cast<const T*>(e.down) + (e.used[u] * e.each + j) * e.width + c;
      s = fma(load_part(down, count), broadcast(e.inner[(u * e.each + j) * e.tokens + t]), s);
    }
  store_part(e.y + t * e.width + c, s, count);
}

template <class T>
void experts_down_as(const ExpertArgs& e, int64_t begin, int64_t end) {
  int64_t t = 0;
  for (; t + 4 <= e.tokens; t += 4) {
    int64_t c = begin;
    for (; c + 4 * kLanes <= end; c += 4 * kLanes) experts_down_tile<T, 4, 4>(e, t, c);
    for (; c < end; c += kLanes)
      for (int64_t i = t; i < t + 4; ++i) experts_down_tail<T>(e, i, c, end - c);
  }
  for (; t < e.tokens; ++t) {
    int64_t c = begin;
    for (; c + 8 * kLanes <= end; c += 8 * kLanes) experts_down_tile<T, 1, 8>(e, t, c);
    for (; c < end; c += kLanes) experts_down_tail<T>(e, t, c, end - c);
  }
}

int64_t experts_up(const ExpertArgs& e, int64_t begin, int64_t end) {
  return e.bf16 ? experts_up_as<uint16_t>(e, begin, end) : experts_up_as<float>(e, begin, end);
}

void experts_down(const ExpertArgs& e, int64_t begin, int64_t end) {
  e.bf16 ? experts_down_as<uint16_t>(e, begin, end) : experts_down_as<float>(e, begin, end);
}

constexpr ExpertsKernels experts_kernels = {&experts_up, &experts_down};

}  // namespace
}  // namespace hasten
#endif

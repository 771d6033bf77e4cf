// A layer's mixture of experts: rows are gathered by expert, so that each expert's matrices are read once, by the
// products that plain layers have. A row's result does not depend on the rows beside it: those products give a row the
// same alone and among others, and what its experts make is added up in the order in which they were chosen.
#pragma once

#include "barrier.hpp"
#include "integer_linear.hpp"

namespace hasten {
namespace {

// (up + 1) gate sigmoid(alpha gate) in the place of `gate`, n numbers, both within `limit` first (gpt-oss). What is not
// a number stays none.
HASTEN_INLINE void activate_clamped(float alpha, float limit, float* gate, const float* up, int64_t n) {
  const vec most = broadcast(limit), least = broadcast(-limit);
  for (int64_t i = 0; i < n; i += kLanes) {
    vec g = load_part(gate + i, n - i), u = load_part(up + i, n - i);
    g = where_less(most, g, most, g);
    u = where_less(most, u, most, where_less(u, least, least, u));
    store_part(gate + i, mul(add(u, broadcast(1.0f)), mul(g, sigmoid(mul(g, broadcast(alpha))))), n - i);
  }
}

// The chosen experts' inner values of the `rows` normed rows in s.normed. Every thread calls it; they meet at the
// barrier, but not at the end. `activate(gate, up, n)` is the layer's.
template <class Activate>
inline void mix_up(const Mixture& m, int64_t hidden, int rows, const Scratch& s, int rank, int threads, Barrier& barrier,
                   const Activate& activate) {
  const Routes& r = s.routes;
  const int64_t pairs = rows * m.top, inner = m.inner();
  int64_t begin, end;

  share(m.experts(), 8, rank, threads, begin, end);
  multiply(m.router, s.normed, hidden, rows, r.logits, m.experts(), begin, end);
  if (m.beside.codes && rank == threads - 1) multiply(m.beside, s.normed, hidden, rows, r.beside, 1, 0, 1);
  barrier.wait();

  share(rows, 1, rank, threads, begin, end);
  for (int64_t t = begin; t < end; ++t)
    choose_experts(m, r.logits + t * m.experts(), r.ranked + rank * m.experts(), r.chosen + t * m.top, r.weights + t * m.top);
  barrier.wait();

  if (rank == 0) sort_by_expert(m, rows, r);
  barrier.wait();

  const bool codes_of_one = m.gate.first.takes_codes() || m.up.first.takes_codes();
  const bool codes_of_both = m.gate.first.takes_codes() && m.up.first.takes_codes();
  share(pairs, 1, rank, threads, begin, end);
  for (int64_t i = begin; i < end; ++i) {
    const float* row = s.normed + r.row[i] * hidden;
    if (codes_of_one) encode_row(row, r.row_codes, i, hidden);
    if (!codes_of_both) std::memcpy(r.rows + i * hidden, row, size_t(hidden) * sizeof(float));
  }
  barrier.wait();

  const int32_t used = *r.count;
  for (int32_t u = 0; u < used; ++u) {
    const int64_t first = r.begin[u], count = r.begin[u + 1] - first;
    // Shares that are not quite equal go to another thread with each expert.
    share(inner, kGroup, (rank + u) % threads, threads, begin, end);
    if (begin == end) continue;
    const Codes codes = r.row_codes.from(first);
    const float* x = r.rows + first * hidden;
    float *gate = r.inner + first * inner, *up = r.up + first * inner;
    multiply_either(m.gate.of(r.used[u]), x, hidden, codes, int(count), gate, inner, begin, end);
    multiply_either(m.up.of(r.used[u]), x, hidden, codes, int(count), up, inner, begin, end);
    for (int64_t t = 0; t < count; ++t, gate += inner, up += inner) {
      if (m.limit > 0)
        activate_clamped(m.alpha, m.limit, gate + begin, up + begin, end - begin);
      else
        activate(gate + begin, up + begin, end - begin);
      if (m.down.first.takes_codes())
        for (int64_t g = begin / kGroup; g < end / kGroup; ++g) encode_group(gate, r.inner_codes, first + t, g);
    }
  }
}

// Afterwards: columns [begin, end) of what the experts make, in `added` (rows, hidden), where the MLP beside them has
// left what it makes, if there is one.
inline void mix_down(const Mixture& m, int64_t hidden, int rows, const Scratch& s, float* added, int64_t begin,
                     int64_t end) {
  const Routes& r = s.routes;
  const int64_t inner = m.inner();
  if (begin == end) return;
  for (int32_t u = 0; u < *r.count; ++u) {
    const int64_t first = r.begin[u], count = r.begin[u + 1] - first;
    multiply_either(m.down.of(r.used[u]), r.inner + first * inner, inner, r.inner_codes.from(first), int(count),
                    r.rows + first * hidden, hidden, begin, end);
  }
  for (int64_t t = 0; t < rows; ++t) {
    float* to = added + t * hidden;
    const float weight = m.beside.codes ? 1.0f / (1.0f + std::exp(-r.beside[t])) : 0.0f;
    for (int64_t i = begin; i < end; i += kLanes) {
      vec total = zero();
      for (int64_t k = 0; k < m.top; ++k)
        total = fma(broadcast(r.weights[t * m.top + k]), load_part(r.rows + r.place[t * m.top + k] * hidden + i, end - i), total);
      if (m.beside.codes) total = fma(broadcast(weight), load_part(to + i, end - i), total);
      store_part(to + i, total, end - i);
    }
  }
}

}  // namespace
}  // namespace hasten

// One step of a Llama-like decoder for a few tokens, run by all threads of one parallel region: the threads
// split the rows of every weight matrix and the heads of the attention, and meet at a barrier only where
// one's result is the other's input.
#pragma once

#include <cmath>

#include "attention.hpp"
#include "barrier.hpp"
#include "integer_linear.hpp"
#include "prompt_attention.hpp"

namespace hasten {
namespace {

HASTEN_INLINE void rms_norm(const float* x, const float* weight, float* y, int64_t n, float epsilon) {
  vec first = zero(), second = zero();
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const vec a = load(x + i), b = load(x + i + kLanes);
    first = fma(a, a, first);
    second = fma(b, b, second);
  }
  for (; i < n; i += kLanes) {
    const vec a = load_part(x + i, n - i);
    first = fma(a, a, first);
  }
  const float scale = 1.0f / std::sqrt(sum(add(first, second)) / float(n) + epsilon);
  for (i = 0; i < n; ++i) y[i] = weight[i] * (x[i] * scale);
}

// Rotates the two halves of a head, as the published Llama weights expect.
HASTEN_INLINE void rotate(float* x, const float* cosines, const float* sines, int64_t d) {
  const int64_t half = d / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cosines[i] - b * sines[i];
    x[i + half] = b * cosines[i + half] + a * sines[i + half];
  }
}

HASTEN_INLINE void embed(const Matrix& table, int64_t id, float* out) { unpack(table, out, id, id + 1); }

inline void step(const Model& m, const Cache& c, const Tokens& in, const Scratch& s, float* logits, int rank,
                 int threads, Barrier& barrier) {
  const int rows = in.rows;
  const int64_t d = m.head_dim, q_width = m.heads * d, kv_width = m.kv_heads * d, heads = m.heads / m.kv_heads;
  const int64_t width = d + kLanes;  // floats of one part of a head's attention
  int64_t begin, end;

  share(rows, 1, rank, threads, begin, end);
  for (int64_t t = begin; t < end; ++t) embed(m.embedding, in.ids[t], s.state + t * m.hidden);
  barrier.wait();

  // Rows (all, or `count` that `which` names) normed into s.normed and there rounded to codes if `matrix` takes them.
  const auto norm = [&](const float* weight, const int64_t* which, int count, const Matrix& matrix) {
    share(count, 1, rank, threads, begin, end);
    for (int64_t t = begin; t < end; ++t) {
      rms_norm(s.state + (which ? which[t] : t) * m.hidden, weight, s.normed + t * m.hidden, m.hidden, m.epsilon);
      if (matrix.takes_codes()) encode_row(s.normed + t * m.hidden, s.hidden_codes, t, m.hidden);
    }
    barrier.wait();
  };

  for (size_t index = 0; index < m.layers.size(); ++index) {
    const Layer& layer = m.layers[index];
    const LayerCache& cache = c.layers[index];

    norm(layer.input_norm, nullptr, rows, layer.query);

    // The rows of the three projections are shared out as if they were one matrix.
    share(q_width + 2 * kv_width, 8, rank, threads, begin, end);
    const Matrix* projections[] = {&layer.query, &layer.key, &layer.value};
    float* targets[] = {s.query, s.key, s.value};
    int64_t offset = 0;
    for (int i = 0; i < 3; ++i) {
      const int64_t out = projections[i]->out;
      const int64_t n0 = begin > offset ? begin - offset : 0;
      const int64_t n1 = end - offset < out ? end - offset : out;
      if (n0 < n1)
        multiply_either(*projections[i], s.normed, m.hidden, s.hidden_codes, rows, targets[i], out, n0, n1);
      offset += out;
    }
    barrier.wait();

    if (c.bits < kBf16 || cache.pooled) {
      share(c.batch * m.kv_heads, 1, rank, threads, begin, end);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t seq = i / m.kv_heads;
        for (int64_t b = in.quantized[seq]; b < in.committed[seq] / c.block; ++b) {
          if (cache.pooled) pool_block(m, c, cache, seq, i % m.kv_heads, b);
          if (c.bits < kBf16) quantize_block(m, c, cache, seq, i % m.kv_heads, b);
        }
      }
      // The recent ring reuses the places that have just become codes.
      barrier.wait();
    }
    share(rows * m.kv_heads, 1, rank, threads, begin, end);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i / m.kv_heads, kv = i % m.kv_heads;
      const float *cosines = m.cosines + in.turn[t] * d, *sines = m.sines + in.turn[t] * d;
      float* key = s.key + t * kv_width + kv * d;
      if (layer.key_norm) rms_norm(key, layer.key_norm, key, d, m.epsilon);
      rotate(key, cosines, sines, d);
      float* value = s.value + t * kv_width + kv * d;
      if (in.stands_apart.empty() || !in.stands_apart[t]) {
        append(m, c, cache, in.seq[t], kv, in.pos[t], key, value);
      } else if (c.bits == kBf16 || c.bits == kFp16) {
        // Read from here, it is what the cache will hold.
        for (float* one : {key, value})
          for (int64_t j = 0; j < d; ++j)
            one[j] = c.bits == kBf16 ? from_bf16(to_bf16(one[j])) : from_fp16(to_fp16(one[j]));
      }
      for (int64_t h = kv * heads; h < (kv + 1) * heads; ++h) {
        float* query = s.query + t * q_width + h * d;
        if (layer.query_norm) rms_norm(query, layer.query_norm, query, d, m.epsilon);
        rotate(query, cosines, sines, d);
        for (int64_t j = 0; j < d; ++j) query[j] *= m.scaling;
      }
    }
    barrier.wait();

    const bool choosing = cache.pooled != nullptr;
    if (choosing) {
      share(rows * m.kv_heads, 1, rank, threads, begin, end);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t t = i / m.kv_heads, kv = i % m.kv_heads;
        choose(m, c, cache, in.seq[t], kv, in.pos[t], s.query + t * q_width + kv * heads * d, heads,
               s.chosen + i * s.chosen_stride, s.scores + rank * s.scores_stride);
      }
      barrier.wait();
    }
    const auto view_of = [&](int64_t i) {
      const int64_t t = i / m.kv_heads;
      const int32_t* chosen = choosing ? s.chosen + i * s.chosen_stride : nullptr;
      if (!in.masks) return View(c, cache, in.pos[t], chosen);
      // As many tokens as the row's path has: it is read as a chain.
      const int64_t from = in.committed[in.seq[t]];
      View view(c, cache, from + __builtin_popcountll(in.masks[t]), chosen);
      view.tree_from = from;
      view.mask = in.masks[t];
      return view;
    };

    const auto attended = [&](int64_t t, int64_t h) HASTEN_LAMBDA {
      if (layer.output.takes_codes() && d % kGroup == 0)
        for (int64_t g = h * d / kGroup; g < (h + 1) * d / kGroup; ++g)
          encode_group(s.attended + t * q_width, s.attended_codes, t, g);
    };
    // Of rows that are attended from one by one parts of the keys are shared out; each sum is over the same parts
    // whatever the number of rows and threads.
    const int64_t single = int64_t(in.single.size());
    int64_t items = 0;
    for (int64_t i = 0; i < single * m.kv_heads; ++i)
      items += view_of(in.single[i / m.kv_heads] * m.kv_heads + i % m.kv_heads).parts();
    share(items, 1, rank, threads, begin, end);
    int64_t before = 0;
    for (int64_t i = 0; i < single * m.kv_heads && before < end; ++i) {
      const int64_t t = in.single[i / m.kv_heads], kv = i % m.kv_heads;
      const View view = view_of(t * m.kv_heads + kv);
      const int64_t count = view.parts();
      for (int64_t part = begin > before ? begin - before : 0; part < count && before + part < end; ++part)
        attend(m, c, cache, in.seq[t], kv, view, part, in.committed[in.seq[t]], s.query + t * q_width + kv * heads * d,
               heads, s.partial + ((i / m.kv_heads * m.heads + kv * heads) * s.chunks + part) * width, s.chunks * width);
      before += count;
    }
    // Tiles are taken by whoever is free, those that read most first.
    const int tiles = int(in.tiles.size() * size_t(m.kv_heads));
    for (int taken; tiles && (taken = s.taken[index].fetch_add(1, std::memory_order_relaxed)) < tiles;) {
      const Tile& tile = in.tiles[in.tiles.size() - 1 - size_t(taken / m.kv_heads)];
      const int64_t kv = taken % m.kv_heads;
      attend_tile(m, c, cache, tile, kv, in.committed[tile.seq], s, s.tile + rank * s.tile_stride);
      for (int64_t t = tile.row; t < tile.row + tile.count; ++t)
        for (int64_t h = kv * heads; h < (kv + 1) * heads; ++h) attended(t, h);
    }
    barrier.wait();

    share(single * m.heads, 1, rank, threads, begin, end);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = in.single[i / m.heads], h = i % m.heads;
      combine(s.partial + i * s.chunks * width, view_of(t * m.kv_heads + h / heads).parts(), width, d,
              s.attended + t * q_width + h * d);
      attended(t, h);
    }
    share(int64_t(in.apart.size()) * m.kv_heads, 1, rank, threads, begin, end);
    for (int64_t i = begin; i < end; ++i)
      append_run(m, c, cache, in.apart[size_t(i / m.kv_heads)], i % m.kv_heads, s, s.tile + rank * s.tile_stride);
    barrier.wait();
    if (layer.output.takes_codes() && d % kGroup) {
      share(rows, 1, rank, threads, begin, end);
      for (int64_t t = begin; t < end; ++t) encode_row(s.attended + t * q_width, s.attended_codes, t, q_width);
      barrier.wait();
    }

    share(m.hidden, 8, rank, threads, begin, end);
    multiply_either(layer.output, s.attended, q_width, s.attended_codes, rows, s.normed, m.hidden, begin, end);
    for (int t = 0; t < rows; ++t)
      for (int64_t i = begin; i < end; ++i) s.state[t * m.hidden + i] += s.normed[t * m.hidden + i];
    barrier.wait();

    norm(layer.post_norm, nullptr, rows, layer.gate);

    share(m.intermediate, kGroup, rank, threads, begin, end);
    multiply_either(layer.gate, s.normed, m.hidden, s.hidden_codes, rows, s.inner, m.intermediate, begin, end);
    multiply_either(layer.up, s.normed, m.hidden, s.hidden_codes, rows, s.up, m.intermediate, begin, end);
    for (int t = 0; t < rows; ++t) {
      float* gate = s.inner + t * m.intermediate;
      const float* up = s.up + t * m.intermediate;
      int64_t i = begin;
      for (; i + kLanes <= end; i += kLanes) {
        const vec g = load(gate + i);
        store(gate + i, mul(mul(g, sigmoid(g)), load(up + i)));
      }
      for (; i < end; ++i) gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
      if (layer.down.takes_codes())
        for (int64_t g = begin / kGroup; g < end / kGroup; ++g) encode_group(gate, s.inner_codes, t, g);
    }
    barrier.wait();

    share(m.hidden, 8, rank, threads, begin, end);
    multiply_either(layer.down, s.inner, m.intermediate, s.inner_codes, rows, s.normed, m.hidden, begin, end);
    for (int t = 0; t < rows; ++t)
      for (int64_t i = begin; i < end; ++i) s.state[t * m.hidden + i] += s.normed[t * m.hidden + i];
    barrier.wait();
  }

  norm(m.final_norm, in.answered, in.answers, m.head);
  if (in.hidden && rank == 0) std::memcpy(in.hidden, s.normed, size_t(in.answers * m.hidden) * sizeof(float));
  share(m.vocabulary, 8, rank, threads, begin, end);
  multiply_either(m.head, s.normed, m.hidden, s.hidden_codes, in.answers, logits, m.vocabulary, begin, end);
}

}  // namespace
}  // namespace hasten

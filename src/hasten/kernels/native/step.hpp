// One step of a Llama-like decoder for a few tokens, run by all threads of one parallel region: the threads
// split the rows of every weight matrix and the heads of the attention, and meet at a barrier only where
// one's result is the other's input.
#pragma once

#include <cmath>

#include "attention.hpp"
#include "barrier.hpp"
#include "linear.hpp"

namespace hasten {
namespace {

HASTEN_INLINE void rms_norm(const float* x, const float* weight, float* y, int64_t n, float epsilon) {
  float squares = 0;
  for (int64_t i = 0; i < n; ++i) squares += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(squares / float(n) + epsilon);
  for (int64_t i = 0; i < n; ++i) y[i] = weight[i] * (x[i] * scale);
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
  const int64_t d = m.head_dim, q_width = m.heads * d, kv_width = m.kv_heads * d, share_heads = m.heads / m.kv_heads;
  float* scores = s.scores + rank * s.scores_stride;
  int64_t begin, end;

  share(rows, 1, rank, threads, begin, end);
  for (int64_t t = begin; t < end; ++t) embed(m.embedding, in.ids[t], s.state + t * m.hidden);
  barrier.wait();

  for (size_t index = 0; index < m.layers.size(); ++index) {
    const Layer& layer = m.layers[index];
    const LayerCache& cache = c.layers[index];

    // Rows of normed are split over the threads when there are many; one row each thread would wait for
    // costs less to compute than to wait for, but they share the buffer, so it is split all the same.
    share(rows, 1, rank, threads, begin, end);
    for (int64_t t = begin; t < end; ++t)
      rms_norm(s.state + t * m.hidden, layer.input_norm, s.normed + t * m.hidden, m.hidden, m.epsilon);
    barrier.wait();

    // The rows of the three projections are shared out as if they were one matrix.
    share(q_width + 2 * kv_width, 8, rank, threads, begin, end);
    const Matrix* parts[] = {&layer.query, &layer.key, &layer.value};
    float* targets[] = {s.query, s.key, s.value};
    int64_t offset = 0;
    for (int i = 0; i < 3; ++i) {
      const int64_t width = parts[i]->out;
      const int64_t n0 = begin > offset ? begin - offset : 0;
      const int64_t n1 = end - offset < width ? end - offset : width;
      if (n0 < n1) multiply(*parts[i], s.normed, m.hidden, rows, targets[i], width, n0, n1);
      offset += width;
    }
    barrier.wait();

    if (c.bits < kBf16) {
      share(c.batch * m.kv_heads, 1, rank, threads, begin, end);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t seq = i / m.kv_heads;
        for (int64_t b = in.quantized[seq]; b < in.committed[seq] / c.block; ++b)
          quantize_block(m, c, cache, seq, i % m.kv_heads, b);
      }
      // The recent ring reuses the places that have just become codes.
      barrier.wait();
    }
    share(rows * m.kv_heads, 1, rank, threads, begin, end);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i / m.kv_heads, kv = i % m.kv_heads;
      float* key = s.key + t * kv_width + kv * d;
      if (layer.key_norm) rms_norm(key, layer.key_norm, key, d, m.epsilon);
      rotate(key, m.cosines + in.pos[t] * d, m.sines + in.pos[t] * d, d);
      append(m, c, cache, in.seq[t], kv, in.pos[t], key, s.value + t * kv_width + kv * d);
    }
    barrier.wait();

    share(rows * m.heads, 1, rank, threads, begin, end);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i / m.heads, h = i % m.heads;
      float* query = s.query + t * q_width + h * d;
      if (layer.query_norm) rms_norm(query, layer.query_norm, query, d, m.epsilon);
      rotate(query, m.cosines + in.pos[t] * d, m.sines + in.pos[t] * d, d);
      for (int64_t j = 0; j < d; ++j) query[j] *= m.scaling;
      attend(m, c, cache, in.seq[t], h / share_heads, in.pos[t], in.committed[in.seq[t]], query,
             s.attended + t * q_width + h * d, scores);
    }
    barrier.wait();

    share(m.hidden, 8, rank, threads, begin, end);
    multiply(layer.output, s.attended, q_width, rows, s.normed, m.hidden, begin, end);
    for (int t = 0; t < rows; ++t)
      for (int64_t i = begin; i < end; ++i) s.state[t * m.hidden + i] += s.normed[t * m.hidden + i];
    barrier.wait();

    share(rows, 1, rank, threads, begin, end);
    for (int64_t t = begin; t < end; ++t)
      rms_norm(s.state + t * m.hidden, layer.post_norm, s.normed + t * m.hidden, m.hidden, m.epsilon);
    barrier.wait();

    share(m.intermediate, 8, rank, threads, begin, end);
    multiply(layer.gate, s.normed, m.hidden, rows, s.inner, m.intermediate, begin, end);
    multiply(layer.up, s.normed, m.hidden, rows, s.up, m.intermediate, begin, end);
    for (int t = 0; t < rows; ++t) {
      float* gate = s.inner + t * m.intermediate;
      const float* up = s.up + t * m.intermediate;
      for (int64_t i = begin; i < end; ++i) gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
    }
    barrier.wait();

    share(m.hidden, 8, rank, threads, begin, end);
    multiply(layer.down, s.inner, m.intermediate, rows, s.normed, m.hidden, begin, end);
    for (int t = 0; t < rows; ++t)
      for (int64_t i = begin; i < end; ++i) s.state[t * m.hidden + i] += s.normed[t * m.hidden + i];
    barrier.wait();
  }

  const int wanted = rows - in.logits_from;
  share(wanted, 1, rank, threads, begin, end);
  for (int64_t t = begin; t < end; ++t)
    rms_norm(s.state + (in.logits_from + t) * m.hidden, m.final_norm, s.normed + t * m.hidden, m.hidden, m.epsilon);
  barrier.wait();
  share(m.vocabulary, 8, rank, threads, begin, end);
  multiply(m.head, s.normed, m.hidden, wanted, logits, m.vocabulary, begin, end);
}

}  // namespace
}  // namespace hasten

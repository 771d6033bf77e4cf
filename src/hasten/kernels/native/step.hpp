// One step of a decoder (types.hpp says which there are) for a few tokens, run by all threads of one parallel region: the threads
// split the rows of every weight matrix and the heads of the attention, and meet at a barrier only where
// one's result is the other's input.
#pragma once

#include <cmath>

#include "attention.hpp"
#include "barrier.hpp"
#include "integer_linear.hpp"
#include "mixture.hpp"
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

// Divides by the standard deviation about the mean.
HASTEN_INLINE void layer_norm(const float* x, const Norm& norm, float* y, int64_t n) {
  vec total = zero();
  for (int64_t i = 0; i < n; i += kLanes) total = add(total, load_part(x + i, n - i));
  const float mean = sum(total) / float(n);
  total = zero();
  for (int64_t i = 0; i < n; i += kLanes) {
    alignas(64) float off[kLanes];
    store(off, sub(load_part(x + i, n - i), broadcast(mean)));
    const vec apart = load_part(off, n - i);  // zeros behind the end
    total = fma(apart, apart, total);
  }
  const float scale = 1.0f / std::sqrt(sum(total) / float(n) + norm.epsilon);
  for (int64_t i = 0; i < n; ++i) y[i] = norm.weight[i] * ((x[i] - mean) * scale) + (norm.bias ? norm.bias[i] : 0.0f);
}

// A row of n numbers whose weights stand `from` on among the norm's; x and y may be the same.
HASTEN_INLINE void norm_row(const float* x, const Norm& norm, int64_t from, float* y, int64_t n) {
  if (norm.centred)
    layer_norm(x, {norm.weight + from, norm.bias ? norm.bias + from : nullptr, norm.epsilon, true}, y, n);
  else
    rms_norm(x, norm.weight + from, y, n, norm.epsilon);
}

// act(gate) * up in the place of `gate`, n numbers.
template <int Act>
HASTEN_INLINE void activate(float* gate, const float* up, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const vec g = load_part(gate + i, n - i);
    vec open;  // what g is multiplied by
    if constexpr (Act == kGelu)
      open = mul(broadcast(0.5f), add(broadcast(1.0f), erf(mul(g, broadcast(0.70710678118654752f)))));
    else if constexpr (Act == kGeluTanh)  // (1 + tanh(z)) / 2 is sigmoid(2 z), z = sqrt(2 / pi) (g + 0.044715 g^3)
      open = sigmoid(mul(mul(g, broadcast(1.5957691216057308f)), fma(mul(g, g), broadcast(0.044715f), broadcast(1.0f))));
    else
      open = sigmoid(g);
    store_part(gate + i, mul(mul(g, open), load_part(up + i, n - i)), n - i);
  }
}

HASTEN_INLINE void activate(Activation act, float* gate, const float* up, int64_t n) {
  switch (act) {
    case kGelu: return activate<kGelu>(gate, up, n);
    case kGeluTanh: return activate<kGeluTanh>(gate, up, n);
    default: return activate<kSilu>(gate, up, n);
  }
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
  for (int64_t t = begin; t < end; ++t) {
    float* row = s.state + t * m.hidden;
    embed(m.embedding, in.ids[t], row);
    if (m.embedding_scale != 1)
      for (int64_t i = 0; i < m.hidden; ++i) row[i] *= m.embedding_scale;
  }
  barrier.wait();

  // Rows (all, or `count` that `which` names) normed into s.normed and there rounded to codes if `matrix` takes them.
  const auto norm = [&](const Norm& by, const int64_t* which, int count, const Matrix& matrix) {
    share(count, 1, rank, threads, begin, end);
    for (int64_t t = begin; t < end; ++t) {
      const float* row = s.state + (which ? which[t] : t) * m.hidden;
      if (by)
        norm_row(row, by, 0, s.normed + t * m.hidden, m.hidden);
      else
        std::memcpy(s.normed + t * m.hidden, row, size_t(m.hidden) * sizeof(float));
      if (matrix.takes_codes()) encode_row(s.normed + t * m.hidden, s.hidden_codes, t, m.hidden);
    }
    barrier.wait();
  };
  // Every row's `added`, in the columns that this thread has made, joins the state; where it is normed first each row
  // is one thread's.
  const auto join = [&](const Norm& after, float* added) {
    if (after) {
      barrier.wait();
      share(rows, 1, rank, threads, begin, end);
      for (int64_t t = begin; t < end; ++t) {
        float *row = added + t * m.hidden, *state = s.state + t * m.hidden;
        norm_row(row, after, 0, row, m.hidden);
        for (int64_t i = 0; i < m.hidden; ++i) state[i] += m.residual_scale * row[i];
      }
    } else {
      for (int t = 0; t < rows; ++t)
        for (int64_t i = begin; i < end; ++i) s.state[t * m.hidden + i] += m.residual_scale * added[t * m.hidden + i];
    }
    barrier.wait();
  };

  for (size_t index = 0; index < m.layers.size(); ++index) {
    const Layer& layer = m.layers[index];
    const LayerCache& cache = c.layers[index];

    norm(layer.attention_norm, nullptr, rows, layer.query);

    // The rows of the three projections are shared out as if they were one matrix.
    share(q_width + 2 * kv_width, kTile, rank, threads, begin, end);
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
    if (layer.norm_together) {
      share(rows, 1, rank, threads, begin, end);
      for (int64_t t = begin; t < end; ++t) {
        if (layer.query_norm) norm_row(s.query + t * q_width, layer.query_norm, 0, s.query + t * q_width, q_width);
        if (layer.key_norm) norm_row(s.key + t * kv_width, layer.key_norm, 0, s.key + t * kv_width, kv_width);
      }
      barrier.wait();
    }
    const bool query_alone = layer.query_norm && !layer.norm_together, key_alone = layer.key_norm && !layer.norm_together;
    const Rotary rotary = layer.rotary < 0 ? Rotary() : m.rotaries[size_t(layer.rotary)];
    share(rows * m.kv_heads, 1, rank, threads, begin, end);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i / m.kv_heads, kv = i % m.kv_heads;
      const int64_t turn = in.turn[t] * rotary.width;
      const float *cosines = rotary.cosines + turn, *sines = rotary.sines + turn;
      float* key = s.key + t * kv_width + kv * d;
      if (key_alone) norm_row(key, layer.key_norm, kv * d, key, d);
      rotate(key, cosines, sines, rotary.width);
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
        if (query_alone) norm_row(query, layer.query_norm, h * d, query, d);
        rotate(query, cosines, sines, rotary.width);
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
      attend_tile(m, c, cache, tile, kv, in.committed[tile.seq], layer.sinks, s, s.tile + rank * s.tile_stride);
      for (int64_t t = tile.row; t < tile.row + tile.count; ++t)
        for (int64_t h = kv * heads; h < (kv + 1) * heads; ++h) attended(t, h);
    }
    barrier.wait();

    share(single * m.heads, 1, rank, threads, begin, end);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = in.single[i / m.heads], h = i % m.heads;
      combine(s.partial + i * s.chunks * width, view_of(t * m.kv_heads + h / heads).parts(), width, d,
              layer.sinks ? layer.sinks + h : nullptr, s.attended + t * q_width + h * d);
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

    share(m.hidden, kTile, rank, threads, begin, end);
    float* added = layer.parallel ? s.added : s.normed;
    multiply_either(layer.output, s.attended, q_width, s.attended_codes, rows, added, m.hidden, begin, end);
    join(layer.attention_after, added);

    if (!layer.parallel) norm(layer.feed_forward_norm, nullptr, rows, layer.gate);

    const auto gated = [&](float* gate, const float* up, int64_t n) HASTEN_LAMBDA { activate(layer.activation, gate, up, n); };
    const int64_t inner = layer.gate.out;
    const Codes& inner_codes = layer.mixture ? s.routes.beside_codes : s.inner_codes;
    if (layer.gate.codes) {
      share(inner, kGroup, rank, threads, begin, end);
      multiply_either(layer.gate, s.normed, m.hidden, s.hidden_codes, rows, s.inner, inner, begin, end);
      multiply_either(layer.up, s.normed, m.hidden, s.hidden_codes, rows, s.up, inner, begin, end);
      for (int t = 0; t < rows; ++t) {
        float* gate = s.inner + t * inner;
        gated(gate + begin, s.up + t * inner + begin, end - begin);
        if (layer.down.takes_codes())
          for (int64_t g = begin / kGroup; g < end / kGroup; ++g) encode_group(gate, inner_codes, t, g);
      }
    }
    if (layer.mixture) mix_up(layer.mixture, m.hidden, rows, s, rank, threads, barrier, gated);
    barrier.wait();

    share(m.hidden, kTile, rank, threads, begin, end);
    if (layer.gate.codes)
      multiply_either(layer.down, s.inner, inner, inner_codes, rows, added, m.hidden, begin, end);
    if (layer.mixture) mix_down(layer.mixture, m.hidden, rows, s, added, begin, end);
    join(layer.feed_forward_after, added);
  }

  norm(m.final_norm, in.answered, in.answers, m.head);
  if (in.hidden && rank == 0) std::memcpy(in.hidden, s.normed, size_t(in.answers * m.hidden) * sizeof(float));
  share(m.vocabulary, kTile, rank, threads, begin, end);
  multiply_either(m.head, s.normed, m.hidden, s.hidden_codes, in.answers, logits, m.vocabulary, begin, end);
  if (m.logit_scale == 1 && m.logit_cap <= 0) return;
  const vec scale = broadcast(m.logit_scale), most = broadcast(m.logit_cap), inverse = broadcast(1 / m.logit_cap);
  for (int t = 0; t < in.answers; ++t)
    for (int64_t i = begin; i < end; i += kLanes) {
      float* at = logits + t * m.vocabulary + i;
      const vec scaled = mul(scale, load_part(at, end - i));
      store_part(at, m.logit_cap > 0 ? mul(most, tanh(mul(scaled, inverse))) : scaled, end - i);
    }
}

}  // namespace
}  // namespace hasten

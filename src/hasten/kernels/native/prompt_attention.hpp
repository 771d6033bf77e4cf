// Attention of a prompt's piece: a tile of rows of one sequence shares each read of keys and values, and no matrix of
// scores is kept. Every sum has the order that attention.hpp has for a row alone, so that a row's result is the same
// however its prompt was cut into pieces.
#pragma once

#include "attention.hpp"
#include "lanes.hpp"

namespace hasten {
namespace {

#if defined(__AVX512F__)
constexpr int kAtOnce = 4, kWide = 4;  // queries, and vectors of channels, that are summed in registers
#elif defined(__AVX2__)
constexpr int kAtOnce = 2, kWide = 2;
#else
constexpr int kAtOnce = 1, kWide = 1;
#endif

HASTEN_INLINE int64_t to_lanes(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Where a thread keeps what it makes of one tile.
struct TileRoom {
  float *queries, *out, *scores, *keys, *turned, *values, *sums;

  // Floats that a tile needs in all.
  static int64_t floats(int64_t head_dim) {
    const int64_t wide = to_lanes(head_dim);
    return wide * (2 * kTileQueries + 2 * kBlock + kPart * kBlock + kAtOnce) + kTileQueries * kPart * kBlock;
  }
  TileRoom(float* room, int64_t head_dim) {
    const int64_t wide = to_lanes(head_dim);
    queries = room;
    out = queries + kTileQueries * wide;
    scores = out + kTileQueries * wide;
    keys = scores + kTileQueries * kPart * kBlock;
    turned = keys + kBlock * wide;
    values = turned + kBlock * wide;
    sums = values + kPart * kBlock * wide;
  }
};

template <int Count>
struct vecs {
  vec v[Count];
};
template <int Count>
HASTEN_INLINE vecs<Count> add(const vecs<Count>& a, const vecs<Count>& b) {
  vecs<Count> r;
  for (int i = 0; i < Count; ++i) r.v[i] = add(a.v[i], b.v[i]);
  return r;
}

// Scores of 32 keys, turned (wide, 32), with kAtOnce queries (wide each). Sixteenths is wide / 16, or 0 for any.
template <int Sixteenths>
HASTEN_INLINE void score_turned(const float* turned, const float* q, int64_t wide, float* s) {
  for (int64_t half = 0; half < kBlock; half += kLanes) {
    const auto scores = sum_leaves([&](int lane) HASTEN_LAMBDA {
      vecs<kAtOnce> total;
      for (int h = 0; h < kAtOnce; ++h) total.v[h] = zero();
      const auto channel = [&](int64_t i) HASTEN_LAMBDA {
        const vec key = load(turned + i * kBlock + half);
        for (int h = 0; h < kAtOnce; ++h) total.v[h] = fma(broadcast(q[h * wide + i]), key, total.v[h]);
      };
      if constexpr (Sixteenths > 0) {
#pragma GCC unroll 8
        for (int i = 0; i < Sixteenths; ++i) channel(lane + kLanes * i);
      } else {
        for (int64_t i = lane; i < wide; i += kLanes) channel(i);
      }
      return total;
    });
    for (int h = 0; h < kAtOnce; ++h) store(s + h * kPart * kBlock + half, scores.v[h]);
  }
}

HASTEN_INLINE void score_block(const float* turned, const float* q, int64_t wide, float* s) {
#if defined(__AVX512F__)
  if (wide == 64) return score_turned<4>(turned, q, wide, s);
  if (wide == 128) return score_turned<8>(turned, q, wide, s);
#endif
  score_turned<0>(turned, q, wide, s);
}

// Weighted sums of `tokens` values (wide each) for kAtOnce queries, of the Vectors vectors of channels from `values` on.
template <int Vectors>
HASTEN_INLINE void weigh(const float* values, const float* weights, int64_t tokens, int64_t wide, float* sums) {
  vec total[kAtOnce][Vectors];
  for (int h = 0; h < kAtOnce; ++h)
    for (int i = 0; i < Vectors; ++i) total[h][i] = zero();
  for (int64_t t = 0; t < tokens; ++t) {
    vec value[Vectors];
    for (int i = 0; i < Vectors; ++i) value[i] = load(values + t * wide + i * kLanes);
    for (int h = 0; h < kAtOnce; ++h) {
      const vec w = broadcast(weights[h * kPart * kBlock + t]);
      for (int i = 0; i < Vectors; ++i) total[h][i] = fma(value[i], w, total[h][i]);
    }
  }
  for (int h = 0; h < kAtOnce; ++h)
    for (int i = 0; i < Vectors; ++i) store(sums + h * wide + i * kLanes, total[h][i]);
}

// `count` rows of head_dim numbers as floats, zeros up to `wide`.
template <class T>
HASTEN_INLINE void widen(const T* from, int64_t count, int64_t d, int64_t wide, float* to) {
  for (int64_t t = 0; t < count; ++t, from += d, to += wide) {
    int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) store(to + i, load_key(from + i));
    if (i < d) store(to + i, load_key_part(from + i, d - i));
  }
}

HASTEN_INLINE void widen_plain(const Cache& c, const void* from, int64_t token, int64_t count, int64_t d, int64_t wide,
                               float* to) {
  if (c.bits == kBf16)
    widen(static_cast<const uint16_t*>(from) + token * d, count, d, wide, to);
  else if (c.bits == kFp16)
    widen(static_cast<const Half*>(from) + token * d, count, d, wide, to);
  else
    widen(static_cast<const float*>(from) + token * d, count, d, wide, to);
}

// Keys (or values) of block b's first `count` tokens that are no codes, as floats. Those of a tile that stands apart
// are in the step's own rows from its run's first position on.
inline void widen_block(const Model& m, const Cache& c, const LayerCache& l, const Place& place, const Tile& tile,
                        const float* rows, bool keys, int64_t b, int64_t count, float* to) {
  const int64_t d = m.head_dim, wide = to_lanes(d), base = b * c.block, kv = place.head % m.kv_heads;
  const int64_t own = !tile.apart || base + count <= tile.run_pos ? 0
                      : base >= tile.run_pos                      ? count
                                                                  : base + count - tile.run_pos;
  const int64_t stored = count - own;
  if (stored > 0) {
    if (c.bits < kBf16)
      widen((keys ? l.recent_keys : l.recent_values) + (place.head * c.recent + base % c.recent) * d, stored, d, wide, to);
    else
      widen_plain(c, keys ? l.keys : l.values, place.tokens + place.slot(b) * c.block, stored, d, wide, to);
  }
  for (int64_t t = stored; t < count; ++t)
    widen(rows + ((tile.run_row + base + t - tile.run_pos) * m.kv_heads + kv) * d, 1, d, wide, to + t * wide);
}

// Values of block b as floats, out of codes.
inline void decode_values(const Model& m, const Cache& c, const LayerCache& l, int64_t at, float* to) {
  const int64_t d = m.head_dim, groups = d / kBlock;
  for (int64_t t = at; t < at + kBlock; ++t)
    for (int64_t g = 0; g < groups; ++g, to += kBlock) {
      const vec scale = broadcast_fp16(l.value_scales[t * groups + g]);
      vec a, b;
      if (c.bits == kInt8) {
        const int8_t* codes = static_cast<const int8_t*>(l.values) + t * d + g * kBlock;
        a = mul(load_int8(codes), scale);
        b = mul(load_int8(codes + kLanes), scale);
      } else {
        const vec low = broadcast_fp16(l.value_mins[t * groups + g]);
        load_int4(static_cast<const uint8_t*>(l.values) + (t * d + g * kBlock) / 2, a, b);
        a = fma(a, scale, low);
        b = fma(b, scale, low);
      }
      store(to, a);
      store(to + kLanes, b);
    }
}

// Attention of a tile's rows, for the query heads of one kv head: from s.query, already scaled, to s.attended.
inline void attend_tile(const Model& m, const Cache& c, const LayerCache& l, const Tile& tile, int64_t kv,
                        int64_t committed, const float* sinks, const Scratch& s, float* memory) {
  constexpr int64_t kScores = kPart * kBlock;
  const int64_t d = m.head_dim, wide = to_lanes(d), heads = m.heads / m.kv_heads, q_width = m.heads * d;
  const int64_t n = tile.count * heads, padded = (n + kAtOnce - 1) / kAtOnce * kAtOnce;
  const TileRoom room(memory, d);
  const Place place(c, l, m, tile.seq, kv);
  const int64_t quantized = quantized_blocks(c, committed);
  Merged merged[kTileQueries];
  std::memset(room.queries, 0, size_t(padded * wide) * sizeof(float));
  std::memset(room.out, 0, size_t(n * wide) * sizeof(float));
  for (int64_t i = 0; i < n; ++i)
    std::memcpy(room.queries + i * wide, s.query + (tile.row + i / heads) * q_width + (kv * heads + i % heads) * d,
                size_t(d) * sizeof(float));
  const View top(c, l, tile.pos, nullptr), bottom(c, l, tile.pos + tile.count - 1, nullptr);

  for (int64_t group = 0; group <= bottom.last / kPart; ++group) {
    int64_t blocks[kPart], count = 0, tokens = 0;
    for (int64_t b = group * kPart; b < (group + 1) * kPart && b <= bottom.last; ++b)
      if ((b * kBlock < l.sinks && (b + 1) * kBlock > top.floor) || b >= top.first) blocks[count++] = b;
    if (!count) continue;
    for (int64_t j = 0; j < count; ++j) {
      const int64_t b = blocks[j], base = b * kBlock, at = place.tokens + place.slot(b) * kBlock;
      const int64_t held = bottom.pos - base + 1 < kBlock ? bottom.pos - base + 1 : kBlock;
      const bool codes = c.bits < kBf16 && b < quantized;
      float* values = room.values + j * kBlock * wide;
      tokens = j * kBlock + held;
      if (codes) {
        decode_values(m, c, l, at, values);
      } else {
        std::memset(room.keys + held * wide, 0, size_t((kBlock - held) * wide) * sizeof(float));
        widen_block(m, c, l, place, tile, s.key, true, b, held, room.keys);
        widen_block(m, c, l, place, tile, s.value, false, b, held, values);
        for (int64_t i = 0; i < wide; i += kLanes)
          for (int64_t t = 0; t < kBlock; t += kLanes)
            transpose(room.keys + t * wide + i, wide, room.turned + i * kBlock + t, kBlock);
      }
      for (int64_t i = 0; i < padded; i += kAtOnce) {
        const float* q = room.queries + i * wide;
        float* scores = room.scores + i * kScores + j * kBlock;
        const int64_t end = i + kAtOnce < n ? i + kAtOnce : n;
        // Whose last row stands before the block sees nothing of it.
        if (tile.pos + (end - 1) / heads >= base) {
          if (!codes)
            score_block(room.turned, q, wide, scores);
          else if (c.bits == kInt8)
            score_int8<kAtOnce>(static_cast<const int8_t*>(l.keys) + at * d, l.key_scales + at / kBlock * d, q, d, scores);
          else
            score_int4<kAtOnce>(static_cast<const uint8_t*>(l.keys) + at * d / 2, l.key_scales + at / kBlock * d,
                                l.key_mins + at / kBlock * d, q, d, scores);
        }
        for (int64_t k = i; k < end; ++k) {
          cap_scores(m, room.scores + k * kScores + j * kBlock);
          View(c, l, tile.pos + k / heads, nullptr).hide(b, room.scores + k * kScores + j * kBlock);
        }
      }
    }
    for (int64_t i = 0; i < padded; i += kAtOnce) {
      float most[kAtOnce], total[kAtOnce];
      bool reads[kAtOnce] = {};
      for (int h = 0; h < kAtOnce && i + h < n; ++h) {
        const View view(c, l, tile.pos + (i + h) / heads, nullptr);
        for (int64_t j = 0; j < count; ++j) reads[h] = reads[h] || view.reads(blocks[j]);
        float* scores = room.scores + (i + h) * kScores;
        if (reads[h])
          soften(scores, count * kBlock, most[h], total[h]);
        else
          std::memset(scores, 0, size_t(count * kBlock) * sizeof(float));
      }
      const float* weights = room.scores + i * kScores;
      int64_t k = 0;
      for (; k + kWide * kLanes <= wide; k += kWide * kLanes)
        weigh<kWide>(room.values + k, weights, tokens, wide, room.sums + k);
      for (; k < wide; k += kLanes) weigh<1>(room.values + k, weights, tokens, wide, room.sums + k);
      for (int h = 0; h < kAtOnce; ++h)
        if (reads[h])
          merged[i + h].add(room.sums + h * wide, most[h], total[h], wide, room.out + (i + h) * wide);
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    float* out = s.attended + (tile.row + i / heads) * q_width + (kv * heads + i % heads) * d;
    const float inverse = 1.0f / merged[i].divisor(sinks ? sinks + kv * heads + i % heads : nullptr);
    for (int64_t k = 0; k < d; ++k) out[k] = room.out[i * wide + k] * inverse;
  }
}

// Keys and values of a run that stands apart enter the cache, once its rows have read what they take the place of.
inline void append_run(const Model& m, const Cache& c, const LayerCache& l, const Tile& run, int64_t kv,
                       const Scratch& s, float* memory) {
  const int64_t d = m.head_dim, end = run.run_pos + run.count;
  const Place place(c, l, m, run.seq, kv);
  const auto key = [&](int64_t pos) { return s.key + ((run.run_row + pos - run.run_pos) * m.kv_heads + kv) * d; };
  const auto value = [&](int64_t pos) { return s.value + ((run.run_row + pos - run.run_pos) * m.kv_heads + kv) * d; };
  int64_t from = run.run_pos;
  if (c.bits < kBf16) {
    // Complete blocks become codes, the first one with what of it was committed before.
    const TileRoom room(memory, d);
    for (int64_t b = from / kBlock; b < end / kBlock; ++b) {
      widen_block(m, c, l, place, run, s.key, true, b, kBlock, room.keys);
      widen_block(m, c, l, place, run, s.value, false, b, kBlock, room.values);
      encode_block(m, c, l, place, b, room.keys, room.values);
    }
    if (from < end / kBlock * kBlock) from = end / kBlock * kBlock;
  }
  for (int64_t pos = from; pos < end; ++pos) append(m, c, l, run.seq, kv, pos, key(pos), value(pos));
}

}  // namespace
}  // namespace hasten

// Attention over a cached sequence, and the cache's writes and reads.
//
// Quantized keys are grouped per channel over a block of tokens, values per token over channels (KIVI,
// arXiv 2402.02750, section 3.2). A block of key codes is stored transposed (channel, token), so that the
// scores of a block are sums over channels with the scale folded into the query.
#pragma once

#include <cfloat>
#include <cmath>

#include "prefetch.hpp"
#include "types.hpp"

namespace hasten {
namespace {

constexpr int64_t kPart = 4;  // blocks of keys that one item of work attends to
constexpr int kMostHeads = 4;  // query heads that share a read of the keys
constexpr int64_t kMostWide = 256;  // channels of a head that are merged at once

HASTEN_INLINE int64_t quantized_blocks(const Cache& c, int64_t committed) {
  return c.bits >= kBf16 ? 0 : committed / c.block;
}

// Where the blocks of (sequence, kv head) stand: the first token of its range, and a block's place within it.
struct Place {
  int64_t head, tokens;
  const LayerCache& layer;
  const int32_t* table;
  Place(const Cache& c, const LayerCache& l, const Model& m, int64_t seq, int64_t kv)
      : head(seq * m.kv_heads + kv),
        tokens((c.tables ? kv : head) * l.blocks * c.block),
        layer(l),
        table(c.tables ? c.tables + seq * c.table_blocks : nullptr) {}
  int64_t slot(int64_t b) const { return table ? table[b] : layer.slot(b); }
};

// The blocks that the row at `pos` reads: the sinks' and the window's, all, or a list of chosen ones. They are read in
// parts of kPart blocks; without a list a part begins at a multiple of kPart, so that rows of one sequence share parts.
struct View {
  int64_t pos, low, sinks, sink_end, first, last, sink_parts, shared;
  int64_t floor = 0;  // sinks before it are not seen: they lie behind the layer's own window
  int64_t listed = 0;
  const int32_t* list = nullptr;
  // From here on the row's own path stands, scattered over the step's rows: first the root, at tree_from, then its
  // other tokens, each at tree_from + 1 plus the place of the next set bit of `mask`. Reading the path as a chain keeps
  // every sum as it would be without the tree.
  int64_t tree_from = INT64_MAX;
  uint64_t mask = 0;

  int64_t place(int64_t token) const {
    if (token <= tree_from) return token;
    uint64_t left = mask;
    for (int64_t i = tree_from + 1; i < token; ++i) left &= left - 1;
    return tree_from + 1 + __builtin_ctzll(left);
  }

  View(const Cache& c, const LayerCache& l, int64_t at, const int32_t* chosen) : pos(at) {
    low = l.window && pos + 1 > l.window ? pos + 1 - l.window : 0;
    sinks = l.sinks < low ? l.sinks : low;
    if (l.own_window && pos + 1 > l.own_window) {
      floor = pos + 1 - l.own_window;
      if (floor > low) low = floor;
      if (floor >= sinks) sinks = 0;
    }
    first = low / c.block;
    last = pos / c.block;
    sink_end = sinks ? (sinks - 1) / c.block + 1 : 0;
    if (sink_end > first) sink_end = first;
    sink_parts = (sink_end + kPart - 1) / kPart;
    shared = first / kPart < sink_parts;
    if (chosen && chosen[0] >= 0) {
      listed = chosen[0];
      list = chosen + 1;
    }
  }
  int64_t parts() const {
    return list ? (listed + kPart - 1) / kPart : sink_parts + last / kPart - first / kPart + 1 - shared;
  }
  bool reads(int64_t b) const { return b < sink_end || (b >= first && b <= last); }
  // The blocks of a part, rising, into found[kPart]; how many they are.
  int64_t blocks(int64_t part, int64_t* found) const {
    int64_t n = 0;
    if (list) {
      for (int64_t i = part * kPart; i < listed && i < (part + 1) * kPart; ++i) found[n++] = list[i];
      return n;
    }
    const int64_t from = (part < sink_parts ? part : first / kPart + part - sink_parts + shared) * kPart;
    for (int64_t b = from; b < from + kPart; ++b)
      if (reads(b)) found[n++] = b;
    return n;
  }
  // Scores of block b's tokens that the row does not see are the least there are.
  void hide(int64_t b, float* scores) const {
    const int64_t base = b * kBlock;
    for (int64_t t = pos - base + 1 > 0 ? pos - base + 1 : 0; t < kBlock; ++t) scores[t] = -FLT_MAX;
    for (int64_t t = sinks - base > 0 ? sinks - base : 0; t < low - base && t < kBlock; ++t) scores[t] = -FLT_MAX;
    for (int64_t t = 0; sinks && t < floor - base && t < kBlock; ++t) scores[t] = -FLT_MAX;
  }
};

// Stored as IEEE half; plain uint16_t is bf16.
struct Half {
  uint16_t bits;
};

// Bytes of a number of a cache that is not codes.
HASTEN_INLINE int64_t plain_bytes(const Cache& c) { return c.bits == kFp32 ? 4 : 2; }

HASTEN_INLINE vec load_key(const float* p) { return load(p); }
HASTEN_INLINE vec load_key(const uint16_t* p) { return load_bf16(p); }
HASTEN_INLINE vec load_key(const Half* p) { return load_fp16(&p->bits); }
// The first `count` <= 16 numbers, zeros behind.
HASTEN_INLINE vec load_key_part(const float* p, int64_t count) { return load_part(p, count); }
HASTEN_INLINE vec load_key_part(const uint16_t* p, int64_t count) { return load_part(p, count); }
HASTEN_INLINE vec load_key_part(const Half* p, int64_t count) {
  if (count >= kLanes) return load_fp16(&p->bits);
  uint16_t f[kLanes] = {};
  std::memcpy(f, p, size_t(count) * sizeof(uint16_t));
  return load_fp16(f);
}
HASTEN_INLINE float one_key(const float* p) { return *p; }
HASTEN_INLINE float one_key(const uint16_t* p) { return from_bf16(*p); }
HASTEN_INLINE float one_key(const Half* p) { return from_fp16(p->bits); }
HASTEN_INLINE float one_plain(const Cache& c, const void* row, int64_t i) {
  if (c.bits == kFp32) return one_key(static_cast<const float*>(row) + i);
  return c.bits == kBf16 ? one_key(static_cast<const uint16_t*>(row) + i) : one_key(static_cast<const Half*>(row) + i);
}

// Scores of 32 stored keys with Heads queries, `step` floats apart in q and 128 apart in s. Keys and values are read in
// turn, in pieces too short for the processor to see them coming: meanwhile the values that these scores weigh are asked
// for, and the keys that mostly stand behind these.
template <int Heads, class T>
HASTEN_INLINE void score_plain(const T* keys, const T* values, const float* q, int64_t d, float* s) {
  const int64_t whole = d / kLanes * kLanes;
  for (int64_t t = 0; t < kBlock; t += 4) {
    ask_memory(values + t * d, 4 * d * int64_t(sizeof(T)));
    ask_memory(keys + (kBlock + t) * d, 4 * d * int64_t(sizeof(T)));
    vec total[Heads][4];
    for (int h = 0; h < Heads; ++h)
      for (int u = 0; u < 4; ++u) total[h][u] = zero();
    for (int64_t i = 0; i < whole; i += kLanes) {
      vec key[4];
      for (int u = 0; u < 4; ++u) key[u] = load_key(keys + (t + u) * d + i);
      for (int h = 0; h < Heads; ++h) {
        const vec query = load(q + h * d + i);
        for (int u = 0; u < 4; ++u) total[h][u] = fma(query, key[u], total[h][u]);
      }
    }
    if (whole < d) {
      vec key[4];
      for (int u = 0; u < 4; ++u) key[u] = load_key_part(keys + (t + u) * d + whole, d - whole);
      for (int h = 0; h < Heads; ++h) {
        const vec query = load_part(q + h * d + whole, d - whole);
        for (int u = 0; u < 4; ++u) total[h][u] = fma(query, key[u], total[h][u]);
      }
    }
    for (int h = 0; h < Heads; ++h)
      sum4(s + h * kPart * kBlock + t, total[h][0], total[h][1], total[h][2], total[h][3]);
  }
}

template <int Heads>
HASTEN_INLINE void score_int8(const int8_t* codes, const uint16_t* scales, const float* q, int64_t d, float* s) {
  vec first[Heads], second[Heads];
  for (int h = 0; h < Heads; ++h) first[h] = second[h] = zero();
  for (int64_t i = 0; i < d; ++i) {
    const vec a = load_int8(codes + i * kBlock), b = load_int8(codes + i * kBlock + kLanes), scale = broadcast_fp16(scales[i]);
    for (int h = 0; h < Heads; ++h) {
      const vec w = mul(broadcast(q[h * d + i]), scale);
      first[h] = fma(a, w, first[h]);
      second[h] = fma(b, w, second[h]);
    }
  }
  for (int h = 0; h < Heads; ++h) {
    store(s + h * kPart * kBlock, first[h]);
    store(s + h * kPart * kBlock + kLanes, second[h]);
  }
}

template <int Heads>
HASTEN_INLINE void score_int4(const uint8_t* codes, const uint16_t* scales, const uint16_t* mins, const float* q,
                              int64_t d, float* s) {
  vec first[Heads], second[Heads], offset[Heads];
  for (int h = 0; h < Heads; ++h) first[h] = second[h] = offset[h] = zero();
  for (int64_t i = 0; i < d; ++i) {
    vec a, b;
    load_int4(codes + i * 16, a, b);
    const vec scale = broadcast_fp16(scales[i]), min = broadcast_fp16(mins[i]);
    for (int h = 0; h < Heads; ++h) {
      const vec query = broadcast(q[h * d + i]), w = mul(query, scale);
      offset[h] = fma(query, min, offset[h]);
      first[h] = fma(a, w, first[h]);
      second[h] = fma(b, w, second[h]);
    }
  }
  for (int h = 0; h < Heads; ++h) {
    store(s + h * kPart * kBlock, add(first[h], offset[h]));
    store(s + h * kPart * kBlock + kLanes, add(second[h], offset[h]));
  }
}

// Values of one token's channels 32 g to 32 g + 31.
template <class T>
HASTEN_INLINE void value_pair(const T* p, vec& a, vec& b) {
  a = load_key(p);
  b = load_key(p + kLanes);
}

// Bends a block's scores to lie within the model's bound, where it has one.
HASTEN_INLINE void cap_scores(const Model& m, float* scores) {
  if (m.score_cap <= 0) return;
  const vec most = broadcast(m.score_cap), inverse = broadcast(1 / m.score_cap);
  for (int64_t t = 0; t < kBlock; t += kLanes) store(scores + t, mul(most, tanh(mul(load(scores + t), inverse))));
}

// The exponentials of n scores above the largest, in their place; the largest and their sum.
HASTEN_INLINE void soften(float* s, int64_t n, float& most, float& sum_of_all) {
  vec best = load(s);
  for (int64_t t = kLanes; t < n; t += kLanes) best = max(best, load(s + t));
  alignas(64) float lanes[kLanes];
  store(lanes, best);
  most = lanes[0];
  for (int i = 1; i < kLanes; ++i) most = lanes[i] > most ? lanes[i] : most;
  vec total = zero();
  for (int64_t t = 0; t < n; t += kLanes) {
    // Nothing at all for hidden ones: exp alone gives no less than the smallest number.
    const vec score = load(s + t);
    const vec weight = where_less(score, broadcast(-FLT_MAX / 2), zero(), exp(sub(score, broadcast(most))));
    store(s + t, weight);
    total = add(total, weight);
  }
  sum_of_all = sum(total);
}

// Weighted sums of values in channels from `from` on, beyond whole groups of 32; such heads have plain caches.
inline void gather_rest(const Cache& c, const void* const* value_rows, const int64_t* tokens, int64_t count,
                        const float* weights, int64_t d, int64_t from, float* out) {
  for (int64_t i = from; i < d; i += kLanes) {
    const int64_t left = d - i < kLanes ? d - i : kLanes;
    vec total = zero();
    for (int64_t j = 0; j < count; ++j)
      for (int64_t t = 0; t < tokens[j]; ++t) {
        const int64_t at = t * d + i;
        const vec value = c.bits == kBf16   ? load_part(static_cast<const uint16_t*>(value_rows[j]) + at, left)
                          : c.bits == kFp16 ? load_key_part(static_cast<const Half*>(value_rows[j]) + at, left)
                                            : load_part(static_cast<const float*>(value_rows[j]) + at, left);
        total = fma(value, broadcast(weights[j * kBlock + t]), total);
      }
    store_part(out + i, total, left);
  }
}

// Partial attention of Heads queries over the `count` blocks of a view's part: unnormalized sums of values, the
// largest score and the sum of weights, at out[h * stride] (head_dim, then 2).
template <int Heads>
HASTEN_INLINE void attend_part(const Model& m, const Cache& c, const LayerCache& l, const Place& place, const View& view,
                               const int64_t* blocks, int64_t count, int64_t quantized, const float* q, float* out,
                               int64_t stride) {
  const int64_t d = m.head_dim, block = c.block, groups = d / kBlock;
  alignas(64) float s[kMostHeads][kPart * kBlock];
  const float* recent_keys = l.recent_keys ? l.recent_keys + place.head * c.recent * d : nullptr;
  const float* recent_values = l.recent_values ? l.recent_values + place.head * c.recent * d : nullptr;
  int64_t base[kPart], at[kPart], tokens[kPart];
  const void *key_rows[kPart], *value_rows[kPart];  // of blocks that are not codes
  // Copies of the blocks that a tree's path reaches into: a path is no longer than a step's rows, which may begin
  // within a block and end within another.
  constexpr int64_t kCopied = (kMostTreeRows + 2 * kBlock - 2) / kBlock;
  alignas(64) float copied[kCopied][2][kBlock * kMostTreeChannels];
  int64_t copies = 0;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t b = blocks[j];
    base[j] = b * block;
    at[j] = place.tokens + place.slot(b) * block;
    tokens[j] = view.pos - base[j] + 1 < block ? view.pos - base[j] + 1 : block;
    float* to = &s[0][j * kBlock];
    if (c.bits >= kBf16) {
      const int64_t bytes = at[j] * d * plain_bytes(c);
      key_rows[j] = static_cast<const char*>(l.keys) + bytes;
      value_rows[j] = static_cast<const char*>(l.values) + bytes;
    } else if (b >= quantized) {
      key_rows[j] = recent_keys + base[j] % c.recent * d;
      value_rows[j] = recent_values + base[j] % c.recent * d;
    }
    if (base[j] + tokens[j] > view.tree_from && copies < kCopied) {
      const int64_t size = d * (c.bits < kBf16 ? 4 : plain_bytes(c));
      char* targets[2] = {reinterpret_cast<char*>(copied[copies][0]), reinterpret_cast<char*>(copied[copies][1])};
      for (int64_t t = 0; t < tokens[j]; ++t) {
        const int64_t from = view.place(base[j] + t);
        const void* sources[2] = {l.keys, l.values};
        int64_t token = place.tokens + place.slot(from / block) * block + from % block;
        if (c.bits < kBf16) {
          sources[0] = recent_keys;
          sources[1] = recent_values;
          token = from % c.recent;
        }
        for (int w = 0; w < 2; ++w)
          std::memcpy(targets[w] + t * size, static_cast<const char*>(sources[w]) + token * size, size_t(size));
      }
      std::memset(targets[0] + tokens[j] * size, 0, size_t((kBlock - tokens[j]) * size));
      key_rows[j] = targets[0];
      value_rows[j] = targets[1];
      ++copies;
    }
    const auto plain = [&](auto type) HASTEN_LAMBDA {
      using T = decltype(type);
      score_plain<Heads>(static_cast<const T*>(key_rows[j]), static_cast<const T*>(value_rows[j]), q, d, to);
    };
    if (c.bits == kBf16)
      plain(uint16_t());
    else if (c.bits == kFp16)
      plain(Half());
    else if (c.bits == kFp32 || b >= quantized)
      plain(float());
    else if (c.bits == kInt8)
      score_int8<Heads>(static_cast<const int8_t*>(l.keys) + at[j] * d, l.key_scales + at[j] / block * d, q, d, to);
    else
      score_int4<Heads>(static_cast<const uint8_t*>(l.keys) + at[j] * d / 2, l.key_scales + at[j] / block * d,
                        l.key_mins + at[j] / block * d, q, d, to);
    for (int h = 0; h < Heads; ++h) {
      cap_scores(m, &s[h][j * kBlock]);
      view.hide(b, &s[h][j * kBlock]);
    }
  }
  for (int h = 0; h < Heads; ++h) soften(s[h], count * kBlock, out[h * stride + d], out[h * stride + d + 1]);
  for (int64_t g = 0; g < groups; ++g) {
    vec first[Heads], second[Heads];
    for (int h = 0; h < Heads; ++h) first[h] = second[h] = zero();
    for (int64_t j = 0; j < count; ++j) {
      const auto gather = [&](int64_t t, vec a, vec b) HASTEN_LAMBDA {
        for (int h = 0; h < Heads; ++h) {
          const vec w = broadcast(s[h][j * kBlock + t]);
          first[h] = fma(a, w, first[h]);
          second[h] = fma(b, w, second[h]);
        }
      };
      vec a, b;
      const auto gather_plain = [&](const auto* values) HASTEN_LAMBDA {
        for (int64_t t = 0; t < tokens[j]; ++t) {
          value_pair(values + t * d, a, b);
          gather(t, a, b);
        }
      };
      if (c.bits == kBf16) {
        gather_plain(static_cast<const uint16_t*>(value_rows[j]) + g * kBlock);
      } else if (c.bits == kFp16) {
        gather_plain(static_cast<const Half*>(value_rows[j]) + g * kBlock);
      } else if (c.bits == kFp32 || base[j] / block >= quantized) {
        gather_plain(static_cast<const float*>(value_rows[j]) + g * kBlock);
      } else if (c.bits == kInt8) {
        const int8_t* codes = static_cast<const int8_t*>(l.values) + at[j] * d + g * kBlock;
        for (int64_t t = 0; t < tokens[j]; ++t) {
          const vec scale = broadcast_fp16(l.value_scales[(at[j] + t) * groups + g]);
          gather(t, mul(load_int8(codes + t * d), scale), mul(load_int8(codes + t * d + kLanes), scale));
        }
      } else {
        const uint8_t* codes = static_cast<const uint8_t*>(l.values) + (at[j] * d + g * kBlock) / 2;
        for (int64_t t = 0; t < tokens[j]; ++t) {
          const vec scale = broadcast_fp16(l.value_scales[(at[j] + t) * groups + g]);
          const vec low = broadcast_fp16(l.value_mins[(at[j] + t) * groups + g]);
          load_int4(codes + t * d / 2, a, b);
          gather(t, fma(a, scale, low), fma(b, scale, low));
        }
      }
    }
    for (int h = 0; h < Heads; ++h) {
      store(out + h * stride + g * kBlock, first[h]);
      store(out + h * stride + g * kBlock + kLanes, second[h]);
    }
  }
  for (int h = 0; h < Heads && groups * kBlock < d; ++h)
    gather_rest(c, value_rows, tokens, count, s[h], d, groups * kBlock, out + h * stride);
}

// Part `part` of what the `heads` query heads of one kv head read; q is (heads, head_dim), already scaled.
inline void attend(const Model& m, const Cache& c, const LayerCache& l, int64_t seq, int64_t kv, const View& view,
                   int64_t part, int64_t committed, const float* q, int64_t heads, float* out, int64_t stride) {
  const Place place(c, l, m, seq, kv);
  int64_t blocks[kPart];
  const int64_t count = view.blocks(part, blocks), quantized = quantized_blocks(c, committed);
  for (; heads > 0; heads -= kMostHeads, q += kMostHeads * m.head_dim, out += kMostHeads * stride) switch (heads) {
      case 1: attend_part<1>(m, c, l, place, view, blocks, count, quantized, q, out, stride); break;
      case 2: attend_part<2>(m, c, l, place, view, blocks, count, quantized, q, out, stride); break;
      case 3: attend_part<3>(m, c, l, place, view, blocks, count, quantized, q, out, stride); break;
      default: attend_part<4>(m, c, l, place, view, blocks, count, quantized, q, out, stride);
    }
}

// Attention over some parts of the keys as it is known so far: unnormalized sums, the largest score, the sum of weights.
struct Merged {
  float most = -FLT_MAX, total = 0;

  // Adds a part's (width values at multiples of 16, those behind head_dim without meaning). In this order whatever else
  // is computed beside it: a row's attention is the same alone and in a prompt.
  HASTEN_INLINE_METHOD void add(const float* part, float part_most, float part_total, int64_t width, float* out) {
    const float now = part_most > most ? part_most : most;
    const float kept = std::exp(most - now), weight = std::exp(part_most - now);
    total = std::fma(weight, part_total, total * kept);
    for (int64_t i = 0; i < width; i += kLanes)
      store(out + i, fma(broadcast(weight), load(part + i), mul(broadcast(kept), load(out + i))));
    most = now;
  }
  // What sums are divided by; `sink` is a further score without a value, or null.
  HASTEN_INLINE_METHOD float divisor(const float* sink) const { return sink ? total + std::exp(*sink - most) : total; }
};

// One head's parts, each (head_dim, largest score, sum of weights) at `width` floats, as its attention.
inline void combine(const float* parts, int64_t count, int64_t width, int64_t d, const float* sink, float* out) {
  alignas(64) float sums[kMostWide];
  const int64_t padded = (d + kLanes - 1) / kLanes * kLanes;
  for (int64_t from = 0; from < padded; from += kMostWide) {
    const int64_t some = padded - from < kMostWide ? padded - from : kMostWide;
    Merged merged;
    std::memset(sums, 0, sizeof sums);
    for (int64_t p = 0; p < count; ++p) {
      const float* part = parts + p * width;
      merged.add(part + from, part[d], part[d + 1], some, sums);
    }
    const float inverse = 1.0f / merged.divisor(sink);
    for (int64_t i = 0; i < some && from + i < d; ++i) out[from + i] = sums[i] * inverse;
  }
}

// The mean key of one complete block.
inline void pool_block(const Model& m, const Cache& c, const LayerCache& l, int64_t seq, int64_t kv, int64_t b) {
  const int64_t d = m.head_dim;
  const Place place(c, l, m, seq, kv);
  const int64_t at = place.tokens + place.slot(b) * c.block;
  float* mean = l.pooled + (place.head * l.blocks + l.slot(b)) * d;
  for (int64_t i = 0; i < d; ++i) {
    float total = 0;
    for (int64_t t = 0; t < c.block; ++t) {
      if (c.bits >= kBf16)
        total += one_plain(c, l.keys, (at + t) * d + i);
      else
        total += l.recent_keys[(place.head * c.recent + (b * c.block + t) % c.recent) * d + i];
    }
    mean[i] = total / float(c.block);
  }
}

// Which blocks the row at `pos` reads: the first, the newest, and of those between the `top` whose mean keys have the
// largest products with the queries, summed over the heads that share the kv head (arXiv 2506.05333). chosen[0] is
// how many, -1 when all; then their numbers, rising. `scores` has room for a float a block.
inline void choose(const Model& m, const Cache& c, const LayerCache& l, int64_t seq, int64_t kv, int64_t pos,
                   const float* q, int64_t heads, int32_t* chosen, float* scores) {
  const int64_t d = m.head_dim, last = pos / c.block, local = last + 1 - c.top_local;
  if (local - 1 <= c.top) {
    chosen[0] = -1;
    return;
  }
  const Place place(c, l, m, seq, kv);
  float* query = scores + (l.blocks + kLanes) / kLanes * kLanes;
  for (int64_t i = 0; i < d; ++i) {
    query[i] = 0;
    for (int64_t h = 0; h < heads; ++h) query[i] += q[h * d + i];
  }
  // The `top` largest so far are a heap, least first, of block numbers in chosen + 2.
  int32_t* heap = chosen + 2;
  int64_t held = 0;
  const auto sink = [&](int64_t i) HASTEN_LAMBDA {
    for (;;) {
      int64_t least = i;
      for (int64_t child = 2 * i + 1; child <= 2 * i + 2 && child < held; ++child)
        if (scores[heap[child]] < scores[heap[least]]) least = child;
      if (least == i) return;
      const int32_t other = heap[i];
      heap[i] = heap[least];
      heap[least] = other;
      i = least;
    }
  };
  for (int64_t b = 1; b < local; ++b) {
    const float* mean = l.pooled + (place.head * l.blocks + b) * d;
    vec total = zero();
    int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) total = fma(load(query + i), load(mean + i), total);
    scores[b] = sum(total);
    for (; i < d; ++i) scores[b] += query[i] * mean[i];
    if (held < c.top) {
      heap[held++] = int32_t(b);
      if (held == c.top)
        for (int64_t k = c.top / 2; k-- > 0;) sink(k);
    } else if (scores[b] > scores[heap[0]]) {
      heap[0] = int32_t(b);
      sink(0);
    }
  }
  const float least = scores[heap[0]];
  int64_t equal = c.top;
  for (int64_t b = 1; b < local; ++b) equal -= scores[b] > least;
  int64_t n = 1;
  chosen[n++] = 0;
  for (int64_t b = 1; b < local; ++b)
    if (scores[b] > least || (scores[b] == least && equal-- > 0)) chosen[n++] = int32_t(b);
  for (int64_t b = local; b <= last; ++b) chosen[n++] = int32_t(b);
  chosen[0] = int32_t(n - 1);
}

// A scale in fp16: a positive one is never 0, so that no small number is lost beside larger ones.
HASTEN_INLINE uint16_t scale_fp16(float scale) {
  const uint16_t half = to_fp16(scale);
  return half == 0 && scale > 0 ? uint16_t(1) : half;
}

// 0, or NaN where one of `count` values `step` apart is not finite: such a group reads as NaN.
HASTEN_INLINE float spoiled(const float* x, int64_t count, int64_t step) {
  float found = 0;
  for (int64_t i = 0; i < count; ++i) found += 0 * x[i * step];
  return found;
}

// Codes of `count` values `step` apart: symmetric int8, or asymmetric int4 with a minimum.
HASTEN_INLINE float scale_int8(const float* x, int64_t count, int64_t step) {
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::fmax(largest, std::fabs(x[i * step]));
  return from_fp16(scale_fp16(largest / 127 + spoiled(x, count, step)));
}

// Cut off before it becomes an integer: a number beyond those has no defined one.
HASTEN_INLINE int round_to(float x, int low, int high) {
  return int(std::nearbyint(x >= float(high) ? float(high) : x > float(low) ? x : float(low)));
}

HASTEN_INLINE void range_int4(const float* x, int64_t count, int64_t step, uint16_t& scale, uint16_t& min) {
  float low = x[0], high = x[0];
  for (int64_t i = 1; i < count; ++i) {
    low = std::fmin(low, x[i * step]);
    high = std::fmax(high, x[i * step]);
  }
  const float wrong = spoiled(x, count, step);
  min = to_fp16(low + wrong);
  scale = scale_fp16((high - from_fp16(min)) / 15 + wrong);
}

// Writes block b's 32 keys and values, (32, head_dim) each, as codes.
inline void encode_block(const Model& m, const Cache& c, const LayerCache& l, const Place& place, int64_t b,
                         const float* keys, const float* values) {
  const int64_t d = m.head_dim, groups = d / kBlock;
  const int64_t at = place.tokens + place.slot(b) * c.block;
  for (int64_t i = 0; i < d; ++i) {
    if (c.bits == kInt8) {
      int8_t* codes = static_cast<int8_t*>(l.keys) + at * d + i * kBlock;
      const float scale = scale_int8(keys + i, kBlock, d);
      l.key_scales[at / kBlock * d + i] = to_fp16(scale);
      const float inverse = scale > 0 ? 1 / scale : 0;
      for (int64_t t = 0; t < kBlock; ++t) codes[t] = int8_t(round_to(keys[t * d + i] * inverse, -127, 127));
    } else {
      uint8_t* codes = static_cast<uint8_t*>(l.keys) + (at * d + i * kBlock) / 2;
      uint16_t scale, min;
      range_int4(keys + i, kBlock, d, scale, min);
      l.key_scales[at / kBlock * d + i] = scale;
      l.key_mins[at / kBlock * d + i] = min;
      const float step = from_fp16(scale), low = from_fp16(min), inverse = step > 0 ? 1 / step : 0;
      for (int64_t t = 0; t < 16; ++t)
        codes[t] = uint8_t(round_to((keys[t * d + i] - low) * inverse, 0, 15) |
                           round_to((keys[(t + 16) * d + i] - low) * inverse, 0, 15) << 4);
    }
  }
  for (int64_t t = 0; t < kBlock; ++t)
    for (int64_t g = 0; g < groups; ++g) {
      const float* x = values + t * d + g * kBlock;
      const int64_t where = (at + t) * groups + g;
      if (c.bits == kInt8) {
        int8_t* codes = static_cast<int8_t*>(l.values) + (at + t) * d + g * kBlock;
        const float scale = scale_int8(x, kBlock, 1);
        l.value_scales[where] = to_fp16(scale);
        const float inverse = scale > 0 ? 1 / scale : 0;
        for (int64_t i = 0; i < kBlock; ++i) codes[i] = int8_t(round_to(x[i] * inverse, -127, 127));
      } else {
        uint8_t* codes = static_cast<uint8_t*>(l.values) + ((at + t) * d + g * kBlock) / 2;
        range_int4(x, kBlock, 1, l.value_scales[where], l.value_mins[where]);
        const float step = from_fp16(l.value_scales[where]), low = from_fp16(l.value_mins[where]);
        const float inverse = step > 0 ? 1 / step : 0;
        for (int64_t i = 0; i < 16; ++i)
          codes[i] = uint8_t(round_to((x[i] - low) * inverse, 0, 15) | round_to((x[i + kBlock / 2] - low) * inverse, 0, 15) << 4);
      }
    }
}

// Moves one complete block of 32 tokens from the recent part into codes.
inline void quantize_block(const Model& m, const Cache& c, const LayerCache& l, int64_t seq, int64_t kv, int64_t b) {
  const Place place(c, l, m, seq, kv);
  const int64_t recent = (place.head * c.recent + b * c.block % c.recent) * m.head_dim;
  encode_block(m, c, l, place, b, l.recent_keys + recent, l.recent_values + recent);
}

// Keys and values of the row at `pos` enter the cache.
inline void append(const Model& m, const Cache& c, const LayerCache& l, int64_t seq, int64_t kv, int64_t pos,
                   const float* key, const float* value) {
  const int64_t d = m.head_dim;
  const Place place(c, l, m, seq, kv);
  if (c.bits < kBf16) {
    const int64_t token = place.head * c.recent + pos % c.recent;
    std::memcpy(l.recent_keys + token * d, key, d * sizeof(float));
    std::memcpy(l.recent_values + token * d, value, d * sizeof(float));
    return;
  }
  const int64_t at = place.tokens + place.slot(pos / c.block) * c.block + pos % c.block;
  if (c.bits == kFp32) {
    std::memcpy(static_cast<float*>(l.keys) + at * d, key, d * sizeof(float));
    std::memcpy(static_cast<float*>(l.values) + at * d, value, d * sizeof(float));
  } else {
    uint16_t* keys = static_cast<uint16_t*>(l.keys) + at * d;
    uint16_t* values = static_cast<uint16_t*>(l.values) + at * d;
    for (int64_t i = 0; i < d; ++i) {
      keys[i] = c.bits == kBf16 ? to_bf16(key[i]) : to_fp16(key[i]);
      values[i] = c.bits == kBf16 ? to_bf16(value[i]) : to_fp16(value[i]);
    }
  }
}

}  // namespace
}  // namespace hasten

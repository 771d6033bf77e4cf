// Attention of one query head over a cached sequence, and the cache's writes and reads.
//
// Quantized keys are grouped per channel over a block of tokens, values per token over channels (KIVI,
// arXiv 2402.02750, section 3.2). A block of key codes is stored transposed (channel, token), so that the
// scores of a block are sums over channels with the scale folded into the query.
#pragma once

#include <cfloat>
#include <cmath>

#include "simd.hpp"
#include "types.hpp"

namespace hasten {
namespace {

HASTEN_INLINE int64_t quantized_blocks(const Cache& c, int64_t committed) {
  return c.bits >= kBf16 ? 0 : committed / c.block;
}

HASTEN_INLINE float dot(const float* a, const float* b, int64_t n) {
  vec first = zero(), second = zero();
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    first = fma(load(a + i), load(b + i), first);
    second = fma(load(a + i + kLanes), load(b + i + kLanes), second);
  }
  for (; i + kLanes <= n; i += kLanes) first = fma(load(a + i), load(b + i), first);
  float total = sum(add(first, second));
  for (; i < n; ++i) total += a[i] * b[i];
  return total;
}

HASTEN_INLINE float dot_bf16(const float* a, const uint16_t* b, int64_t n) {
  vec acc = zero();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) acc = fma(load(a + i), load_bf16(b + i), acc);
  float total = sum(acc);
  for (; i < n; ++i) total += a[i] * from_bf16(b[i]);
  return total;
}

HASTEN_INLINE void accumulate(float* out, const float* v, float weight, int64_t n) {
  const vec w = broadcast(weight);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, fma(load(v + i), w, load(out + i)));
  for (; i < n; ++i) out[i] += weight * v[i];
}

HASTEN_INLINE void accumulate_bf16(float* out, const uint16_t* v, float weight, int64_t n) {
  const vec w = broadcast(weight);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, fma(load_bf16(v + i), w, load(out + i)));
  for (; i < n; ++i) out[i] += weight * from_bf16(v[i]);
}

// Where block b of (sequence, kv head) begins, in tokens of head_dim values.
struct Place {
  int64_t head, tokens;
  Place(const Cache& c, const Model& m, int64_t seq, int64_t kv) : head(seq * m.kv_heads + kv), tokens(0) {
    tokens = head * c.blocks * c.block;
  }
};

// exp for x <= 0: 2^n times a degree-6 polynomial on [-ln2/2, ln2/2]; relative error below 3e-7.
HASTEN_INLINE float fast_exp(float x) {
  if (x < -87.0f) return 0.0f;
  const float n = std::nearbyint(x * 1.44269504f);
  const float r = std::fma(n, -0.693359375f, x) - n * -2.12194440e-4f;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t bits = (int32_t(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

// out (head_dim) = softmax(q K^T) V over what the row at `pos` may see. `q` is already scaled. `scratch`
// holds a score for every visible token of every visited block, then head_dim + block floats.
inline void attend(const Model& m, const Cache& c, const LayerCache& l, int64_t seq, int64_t kv, int64_t pos,
                   int64_t committed, const float* q, float* out, float* scratch) {
  const int64_t d = m.head_dim, block = c.block, last = pos / block;
  const int64_t low = c.window && pos + 1 > c.window ? pos + 1 - c.window : 0;
  const int64_t sinks = c.sinks < low ? c.sinks : low;
  const int64_t quantized = quantized_blocks(c, committed);
  const Place place(c, m, seq, kv);
  const float* recent_keys = l.recent_keys ? l.recent_keys + place.head * c.recent * d : nullptr;
  const float* recent_values = l.recent_values ? l.recent_values + place.head * c.recent * d : nullptr;
  const int64_t groups = d / 32;

  float* scores = scratch;
  float best = -FLT_MAX;
  const int64_t first_window_block = low / block;
  const int64_t sink_end = sinks ? (sinks - 1) / block + 1 : 0;

  float* s = scores;
  for (int64_t b = 0; b <= last; ++b) {
    if (b >= sink_end && b < first_window_block) b = first_window_block;
    const int64_t base = b * block;
    const int64_t count = pos - base + 1 < block ? pos - base + 1 : block;
    const int64_t at = place.tokens + c.slot(b) * block;
    if (c.bits == kFp32) {
      const float* keys = static_cast<const float*>(l.keys) + at * d;
      for (int64_t t = 0; t < count; ++t) s[t] = dot(q, keys + t * d, d);
    } else if (c.bits == kBf16) {
      const uint16_t* keys = static_cast<const uint16_t*>(l.keys) + at * d;
      for (int64_t t = 0; t < count; ++t) s[t] = dot_bf16(q, keys + t * d, d);
    } else if (b >= quantized) {
      const float* keys = recent_keys + base % c.recent * d;
      for (int64_t t = 0; t < count; ++t) s[t] = dot(q, keys + t * d, d);
    } else {
      // block == 32: two vectors of scores
      const uint16_t* scales = l.key_scales + at / block * d;
      vec first = zero(), second = zero();
      if (c.bits == kInt8) {
        const int8_t* codes = static_cast<const int8_t*>(l.keys) + at * d;
        for (int64_t i = 0; i < d; ++i) {
          const vec w = mul(broadcast(q[i]), broadcast_fp16(scales[i]));
          first = fma(load_int8(codes + i * 32), w, first);
          second = fma(load_int8(codes + i * 32 + kLanes), w, second);
        }
      } else {
        const uint8_t* codes = static_cast<const uint8_t*>(l.keys) + at * d / 2;
        const uint16_t* mins = l.key_mins + at / block * d;
        vec offset = zero();
        for (int64_t i = 0; i < d; ++i) {
          const vec query = broadcast(q[i]);
          const vec w = mul(query, broadcast_fp16(scales[i]));
          offset = fma(query, broadcast_fp16(mins[i]), offset);
          vec a, z;
          load_int4(codes + i * 16, a, z);
          first = fma(a, w, first);
          second = fma(z, w, second);
        }
        first = add(first, offset);
        second = add(second, offset);
      }
      store(s, first);
      store(s + kLanes, second);
    }
    for (int64_t t = 0; t < count; ++t) {
      if (base + t >= sinks && base + t < low) s[t] = -FLT_MAX;
      if (s[t] > best) best = s[t];
    }
    s += block;
  }

  float total = 0;
  for (int64_t i = 0; i < d; ++i) out[i] = 0;
  s = scores;
  for (int64_t b = 0; b <= last; ++b) {
    if (b >= sink_end && b < first_window_block) b = first_window_block;
    const int64_t base = b * block;
    const int64_t count = pos - base + 1 < block ? pos - base + 1 : block;
    const int64_t at = place.tokens + c.slot(b) * block;
    float sum_of_block = 0;
    for (int64_t t = 0; t < count; ++t) {
      s[t] = s[t] == -FLT_MAX ? 0.0f : fast_exp(s[t] - best);
      sum_of_block += s[t];
    }
    total += sum_of_block;
    if (c.bits == kFp32) {
      const float* values = static_cast<const float*>(l.values) + at * d;
      for (int64_t t = 0; t < count; ++t) accumulate(out, values + t * d, s[t], d);
    } else if (c.bits == kBf16) {
      const uint16_t* values = static_cast<const uint16_t*>(l.values) + at * d;
      for (int64_t t = 0; t < count; ++t) accumulate_bf16(out, values + t * d, s[t], d);
    } else if (b >= quantized) {
      const float* values = recent_values + base % c.recent * d;
      for (int64_t t = 0; t < count; ++t) accumulate(out, values + t * d, s[t], d);
    } else if (c.bits == kInt8) {
      const int8_t* codes = static_cast<const int8_t*>(l.values) + at * d;
      const uint16_t* scales = l.value_scales + at * groups;
      for (int64_t t = 0; t < count; ++t)
        for (int64_t g = 0; g < groups; ++g) {
          const vec w = mul(broadcast(s[t]), broadcast_fp16(scales[t * groups + g]));
          float* o = out + g * 32;
          store(o, fma(load_int8(codes + t * d + g * 32), w, load(o)));
          store(o + kLanes, fma(load_int8(codes + t * d + g * 32 + kLanes), w, load(o + kLanes)));
        }
    } else {
      const uint8_t* codes = static_cast<const uint8_t*>(l.values) + at * d / 2;
      const uint16_t* scales = l.value_scales + at * groups;
      const uint16_t* mins = l.value_mins + at * groups;
      for (int64_t t = 0; t < count; ++t)
        for (int64_t g = 0; g < groups; ++g) {
          const vec p = broadcast(s[t]);
          const vec w = mul(p, broadcast_fp16(scales[t * groups + g]));
          const vec offset = mul(p, broadcast_fp16(mins[t * groups + g]));
          vec a, z;
          load_int4(codes + (t * d + g * 32) / 2, a, z);
          float* o = out + g * 32;
          store(o, add(fma(a, w, offset), load(o)));
          store(o + kLanes, add(fma(z, w, offset), load(o + kLanes)));
        }
    }
    s += block;
  }
  const float inverse = 1.0f / total;
  for (int64_t i = 0; i < d; ++i) out[i] *= inverse;
}

// Codes of `count` values `step` apart: symmetric int8, or asymmetric int4 with a minimum.
HASTEN_INLINE float scale_int8(const float* x, int64_t count, int64_t step) {
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::fmax(largest, std::fabs(x[i * step]));
  return from_fp16(to_fp16(largest / 127));
}

HASTEN_INLINE int round_to(float x, int low, int high) {
  const int code = int(std::nearbyint(x));
  return code < low ? low : code > high ? high : code;
}

HASTEN_INLINE void range_int4(const float* x, int64_t count, int64_t step, uint16_t& scale, uint16_t& min) {
  float low = x[0], high = x[0];
  for (int64_t i = 1; i < count; ++i) {
    low = std::fmin(low, x[i * step]);
    high = std::fmax(high, x[i * step]);
  }
  min = to_fp16(low);
  scale = to_fp16((high - from_fp16(min)) / 15);
}

// Moves one complete block of 32 tokens from the recent part into codes.
inline void quantize_block(const Model& m, const Cache& c, const LayerCache& l, int64_t seq, int64_t kv, int64_t b) {
  const int64_t d = m.head_dim, groups = d / 32;
  const Place place(c, m, seq, kv);
  const int64_t at = place.tokens + c.slot(b) * c.block;
  const int64_t recent = place.head * c.recent + b * c.block % c.recent;
  const float* keys = l.recent_keys + recent * d;
  const float* values = l.recent_values + recent * d;
  for (int64_t i = 0; i < d; ++i) {
    if (c.bits == kInt8) {
      int8_t* codes = static_cast<int8_t*>(l.keys) + at * d + i * 32;
      const float scale = scale_int8(keys + i, 32, d);
      l.key_scales[at / 32 * d + i] = to_fp16(scale);
      const float inverse = scale > 0 ? 1 / scale : 0;
      for (int64_t t = 0; t < 32; ++t) codes[t] = int8_t(round_to(keys[t * d + i] * inverse, -127, 127));
    } else {
      uint8_t* codes = static_cast<uint8_t*>(l.keys) + (at * d + i * 32) / 2;
      uint16_t scale, min;
      range_int4(keys + i, 32, d, scale, min);
      l.key_scales[at / 32 * d + i] = scale;
      l.key_mins[at / 32 * d + i] = min;
      const float step = from_fp16(scale), low = from_fp16(min), inverse = step > 0 ? 1 / step : 0;
      for (int64_t t = 0; t < 16; ++t)
        codes[t] = uint8_t(round_to((keys[t * d + i] - low) * inverse, 0, 15) |
                           round_to((keys[(t + 16) * d + i] - low) * inverse, 0, 15) << 4);
    }
  }
  for (int64_t t = 0; t < 32; ++t)
    for (int64_t g = 0; g < groups; ++g) {
      const float* x = values + t * d + g * 32;
      const int64_t where = (at + t) * groups + g;
      if (c.bits == kInt8) {
        int8_t* codes = static_cast<int8_t*>(l.values) + (at + t) * d + g * 32;
        const float scale = scale_int8(x, 32, 1);
        l.value_scales[where] = to_fp16(scale);
        const float inverse = scale > 0 ? 1 / scale : 0;
        for (int64_t i = 0; i < 32; ++i) codes[i] = int8_t(round_to(x[i] * inverse, -127, 127));
      } else {
        uint8_t* codes = static_cast<uint8_t*>(l.values) + ((at + t) * d + g * 32) / 2;
        range_int4(x, 32, 1, l.value_scales[where], l.value_mins[where]);
        const float step = from_fp16(l.value_scales[where]), low = from_fp16(l.value_mins[where]);
        const float inverse = step > 0 ? 1 / step : 0;
        for (int64_t i = 0; i < 16; ++i)
          codes[i] = uint8_t(round_to((x[i] - low) * inverse, 0, 15) | round_to((x[i + 16] - low) * inverse, 0, 15) << 4);
      }
    }
}

// Keys and values of the row at `pos` enter the cache.
inline void append(const Model& m, const Cache& c, const LayerCache& l, int64_t seq, int64_t kv, int64_t pos,
                   const float* key, const float* value) {
  const int64_t d = m.head_dim;
  const Place place(c, m, seq, kv);
  if (c.bits < kBf16) {
    const int64_t token = place.head * c.recent + pos % c.recent;
    std::memcpy(l.recent_keys + token * d, key, d * sizeof(float));
    std::memcpy(l.recent_values + token * d, value, d * sizeof(float));
    return;
  }
  const int64_t at = place.tokens + c.slot(pos / c.block) * c.block + pos % c.block;
  if (c.bits == kFp32) {
    std::memcpy(static_cast<float*>(l.keys) + at * d, key, d * sizeof(float));
    std::memcpy(static_cast<float*>(l.values) + at * d, value, d * sizeof(float));
  } else {
    uint16_t* keys = static_cast<uint16_t*>(l.keys) + at * d;
    uint16_t* values = static_cast<uint16_t*>(l.values) + at * d;
    for (int64_t i = 0; i < d; ++i) {
      keys[i] = to_bf16(key[i]);
      values[i] = to_bf16(value[i]);
    }
  }
}

}  // namespace
}  // namespace hasten

// y = x W^T + b with x rounded to int8 in groups of 32 and W in int8 or int4: products of whole numbers, summed
// exactly within a group by the processor's byte dot products, then scaled.
//
// With w = s_w q_w + m_w and x = s_x q_x a group gives s_w s_x sum(q_w q_x) + m_w s_x sum(q_x).
#pragma once

#include "linear.hpp"

namespace hasten {
namespace {

// Values 32 g to 32 g + 31 of one row, and what `Codes` keeps of them.
HASTEN_INLINE void encode_group(const float* x, const Codes& to, int64_t row, int64_t g) {
  const vec a = load(x + kGroup * g), b = load(x + kGroup * g + kLanes);
  alignas(64) float largest[kLanes];
  store(largest, max(abs(a), abs(b)));
  float most = 0;
  for (int i = 0; i < kLanes; ++i) most = largest[i] > most ? largest[i] : most;
  // Not a number where a value is not finite: a maximum alone would pass over it.
  const float scale = most / 127 + sum(add(mul(a, zero()), mul(b, zero())));
  const vec inverse = broadcast(scale > 0 ? 127 / most : 0.0f);
  const vec first = round(mul(a, inverse)), second = round(mul(b, inverse));
  int8_t* codes = to.codes + row * to.width + kGroup * g;
  store_int8(codes, first);
  store_int8(codes + kLanes, second);
  to.scales[row * (to.width / kGroup) + g] = scale;
  to.sums[row * (to.width / kGroup) + g] = scale * sum(add(first, second));
}

HASTEN_INLINE void encode_row(const float* x, const Codes& to, int64_t row, int64_t in) {
  for (int64_t g = 0; g < in / kGroup; ++g) encode_group(x, to, row, g);
}

// One vector of products: 64 bytes of a row of W against the rows of x. Part `part` of sixteen groups' scales.
template <int Bits, int Rows>
HASTEN_INLINE void add_part(const uint8_t* codes, int64_t bytes, const int8_t* x, int64_t width, const vec* scale,
                            int part, vec* total) {
  if constexpr (Bits == kInt4) {
    const nibbles w = load_nibbles(codes, bytes);
#pragma GCC unroll 4
    for (int t = 0; t < Rows; ++t)
      total[t] = fma(dot_nibbles(w, x + t * width + part * 128), spread<4>(scale[t], part), total[t]);
  } else {
    const signed_bytes w = load_signed(reinterpret_cast<const int8_t*>(codes), bytes);
#pragma GCC unroll 4
    for (int t = 0; t < Rows; ++t)
      total[t] = fma(dot_signed(w, x + t * width + part * 64), spread<8>(scale[t], part), total[t]);
  }
}

template <int Bits, int Outs, int Rows>
HASTEN_INLINE void multiply_codes_block(const Matrix& m, const Codes& x, int64_t row, float* y, int64_t ldy, int64_t n) {
  constexpr int kParts = Bits == kInt4 ? 4 : 8, kGroups = 16 / kParts, kGroupBytes = Bits == kInt4 ? kGroup / 2 : kGroup;
  const int64_t groups = m.in / kGroup, bytes = groups * kGroupBytes;
  vec total[Outs][Rows];
#pragma GCC unroll 4
  for (int o = 0; o < Outs; ++o)
#pragma GCC unroll 4
    for (int t = 0; t < Rows; ++t) total[o][t] = zero();
  for (int64_t g = 0; g < groups; g += 16) {
    const int64_t left = groups - g;
    const int8_t* values = x.codes + row * x.width + kGroup * g;
#pragma GCC unroll 4
    for (int o = 0; o < Outs; ++o) {
      const uint8_t* codes = static_cast<const uint8_t*>(m.codes) + (n + o) * bytes + g * kGroupBytes;
      const vec w = load_fp16_part(m.scales + (n + o) * groups + g, left);
      vec scale[Rows];
#pragma GCC unroll 4
      for (int t = 0; t < Rows; ++t) scale[t] = mul(w, load(x.scales + (row + t) * (x.width / kGroup) + g));
      if constexpr (Bits == kInt4) {
        const vec low = load_fp16_part(m.mins + (n + o) * groups + g, left);
#pragma GCC unroll 4
        for (int t = 0; t < Rows; ++t)
          total[o][t] = fma(low, load(x.sums + (row + t) * (x.width / kGroup) + g), total[o][t]);
      }
      if (left >= 16) {
#pragma GCC unroll 8
        for (int part = 0; part < kParts; ++part)
          add_part<Bits, Rows>(codes + 64 * part, 64, values, x.width, scale, part, total[o]);
      } else {
        for (int part = 0; part * kGroups < left; ++part)
          add_part<Bits, Rows>(codes + 64 * part, left * kGroupBytes - 64 * part, values, x.width, scale, part,
                               total[o]);
      }
    }
  }
#pragma GCC unroll 4
  for (int o = 0; o < Outs; ++o) {
    const float bias = m.bias ? m.bias[n + o] : 0.0f;
#pragma GCC unroll 4
    for (int t = 0; t < Rows; ++t) y[t * ldy + n + o] = sum(total[o][t]) + bias;
  }
}

template <int Bits, int Rows>
HASTEN_INLINE void multiply_codes_rows(const Matrix& m, const Codes& x, int64_t row, float* y, int64_t ldy, int64_t n0,
                                       int64_t n1) {
  // One row of W at a time: it streams from memory faster than several side by side.
  for (int64_t n = n0; n < n1; ++n) multiply_codes_block<Bits, 1, Rows>(m, x, row, y, ldy, n);
}

template <int Bits>
HASTEN_INLINE void multiply_codes_all(const Matrix& m, const Codes& x, int rows, float* y, int64_t ldy, int64_t n0,
                                      int64_t n1) {
  int row = 0;
  for (; rows - row >= 4; row += 4) multiply_codes_rows<Bits, 4>(m, x, row, y + row * ldy, ldy, n0, n1);
  float* rest = y + row * ldy;
  switch (rows - row) {
    case 1: return multiply_codes_rows<Bits, 1>(m, x, row, rest, ldy, n0, n1);
    case 2: return multiply_codes_rows<Bits, 2>(m, x, row, rest, ldy, n0, n1);
    case 3: return multiply_codes_rows<Bits, 3>(m, x, row, rest, ldy, n0, n1);
    default: return;
  }
}

// Rows [n0, n1) of W times every row of x, for a matrix that takes codes.
inline void multiply_codes(const Matrix& m, const Codes& x, int rows, float* y, int64_t ldy, int64_t n0, int64_t n1) {
  return m.bits == kInt8 ? multiply_codes_all<kInt8>(m, x, rows, y, ldy, n0, n1)
                         : multiply_codes_all<kInt4>(m, x, rows, y, ldy, n0, n1);
}

inline void encode_rows(const float* x, const Codes& to, int64_t in, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) encode_row(x + t * in, to, t, in);
}

// By codes where the matrix takes them, else in floats.
HASTEN_INLINE void multiply_either(const Matrix& m, const float* x, int64_t ldx, const Codes& codes, int rows, float* y,
                                   int64_t ldy, int64_t n0, int64_t n1) {
  if (m.takes_codes())
    multiply_codes(m, codes, rows, y, ldy, n0, n1);
  else
    multiply(m, x, ldx, rows, y, ldy, n0, n1);
}

}  // namespace
}  // namespace hasten

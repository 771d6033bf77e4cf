// y = x W^T + b for a few rows of x, with W in fp32, fp16, bf16, int8 or int4 (group-wise scales).
//
// A weight is unpacked in registers to scale * code + min and used for every row of x before the next one
// is read: at few rows the time is the time to stream W from memory. Each (row of x, row of W) pair is
// summed in the same order whatever the number of rows, so a token's logits do not depend on how many
// tokens were computed beside it: speculative decoding stays exact.
#pragma once

#include "formats.hpp"

namespace hasten {
namespace {

// `Outs` rows of W from n on against `Rows` rows of x: y[t * ldy + n]. Two sums a pair of rows, and several
// pairs at once: one chain of dependent additions would wait four cycles for each.
template <int Bits, int Outs, int Rows>
HASTEN_INLINE void multiply_block(const Matrix& m, const float* x, int64_t ldx, float* y, int64_t ldy, int64_t n) {
  vec first[Outs][Rows], second[Outs][Rows];
  for (int o = 0; o < Outs; ++o)
    for (int t = 0; t < Rows; ++t) first[o][t] = second[o][t] = zero();
  const Row<Bits> row0(m, n), row1(m, n + (Outs > 1 ? 1 : 0)), row2(m, n + (Outs > 2 ? 2 : 0)),
      row3(m, n + (Outs > 3 ? 3 : 0));
  each_pair<Bits>(m, [&](int64_t k, int64_t l, int64_t byte, int64_t g) HASTEN_LAMBDA {
    for (int o = 0; o < Outs; ++o) {
      vec a, b;
      (o == 0 ? row0 : o == 1 ? row1 : o == 2 ? row2 : row3).pair(k, byte, g, a, b);
      for (int t = 0; t < Rows; ++t) {
        first[o][t] = fma(a, load(x + t * ldx + k), first[o][t]);
        second[o][t] = fma(b, load(x + t * ldx + l), second[o][t]);
      }
    }
  });
  for (int o = 0; o < Outs; ++o) {
    const float bias = m.bias ? m.bias[n + o] : 0.0f;
    for (int t = 0; t < Rows; ++t) y[t * ldy + n + o] = sum(add(first[o][t], second[o][t])) + bias;
  }
}

template <int Bits, int Rows>
HASTEN_INLINE void multiply_rows(const Matrix& m, const float* x, int64_t ldx, float* y, int64_t ldy, int64_t n0,
                                 int64_t n1) {
  constexpr int kOuts = Rows == 1 ? 4 : Rows <= 3 ? 2 : 1;
  int64_t n = n0;
  for (; n + kOuts <= n1; n += kOuts) multiply_block<Bits, kOuts, Rows>(m, x, ldx, y, ldy, n);
  for (; n < n1; ++n) multiply_block<Bits, 1, Rows>(m, x, ldx, y, ldy, n);
}

template <int Bits>
HASTEN_INLINE void multiply_all(const Matrix& m, const float* x, int64_t ldx, int rows, float* y, int64_t ldy,
                                int64_t n0, int64_t n1) {
  for (; rows >= 6; rows -= 6, x += 6 * ldx, y += 6 * ldy) multiply_rows<Bits, 6>(m, x, ldx, y, ldy, n0, n1);
  switch (rows) {
    case 1: return multiply_rows<Bits, 1>(m, x, ldx, y, ldy, n0, n1);
    case 2: return multiply_rows<Bits, 2>(m, x, ldx, y, ldy, n0, n1);
    case 3: return multiply_rows<Bits, 3>(m, x, ldx, y, ldy, n0, n1);
    case 4: return multiply_rows<Bits, 4>(m, x, ldx, y, ldy, n0, n1);
    case 5: return multiply_rows<Bits, 5>(m, x, ldx, y, ldy, n0, n1);
    default: return;
  }
}

// Rows [n0, n1) of W times every row of x.
inline void multiply(const Matrix& m, const float* x, int64_t ldx, int rows, float* y, int64_t ldy, int64_t n0,
                     int64_t n1) {
  with_format(m, [&](auto format) { multiply_all<decltype(format)::kBits>(m, x, ldx, rows, y, ldy, n0, n1); });
}

template <int Bits>
HASTEN_INLINE void unpack_all(const Matrix& m, float* out, int64_t n0, int64_t n1) {
  for (int64_t n = n0; n < n1; ++n, out += m.in) {
    const Row<Bits> row(m, n);
    each_pair<Bits>(m, [&](int64_t k, int64_t l, int64_t byte, int64_t g) HASTEN_LAMBDA {
      vec a, b;
      row.pair(k, byte, g, a, b);
      store(out + k, a);
      store(out + l, b);
    });
  }
}

// Rows [n0, n1) of W as floats, (n1 - n0, in).
inline void unpack(const Matrix& m, float* out, int64_t n0, int64_t n1) {
  with_format(m, [&](auto format) { unpack_all<decltype(format)::kBits>(m, out, n0, n1); });
}

}  // namespace
}  // namespace hasten

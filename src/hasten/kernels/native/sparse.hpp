// y = x W^T with W of 2 bits, two kept of every four inputs, and x in int8: see hasten/kernels/sparse_linear.py.
#pragma once

#include "simd.hpp"
#include "types.hpp"

namespace hasten {

struct SparseMatrix {
  static constexpr int64_t kGroup = 64;     // inputs that share a scale
  static constexpr int64_t kMostRows = 16;  // of x at once
  const uint8_t* packed = nullptr;   // (out, in / 4)
  const uint16_t* scales = nullptr;  // (out, in / 64), IEEE half
  const uint8_t* zeros = nullptr;    // (out, zero_bytes), four zero points a byte
  int64_t out = 0, in = 0, zero_bytes = 0;
};

struct SparseKernels {
  void (*multiply)(const SparseMatrix&, const int8_t* x, const float* scales, int rows, float* y, int64_t n0,
                   int64_t n1);
};

#if defined(HASTEN_ISA)
namespace {

// Four inputs' codes, and which of them are kept, for every byte.
struct SparseTable {
  uint32_t codes[256], kept[256];
};

HASTEN_INLINE void fill_table(SparseTable& table) {
  for (int b = 0; b < 256; ++b) {
    const int first = b >> 4 & 3, second = b >> 6 & 3;
    table.codes[b] = uint32_t(b & 3) << 8 * first | uint32_t(b >> 2 & 3) << 8 * second;
    table.kept[b] = 1u << 8 * first | 1u << 8 * second;
  }
}

inline void sparse_multiply(const SparseMatrix& m, const int8_t* x, const float* scales, int rows, float* y, int64_t n0,
                            int64_t n1) {
  SparseTable table;
  fill_table(table);
  const int64_t groups = m.in / SparseMatrix::kGroup;
  alignas(64) uint32_t codes[16], kept[16];
  for (int64_t n = n0; n < n1; ++n) {
    float total[SparseMatrix::kMostRows] = {};
    for (int64_t g = 0; g < groups; ++g) {
      const uint8_t* p = m.packed + n * (m.in / 4) + g * 16;
      for (int i = 0; i < 16; ++i) {
        codes[i] = table.codes[p[i]];
        kept[i] = table.kept[p[i]];
      }
      const signed_bytes w = load_signed(reinterpret_cast<const int8_t*>(codes), 64);
      const signed_bytes k = load_signed(reinterpret_cast<const int8_t*>(kept), 64);
      const float scale = from_fp16(m.scales[n * groups + g]);
      const vec zero = broadcast(-float(m.zeros[n * m.zero_bytes + g / 4] >> 2 * (g % 4) & 3));
      for (int r = 0; r < rows; ++r) {
        const int8_t* values = x + r * m.in + g * SparseMatrix::kGroup;
        total[r] += scale * sum(fma(dot_signed(k, values), zero, dot_signed(w, values)));
      }
    }
    for (int r = 0; r < rows; ++r) y[r * m.out + n] = scales[r] * total[r];
  }
}

constexpr SparseKernels sparse_kernels = {&sparse_multiply};

}  // namespace
#endif

}  // namespace hasten

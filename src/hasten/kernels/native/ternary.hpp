// int8 activations times a ternary matrix of 2-bit codes, by selection and addition alone: a code takes x, -x or
// nothing, no product is formed. Layout in hasten/kernels/ternary_linear.py.
#pragma once

#include <cstdint>

namespace hasten {

struct TernaryArgs {
  static constexpr int64_t kBlock = 256, kBytes = 64;  // columns of a block, and its bytes
  int64_t rows = 0, out = 0, blocks = 0;
  const uint8_t* packed = nullptr;  // (out, blocks, 64)
  const uint8_t* plus = nullptr;    // (rows, blocks * 256): 128 + x, 128 in the padding
  const uint8_t* minus = nullptr;   // 128 - x
  float* y = nullptr;               // (rows, out): whole numbers
};

struct TernaryKernels {
  void (*multiply)(const TernaryArgs&, int64_t begin, int64_t end);  // outputs [begin, end)
};

}  // namespace hasten

#if defined(HASTEN_ISA)
#include "simd.hpp"

namespace hasten {
namespace {

void ternary_multiply(const TernaryArgs& t, int64_t begin, int64_t end) {
  const int64_t columns = t.blocks * TernaryArgs::kBlock, stride = t.blocks * TernaryArgs::kBytes;
  for (int64_t row = 0; row < t.rows; ++row) {
    const uint8_t *plus = t.plus + row * columns, *minus = t.minus + row * columns;
    for (int64_t n = begin; n < end; ++n) {
      byte_sums sums = no_bytes(), others = no_bytes();
      const uint8_t* codes = t.packed + n * stride;
      for (int64_t block = 0; block < t.blocks; ++block) {
        const int64_t at = block * TernaryArgs::kBlock;
        __builtin_prefetch(codes + 16 * TernaryArgs::kBytes);
        for (int part = 0; part < 4; ++part)
          add_selected(part & 1 ? others : sums, codes, part, plus + at + TernaryArgs::kBytes * part, minus + at + TernaryArgs::kBytes * part);
        codes += TernaryArgs::kBytes;
      }
      // Every byte carries 128, so that all are positive: it goes out again here.
      t.y[row * t.out + n] = float(total(sums) + total(others) - 128 * columns);
    }
  }
}

constexpr TernaryKernels ternary_kernels = {&ternary_multiply};

}  // namespace
}  // namespace hasten
#endif

// int8 activations times a ternary matrix of 2-bit codes, in whole numbers. Layout in hasten/kernels/ternary_linear.py.
//
// A code becomes a byte 0, 1 or 2, its weight plus 1, by a look-up in registers; the processor's byte dot products then
// add each x as often as the byte says, and the sum of x, which the 1s have brought in, goes out again at the end.
#pragma once

#include <cstdint>

namespace hasten {

struct TernaryArgs {
  static constexpr int64_t kBlock = 256, kBytes = 64;  // columns of a block, and its bytes
  int64_t rows = 0, out = 0, blocks = 0;
  const uint8_t* packed = nullptr;  // (out, blocks, 64)
  const int8_t* x = nullptr;        // (rows, blocks * 256), 0 in the padding
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

// Codes are asked for so many bytes ahead: what is small enough for the cache is there already, what is not streams.
constexpr int64_t kTernaryAhead = 2048;

// `Rows` rows of x from `row` on: a block of codes is looked up once for all of them.
template <int Rows>
HASTEN_INLINE void ternary_rows(const TernaryArgs& t, int64_t row, int64_t begin, int64_t end) {
  const int64_t columns = t.blocks * TernaryArgs::kBlock;
  const int8_t* x = t.x + row * columns;
  int32_t extra[Rows];
  for (int r = 0; r < Rows; ++r) {
    extra[r] = 0;
    for (int64_t k = 0; k < columns; ++k) extra[r] += x[r * columns + k];
  }
  const uint8_t* codes = t.packed + begin * t.blocks * TernaryArgs::kBytes;
  for (int64_t n = begin; n < end; ++n) {
    ternary_sum sums[Rows];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) sums[r] = no_products();
    for (int64_t block = 0; block < t.blocks; ++block, codes += TernaryArgs::kBytes) {
      __builtin_prefetch(codes + kTernaryAhead);
      const ternaries w = load_ternaries(codes);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) add_products(sums[r], w, x + r * columns + block * TernaryArgs::kBlock);
    }
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) t.y[(row + r) * t.out + n] = float(total(sums[r]) - extra[r]);
  }
}

inline void ternary_multiply(const TernaryArgs& t, int64_t begin, int64_t end) {
  int64_t row = 0;
  for (; t.rows - row >= 4; row += 4) ternary_rows<4>(t, row, begin, end);
  switch (t.rows - row) {
    case 1: return ternary_rows<1>(t, row, begin, end);
    case 2: return ternary_rows<2>(t, row, begin, end);
    case 3: return ternary_rows<3>(t, row, begin, end);
    default: return;
  }
}

constexpr TernaryKernels ternary_kernels = {&ternary_multiply};

}  // namespace
}  // namespace hasten
#endif

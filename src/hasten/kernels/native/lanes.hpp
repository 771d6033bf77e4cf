// A vector's lanes by themselves: sixteen sums added up as sum4 adds lanes, and rows turned into columns.
#pragma once

#include "simd.hpp"

namespace hasten {
namespace {

// The sum of sixteen, leaf(0) to leaf(15), in the order in which sum4 adds a vector's lanes.
#if defined(__AVX512F__) && defined(__AVX512BW__)

template <class Leaf>
HASTEN_INLINE auto sum_leaves(Leaf leaf) {
  const auto quarter = [&](int k) HASTEN_LAMBDA {
    return add(add(leaf(4 * k), leaf(4 * k + 2)), add(leaf(4 * k + 1), leaf(4 * k + 3)));
  };
  return add(add(quarter(0), quarter(2)), add(quarter(1), quarter(3)));
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

template <class Leaf>
HASTEN_INLINE auto sum_leaves(Leaf leaf) {
  const auto two = [&](int i) HASTEN_LAMBDA { return add(leaf(i), leaf(i + 8)); };
  const auto four = [&](int i) HASTEN_LAMBDA { return add(add(two(i), two(i + 1)), add(two(i + 2), two(i + 3))); };
  return add(four(0), four(4));
}

#elif defined(__aarch64__)

template <class Leaf>
HASTEN_INLINE auto sum_leaves(Leaf leaf) {
  const auto four = [&](int i) HASTEN_LAMBDA {
    return add(add(leaf(i), leaf(i + 8)), add(leaf(i + 4), leaf(i + 12)));
  };
  return add(add(four(0), four(1)), add(four(2), four(3)));
}

#else

template <class Leaf>
HASTEN_INLINE auto sum_leaves(Leaf leaf) {
  auto total = leaf(0);
  for (int i = 1; i < kLanes; ++i) total = add(total, leaf(i));
  return total;
}

#endif

// 16 rows of 16 numbers, `step` apart, become columns.
#if defined(__AVX512F__) && defined(__AVX512BW__)

HASTEN_INLINE void transpose(const float* from, int64_t step, float* to, int64_t to_step) {
  __m512 r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_ps(from + i * step);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  const auto pairs = [](__m512 a, __m512 b, bool upper) HASTEN_LAMBDA {
    const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return _mm512_castpd_ps(upper ? _mm512_unpackhi_pd(x, y) : _mm512_unpacklo_pd(x, y));
  };
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = pairs(t[i], t[i + 2], false);
    r[i + 1] = pairs(t[i], t[i + 2], true);
    r[i + 2] = pairs(t[i + 1], t[i + 3], false);
    r[i + 3] = pairs(t[i + 1], t[i + 3], true);
  }
  // Quarter q of r[4 i + k] is column 4 q + k of rows 4 i to 4 i + 3.
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    const __m512 a = _mm512_shuffle_f32x4(r[k], r[4 + k], 0x88), b = _mm512_shuffle_f32x4(r[k], r[4 + k], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(r[8 + k], r[12 + k], 0x88), d = _mm512_shuffle_f32x4(r[8 + k], r[12 + k], 0xdd);
    _mm512_storeu_ps(to + k * to_step, _mm512_shuffle_f32x4(a, c, 0x88));
    _mm512_storeu_ps(to + (4 + k) * to_step, _mm512_shuffle_f32x4(b, d, 0x88));
    _mm512_storeu_ps(to + (8 + k) * to_step, _mm512_shuffle_f32x4(a, c, 0xdd));
    _mm512_storeu_ps(to + (12 + k) * to_step, _mm512_shuffle_f32x4(b, d, 0xdd));
  }
}

#else

HASTEN_INLINE void transpose(const float* from, int64_t step, float* to, int64_t to_step) {
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < kLanes; ++j) to[j * to_step + i] = from[i * step + j];
}

#endif

}  // namespace
}  // namespace hasten

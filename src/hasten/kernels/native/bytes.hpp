// Vectors of codes and their products in whole numbers, beside simd.hpp's vectors of floats: 64 bytes, 16 sums.
//
// Codes of weights are 0 to 127, or signed; activations are -127 to 127. AVX-512's byte dot products take a signed code
// with 128 added, and `kOffset` times the sum of the activations goes off again; where there are none it is taken by its
// magnitude with the activation's sign turned, so that sums of two products stay within 16 bits. Codes from 0 on that
// stand for themselves less a power of two have a part of `kWhole` times that sum too much, everywhere.
#pragma once

#include "simd.hpp"

namespace hasten {
namespace {

constexpr int kWhole = 128;

#if defined(__AVX512F__) && defined(__AVX512BW__)

struct bytes {
  __m512i v;
};
struct ints {
  __m512i v;
};
// The codes of four groups of 32: values 0 to 15 of each, 16 bytes after 16, and values 16 to 31.
struct Quad {
  bytes first, second;
};
#define HASTEN_UNROLL _Pragma("GCC unroll 16")
constexpr int kTileRows = 6, kTileOuts = 2;  // rows of x, and times 16 outputs, that are summed in registers at once
HASTEN_INLINE ints no_ints() { return {_mm512_setzero_si512()}; }
HASTEN_INLINE bytes load_bytes(const void* p) { return {_mm512_loadu_si512(p)}; }
HASTEN_INLINE bytes load_bytes(const void* p, int64_t count) { return {_mm512_maskz_loadu_epi8(first_bytes(count), p)}; }
HASTEN_INLINE void store_bytes(void* p, bytes a) { _mm512_storeu_si512(p, a.v); }
// Four bytes in every four.
HASTEN_INLINE bytes broadcast_four(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return {_mm512_set1_epi32(four)};
}
HASTEN_INLINE ints broadcast_int(int32_t a) { return {_mm512_set1_epi32(a)}; }
HASTEN_INLINE ints load_ints(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
HASTEN_INLINE ints add(ints a, ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
HASTEN_INLINE vec to_floats(ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
HASTEN_INLINE bytes low_nibbles(bytes a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
HASTEN_INLINE bytes high_nibbles(bytes a) {
  return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))};
}
// Of a and b, each four times 16 bytes: those at even places, and at odd ones.
HASTEN_INLINE Quad split_sixteens(bytes a, bytes b) {
  asm("" : "+v"(b.v));  // or it is read from memory twice, which streams slower
  return {{_mm512_shuffle_i32x4(a.v, b.v, 0x88)}, {_mm512_shuffle_i32x4(a.v, b.v, 0xdd)}};
}

#if defined(__AVX512VNNI__)
constexpr int kOffset = 128;
template <bool Signed>
HASTEN_INLINE bytes factors(bytes w) {
  return Signed ? bytes{_mm512_xor_si512(w.v, _mm512_set1_epi8(-128))} : w;
}
template <bool Signed>
HASTEN_INLINE ints dot(ints total, bytes w, bytes x) {
  return {_mm512_dpbusd_epi32(total.v, w.v, x.v)};
}
#else
constexpr int kOffset = 0;
template <bool Signed>
HASTEN_INLINE bytes factors(bytes w) {
  return w;
}
template <bool Signed>
HASTEN_INLINE ints dot(ints total, bytes w, bytes x) {
  if (!Signed) return {dot_bytes(total.v, w.v, x.v)};
  const __m512i turned = _mm512_mask_sub_epi8(x.v, _mm512_movepi8_mask(w.v), _mm512_setzero_si512(), x.v);
  return {dot_bytes(total.v, _mm512_abs_epi8(w.v), turned)};
}
#endif

// Each of a to d has four sums for each of four groups: the sums of groups 0 to 15.
HASTEN_INLINE ints group_sums(ints a, ints b, ints c, ints d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a.v, b.v), _mm512_unpackhi_epi32(a.v, b.v));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c.v, d.v), _mm512_unpackhi_epi32(c.v, d.v));
  const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return {_mm512_permutexvar_epi32(order, all)};
}

HASTEN_INLINE bytes no_bytes() { return {_mm512_setzero_si512()}; }
HASTEN_INLINE bytes in_register(bytes a) {
  asm("" : "+v"(a.v));
  return a;
}
template <int By>
HASTEN_INLINE ints shifted(ints a) {
  return {_mm512_srai_epi32(a.v, By)};
}
// Of each 16 bytes the four fours: four i of v[j] and four j of v[i] change places.
HASTEN_INLINE void transpose_fours(bytes* v) {
  const __m512i a = _mm512_unpacklo_epi32(v[0].v, v[1].v), b = _mm512_unpackhi_epi32(v[0].v, v[1].v);
  const __m512i c = _mm512_unpacklo_epi32(v[2].v, v[3].v), d = _mm512_unpackhi_epi32(v[2].v, v[3].v);
  v[0].v = _mm512_unpacklo_epi64(a, c);
  v[1].v = _mm512_unpackhi_epi64(a, c);
  v[2].v = _mm512_unpacklo_epi64(b, d);
  v[3].v = _mm512_unpackhi_epi64(b, d);
}
// Numbers 0, 4, 8 and 12, then 1, 5, 9, 13 and so on.
HASTEN_INLINE vec by_fours(vec a) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return {_mm512_permutexvar_ps(order, a.v)};
}

// Numbers 0, 4, 8 and 12, then 2, 6, 10, 14, then 1 and then 3 and so on.
HASTEN_INLINE vec by_pairs(vec a) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15);
  return {_mm512_permutexvar_ps(order, a.v)};
}
// Of each, sums 0 to 3 and 4 to 7 added, and 8 to 11 and 12 to 15.
HASTEN_INLINE ints add_halves(ints a, ints b) {
  return {_mm512_add_epi32(_mm512_shuffle_i32x4(a.v, b.v, 0x88), _mm512_shuffle_i32x4(a.v, b.v, 0xdd))};
}

HASTEN_INLINE __m512i words(bytes a) { return a.v; }
HASTEN_INLINE __m512i words(vec a) { return _mm512_castps_si512(a.v); }
HASTEN_INLINE void set_words(bytes& a, __m512i v) { a.v = v; }
HASTEN_INLINE void set_words(vec& a, __m512i v) { a.v = _mm512_castsi512_ps(v); }
// Element i of v[j] and element j of v[i] change places; an element has 32 bits.
template <class V>
HASTEN_INLINE void transpose(V* v) {
  __m512i a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(words(v[i]), words(v[i + 1]));
    a[i + 1] = _mm512_unpackhi_epi32(words(v[i]), words(v[i + 1]));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i even = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88), odd = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd);
    const __m512i even2 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
    const __m512i odd2 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);
    set_words(v[j], _mm512_shuffle_i32x4(even, even2, 0x88));
    set_words(v[4 + j], _mm512_shuffle_i32x4(odd, odd2, 0x88));
    set_words(v[8 + j], _mm512_shuffle_i32x4(even, even2, 0xdd));
    set_words(v[12 + j], _mm512_shuffle_i32x4(odd, odd2, 0xdd));
  }
}

#else

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

struct bytes {
  __m256i a, b;
};
struct ints {
  __m256i a, b;
};
struct Quad {
  bytes first, second;
};
#define HASTEN_UNROLL _Pragma("GCC unroll 16")
constexpr int kTileRows = 3, kTileOuts = 1;
HASTEN_INLINE ints no_ints() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
HASTEN_INLINE bytes load_bytes(const void* p) {
  return {load_32(p), load_32(static_cast<const uint8_t*>(p) + 32)};
}
HASTEN_INLINE void store_bytes(void* p, bytes x) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), x.a);
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, x.b);
}
HASTEN_INLINE bytes broadcast_four(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return {_mm256_set1_epi32(four), _mm256_set1_epi32(four)};
}
HASTEN_INLINE ints broadcast_int(int32_t a) { return {_mm256_set1_epi32(a), _mm256_set1_epi32(a)}; }
HASTEN_INLINE ints load_ints(const int32_t* p) { return {load_32(p), load_32(p + 8)}; }
HASTEN_INLINE ints add(ints x, ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
HASTEN_INLINE vec to_floats(ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
HASTEN_INLINE bytes low_nibbles(bytes x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
HASTEN_INLINE bytes high_nibbles(bytes x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(x.a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(x.b, 4), mask)};
}
HASTEN_INLINE Quad split_sixteens(bytes x, bytes y) {
  return {{_mm256_permute2x128_si256(x.a, x.b, 0x20), _mm256_permute2x128_si256(y.a, y.b, 0x20)},
          {_mm256_permute2x128_si256(x.a, x.b, 0x31), _mm256_permute2x128_si256(y.a, y.b, 0x31)}};
}
template <bool Signed>
HASTEN_INLINE ints dot(ints total, bytes w, bytes x) {
  if (Signed) {
    x = {_mm256_sign_epi8(x.a, w.a), _mm256_sign_epi8(x.b, w.b)};
    w = {_mm256_abs_epi8(w.a), _mm256_abs_epi8(w.b)};
  }
  return {_mm256_add_epi32(total.a, dot_bytes(w.a, x.a)), _mm256_add_epi32(total.b, dot_bytes(w.b, x.b))};
}
HASTEN_INLINE bytes no_bytes() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
HASTEN_INLINE bytes in_register(bytes x) { return x; }
template <int By>
HASTEN_INLINE ints shifted(ints x) {
  return {_mm256_srai_epi32(x.a, By), _mm256_srai_epi32(x.b, By)};
}
HASTEN_INLINE void transpose_fours(bytes* v) {
  const auto half = [&](__m256i bytes::* at) HASTEN_LAMBDA {
    const __m256i a = _mm256_unpacklo_epi32(v[0].*at, v[1].*at), b = _mm256_unpackhi_epi32(v[0].*at, v[1].*at);
    const __m256i c = _mm256_unpacklo_epi32(v[2].*at, v[3].*at), d = _mm256_unpackhi_epi32(v[2].*at, v[3].*at);
    v[0].*at = _mm256_unpacklo_epi64(a, c);
    v[1].*at = _mm256_unpackhi_epi64(a, c);
    v[2].*at = _mm256_unpacklo_epi64(b, d);
    v[3].*at = _mm256_unpackhi_epi64(b, d);
  };
  half(&bytes::a);
  half(&bytes::b);
}
HASTEN_INLINE vec by_fours(vec x) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256d a = _mm256_castps_pd(_mm256_permutevar8x32_ps(x.a, order));
  const __m256d b = _mm256_castps_pd(_mm256_permutevar8x32_ps(x.b, order));
  const __m256 low = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), high = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
  return {_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)};
}
HASTEN_INLINE vec by_pairs(vec x) {
  x = by_fours(x);
  return {_mm256_permute2f128_ps(x.a, x.b, 0x20), _mm256_permute2f128_ps(x.a, x.b, 0x31)};
}
HASTEN_INLINE ints add_halves(ints x, ints y) {
  const auto halves = [](ints z) HASTEN_LAMBDA {
    return _mm256_add_epi32(_mm256_permute2x128_si256(z.a, z.b, 0x20), _mm256_permute2x128_si256(z.a, z.b, 0x31));
  };
  return {halves(x), halves(y)};
}
HASTEN_INLINE ints group_sums(ints a, ints b, ints c, ints d) {
  // Of a: groups 0 and 1 in one register, 2 and 3 in the other; `hadd` keeps the halves apart.
  const __m256i first = _mm256_hadd_epi32(_mm256_hadd_epi32(a.a, a.b), _mm256_hadd_epi32(b.a, b.b));
  const __m256i second = _mm256_hadd_epi32(_mm256_hadd_epi32(c.a, c.b), _mm256_hadd_epi32(d.a, d.b));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return {_mm256_permutevar8x32_epi32(first, order), _mm256_permutevar8x32_epi32(second, order)};
}

#elif defined(__aarch64__)

struct bytes {
  int8x16_t v[4];
};
struct ints {
  int32x4_t v[4];
};
struct Quad {
  bytes first, second;
};
#define HASTEN_UNROLL _Pragma("GCC unroll 16")
constexpr int kTileRows = 3, kTileOuts = 1;
HASTEN_INLINE ints broadcast_int(int32_t a) {
  const int32x4_t q = vdupq_n_s32(a);
  return {{q, q, q, q}};
}
HASTEN_INLINE ints no_ints() { return broadcast_int(0); }
HASTEN_INLINE bytes load_bytes(const void* p) {
  const int8_t* b = static_cast<const int8_t*>(p);
  return {{vld1q_s8(b), vld1q_s8(b + 16), vld1q_s8(b + 32), vld1q_s8(b + 48)}};
}
HASTEN_INLINE void store_bytes(void* p, bytes a) { HASTEN_EACH_QUARTER vst1q_s8(static_cast<int8_t*>(p) + 16 * i, a.v[i]); }
HASTEN_INLINE bytes all_alike(int8x16_t a) { return {{a, a, a, a}}; }
HASTEN_INLINE bytes broadcast_four(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return all_alike(vreinterpretq_s8_s32(vdupq_n_s32(four)));
}
HASTEN_INLINE bytes in_register(bytes a) { return a; }
HASTEN_INLINE bytes no_bytes() { return all_alike(vdupq_n_s8(0)); }
HASTEN_INLINE ints load_ints(const int32_t* p) {
  return {{vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)}};
}
HASTEN_INLINE ints add(ints a, ints b) {
  HASTEN_EACH_QUARTER a.v[i] = vaddq_s32(a.v[i], b.v[i]);
  return a;
}
template <int By>
HASTEN_INLINE ints shifted(ints a) {
  HASTEN_EACH_QUARTER a.v[i] = vshrq_n_s32(a.v[i], By);
  return a;
}
HASTEN_INLINE vec to_floats(ints a) {
  vec r;
  HASTEN_EACH_QUARTER r.v[i] = vcvtq_f32_s32(a.v[i]);
  return r;
}
HASTEN_INLINE bytes low_nibbles(bytes a) {
  HASTEN_EACH_QUARTER a.v[i] = vandq_s8(a.v[i], vdupq_n_s8(15));
  return a;
}
HASTEN_INLINE bytes high_nibbles(bytes a) {
  HASTEN_EACH_QUARTER a.v[i] = vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(a.v[i]), 4));
  return a;
}
HASTEN_INLINE Quad split_sixteens(bytes a, bytes b) {
  return {{{a.v[0], a.v[2], b.v[0], b.v[2]}}, {{a.v[1], a.v[3], b.v[1], b.v[3]}}};
}
HASTEN_INLINE int32x4_t dot_sixteen(int32x4_t total, int8x16_t w, int8x16_t x) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(total, w, x);
#else
  const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)));
  return vaddq_s32(total, vpaddq_s32(low, vpaddlq_s16(vmull_high_s8(w, x))));
#endif
}
template <bool Signed>
HASTEN_INLINE ints dot(ints total, bytes w, bytes x) {
  HASTEN_EACH_QUARTER total.v[i] = dot_sixteen(total.v[i], w.v[i], x.v[i]);
  return total;
}
HASTEN_INLINE ints group_sums(ints a, ints b, ints c, ints d) {
  const auto four = [](ints z) HASTEN_LAMBDA { return vpaddq_s32(vpaddq_s32(z.v[0], z.v[1]), vpaddq_s32(z.v[2], z.v[3])); };
  return {{four(a), four(b), four(c), four(d)}};
}
// Four rows of four numbers of 32 bits become columns.
HASTEN_INLINE void turn_fours(int32x4_t& a, int32x4_t& b, int32x4_t& c, int32x4_t& d) {
  const auto pairs = [](int32x4_t x) HASTEN_LAMBDA { return vreinterpretq_s64_s32(x); };
  const int64x2_t ab = pairs(vtrn1q_s32(a, b)), ba = pairs(vtrn2q_s32(a, b));
  const int64x2_t cd = pairs(vtrn1q_s32(c, d)), dc = pairs(vtrn2q_s32(c, d));
  a = vreinterpretq_s32_s64(vtrn1q_s64(ab, cd));
  b = vreinterpretq_s32_s64(vtrn1q_s64(ba, dc));
  c = vreinterpretq_s32_s64(vtrn2q_s64(ab, cd));
  d = vreinterpretq_s32_s64(vtrn2q_s64(ba, dc));
}
HASTEN_INLINE void transpose_fours(bytes* v) {
  HASTEN_EACH_QUARTER {
    int32x4_t r[4];
    for (int j = 0; j < 4; ++j) r[j] = vreinterpretq_s32_s8(v[j].v[i]);
    turn_fours(r[0], r[1], r[2], r[3]);
    for (int j = 0; j < 4; ++j) v[j].v[i] = vreinterpretq_s8_s32(r[j]);
  }
}
HASTEN_INLINE vec by_fours(vec a) {
  int32x4_t r[4];
  HASTEN_EACH_QUARTER r[i] = vreinterpretq_s32_f32(a.v[i]);
  turn_fours(r[0], r[1], r[2], r[3]);
  HASTEN_EACH_QUARTER a.v[i] = vreinterpretq_f32_s32(r[i]);
  return a;
}
HASTEN_INLINE vec by_pairs(vec a) {
  a = by_fours(a);
  return {{a.v[0], a.v[2], a.v[1], a.v[3]}};
}
HASTEN_INLINE ints add_halves(ints a, ints b) {
  return {{vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3]), vaddq_s32(b.v[0], b.v[1]), vaddq_s32(b.v[2], b.v[3])}};
}

#else

struct bytes {
  int8_t v[64];
};
struct ints {
  int32_t v[16];
};
struct Quad {
  bytes first, second;
};
#define HASTEN_UNROLL
constexpr int kTileRows = 2, kTileOuts = 1;
HASTEN_INLINE ints broadcast_int(int32_t a) {
  ints r;
  for (int i = 0; i < 16; ++i) r.v[i] = a;
  return r;
}
HASTEN_INLINE ints no_ints() { return broadcast_int(0); }
HASTEN_INLINE bytes load_bytes(const void* p) {
  bytes r;
  std::memcpy(r.v, p, 64);
  return r;
}
HASTEN_INLINE void store_bytes(void* p, bytes a) { std::memcpy(p, a.v, 64); }
HASTEN_INLINE bytes broadcast_four(const int8_t* p) {
  bytes r;
  for (int i = 0; i < 64; ++i) r.v[i] = p[i % 4];
  return r;
}
HASTEN_INLINE ints load_ints(const int32_t* p) {
  ints r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
HASTEN_INLINE ints add(ints a, ints b) {
  for (int i = 0; i < 16; ++i) a.v[i] += b.v[i];
  return a;
}
HASTEN_INLINE vec to_floats(ints a) {
  vec r;
  for (int i = 0; i < 16; ++i) r.v[i] = float(a.v[i]);
  return r;
}
HASTEN_INLINE bytes low_nibbles(bytes a) {
  for (int i = 0; i < 64; ++i) a.v[i] = int8_t(a.v[i] & 15);
  return a;
}
HASTEN_INLINE bytes high_nibbles(bytes a) {
  for (int i = 0; i < 64; ++i) a.v[i] = int8_t(uint8_t(a.v[i]) >> 4);
  return a;
}
HASTEN_INLINE Quad split_sixteens(bytes a, bytes b) {
  Quad q;
  for (int i = 0; i < 4; ++i) {
    const int8_t* from = (i < 2 ? a : b).v + 32 * (i % 2);
    std::memcpy(q.first.v + 16 * i, from, 16);
    std::memcpy(q.second.v + 16 * i, from + 16, 16);
  }
  return q;
}
template <bool Signed>
HASTEN_INLINE ints dot(ints total, bytes w, bytes x) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 4; ++j) total.v[i] += w.v[4 * i + j] * x.v[4 * i + j];
  return total;
}
HASTEN_INLINE bytes in_register(bytes a) { return a; }
HASTEN_INLINE bytes no_bytes() {
  bytes r = {};
  return r;
}
template <int By>
HASTEN_INLINE ints shifted(ints a) {
  for (int i = 0; i < 16; ++i) a.v[i] >>= By;
  return a;
}
HASTEN_INLINE void transpose_fours(bytes* v) {
  int8_t from[4][64];
  for (int i = 0; i < 4; ++i) std::memcpy(from[i], v[i].v, 64);
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 16; ++j) std::memcpy(v[i].v + 4 * j, from[j % 4] + 16 * (j / 4) + 4 * i, 4);
}
HASTEN_INLINE vec by_fours(vec a) {
  vec r;
  for (int i = 0; i < 16; ++i) r.v[i] = a.v[4 * (i % 4) + i / 4];
  return r;
}
HASTEN_INLINE vec by_pairs(vec a) {
  constexpr int kOf[] = {0, 2, 1, 3};
  vec r;
  for (int i = 0; i < 16; ++i) r.v[i] = a.v[4 * (i % 4) + kOf[i / 4]];
  return r;
}
HASTEN_INLINE ints add_halves(ints a, ints b) {
  ints r;
  for (int i = 0; i < 4; ++i)
    for (int half = 0; half < 2; ++half) {
      r.v[4 * half + i] = a.v[8 * half + i] + a.v[8 * half + 4 + i];
      r.v[8 + 4 * half + i] = b.v[8 * half + i] + b.v[8 * half + 4 + i];
    }
  return r;
}
HASTEN_INLINE ints group_sums(ints a, ints b, ints c, ints d) {
  const ints* from[] = {&a, &b, &c, &d};
  ints r = no_ints();
  for (int i = 0; i < 64; ++i) r.v[i / 4] += from[i / 16]->v[i % 16];
  return r;
}

#endif

constexpr int kOffset = 0;
template <bool Signed>
HASTEN_INLINE bytes factors(bytes w) {
  return w;
}
HASTEN_INLINE bytes load_bytes(const void* p, int64_t count) {
  if (count >= 64) return load_bytes(p);
  alignas(64) uint8_t kept[64] = {};
  if (count > 0) std::memcpy(kept, p, size_t(count));
  return load_bytes(kept);
}
template <class V>
HASTEN_INLINE void transpose(V* v) {
  static_assert(sizeof(V) == 64);
  int32_t from[16][16], to[16][16];
  std::memcpy(from, v, sizeof from);
#if defined(__aarch64__)
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 16; j += 4) {
      int32x4_t r[4];
      for (int k = 0; k < 4; ++k) r[k] = vld1q_s32(from[i + k] + j);
      turn_fours(r[0], r[1], r[2], r[3]);
      for (int k = 0; k < 4; ++k) vst1q_s32(to[j + k] + i, r[k]);
    }
#else
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) to[j][i] = from[i][j];
#endif
  std::memcpy(static_cast<void*>(v), to, sizeof to);
}

#endif

}  // namespace
}  // namespace hasten

// Vectors of codes and their products in whole numbers, beside simd.hpp's vectors of floats: 64 bytes, 16 sums.
//
// Codes of weights are 0 to 127, or signed; activations are -127 to 127. AVX-512's byte dot products take a signed code
// with 128 added, and `kOffset` times the sum of the activations goes off again; where there are none it is taken by its
// magnitude with the activation's sign turned, so that sums of two products stay within 16 bits.
#pragma once

#include "simd.hpp"

namespace hasten {
namespace {

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
HASTEN_INLINE ints group_sums(ints a, ints b, ints c, ints d) {
  // Of a: groups 0 and 1 in one register, 2 and 3 in the other; `hadd` keeps the halves apart.
  const __m256i first = _mm256_hadd_epi32(_mm256_hadd_epi32(a.a, a.b), _mm256_hadd_epi32(b.a, b.b));
  const __m256i second = _mm256_hadd_epi32(_mm256_hadd_epi32(c.a, c.b), _mm256_hadd_epi32(d.a, d.b));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return {_mm256_permutevar8x32_epi32(first, order), _mm256_permutevar8x32_epi32(second, order)};
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
  uint32_t from[16][16], to[16][16];
  std::memcpy(from, v, sizeof from);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) to[j][i] = from[i][j];
  std::memcpy(static_cast<void*>(v), to, sizeof to);
}

#endif

}  // namespace
}  // namespace hasten

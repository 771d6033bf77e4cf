// What every kernel here is written in: a vector of 16 floats with the operations that they need. Four
// bodies of it (AVX-512, AVX2, Arm's NEON, plain loops for anything else) are chosen by the instruction set a file is
// compiled for; see isa.cpp for how one binary carries all of them. Intrinsics stand here and nowhere else:
// on the portable vector types g++ 12 turned the same loops into code that was 3 to 20 times slower.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "types.hpp"

#define HASTEN_INLINE static inline __attribute__((always_inline))
#define HASTEN_INLINE_METHOD inline __attribute__((always_inline))
#define HASTEN_LAMBDA __attribute__((always_inline))

namespace hasten {
namespace {


HASTEN_INLINE float from_bf16(uint16_t h) {
  uint32_t bits = uint32_t(h) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

HASTEN_INLINE uint16_t to_bf16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t((bits >> 16) | 0x40);  // keep a NaN a NaN
  bits += 0x7fff + ((bits >> 16) & 1);
  return uint16_t(bits >> 16);
}

// IEEE half to float by rebiasing the exponent with one multiplication: exact, subnormals included,
// and made of operations that vectorize. Infinities and NaNs keep their meaning.
HASTEN_INLINE float from_fp16(uint16_t h) {
  uint32_t magnitude = uint32_t(h & 0x7fff) << 13;
  float f;
  std::memcpy(&f, &magnitude, sizeof f);
  f *= 0x1p112f;
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  bits |= uint32_t(h & 0x8000) << 16;
  bits |= (h & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

HASTEN_INLINE uint16_t to_fp16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  uint32_t sign = (bits >> 16) & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (bits >= 0x477ff000) return uint16_t(sign | 0x7bff);  // saturate: a scale never becomes infinite
  if (bits < 0x38800000) {                                 // subnormal half: let the adder round
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, sizeof bits);
    return uint16_t(sign | (bits - 0x3f000000));
  }
  bits += 0xc8000fff + ((bits >> 13) & 1);
  return uint16_t(sign | (bits >> 13));
}

// The weights, plus 1, of the ternary codes 0 to 3, a byte each: nothing, +1, -1, nothing.
constexpr uint32_t kTernaryLower = 0x01000201;

#if defined(__AVX512F__) && defined(__AVX512BW__)

struct vec {
  __m512 v;
};
HASTEN_INLINE vec zero() { return {_mm512_setzero_ps()}; }
HASTEN_INLINE vec broadcast(float f) { return {_mm512_set1_ps(f)}; }
HASTEN_INLINE vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
HASTEN_INLINE void store(float* p, vec a) { _mm512_storeu_ps(p, a.v); }
// What is loaded here, and not again at every use.
HASTEN_INLINE vec in_register(vec a) {
  asm("" : "+v"(a.v));
  return a;
}
HASTEN_INLINE vec fma(vec a, vec b, vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
HASTEN_INLINE vec mul(vec a, vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
HASTEN_INLINE vec add(vec a, vec b) { return {_mm512_add_ps(a.v, b.v)}; }
HASTEN_INLINE vec sub(vec a, vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
HASTEN_INLINE vec div(vec a, vec b) { return {_mm512_div_ps(a.v, b.v)}; }
HASTEN_INLINE vec min(vec a, vec b) { return {_mm512_min_ps(a.v, b.v)}; }
HASTEN_INLINE vec max(vec a, vec b) { return {_mm512_max_ps(a.v, b.v)}; }
HASTEN_INLINE vec abs(vec a) { return {_mm512_abs_ps(a.v)}; }
// Where a < b the third, elsewhere the fourth.
HASTEN_INLINE vec where_less(vec a, vec b, vec yes, vec no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
HASTEN_INLINE vec copysign(vec magnitude, vec sign) {
  const __m512i m = _mm512_set1_epi32(int(0x80000000u));
  return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(m, _mm512_castps_si512(sign.v),
                                                        _mm512_castps_si512(magnitude.v), 0xca))};
}
HASTEN_INLINE vec round(vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a * 2^n for whole n.
HASTEN_INLINE vec scale2(vec a, vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }
HASTEN_INLINE void store_bf16(uint16_t* p, vec a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __m512i nan = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  const __m512i whole = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), rounded, nan);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(whole));
}
HASTEN_INLINE float sum(vec a) { return _mm512_reduce_add_ps(a.v); }
HASTEN_INLINE float largest(vec a) {
  const __m256 s = _mm512_castps512_ps256(_mm512_max_ps(a.v, _mm512_shuffle_f32x4(a.v, a.v, 0xee)));
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
HASTEN_INLINE vec broadcast_fp16(uint16_t h) { return {_mm512_cvtph_ps(_mm256_set1_epi16(short(h)))}; }
HASTEN_INLINE vec load_bf16(const uint16_t* p) {
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
HASTEN_INLINE vec load_int8(const int8_t* p) {
  const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(b))};
}
HASTEN_INLINE void load_int4(const uint8_t* p, vec& low, vec& high) {
  const __m512i b = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  low = {_mm512_cvtepi32_ps(_mm512_and_si512(b, _mm512_set1_epi32(15)))};
  high = {_mm512_cvtepi32_ps(_mm512_srli_epi32(b, 4))};
}

HASTEN_INLINE vec load_fp16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// Sixteen whole numbers in [-127, 127] as bytes.
HASTEN_INLINE void store_int8(int8_t* p, vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
// The horizontal sums of four vectors.
HASTEN_INLINE void sum4(float* out, vec a, vec b, vec c, vec d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c.v, d.v), _mm512_unpackhi_ps(c.v, d.v));
  const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

// 64 signed codes.
struct signed_bytes {
  __m512i magnitude;
  __mmask64 negative;
};
// The first `count` of 16 halves, or of 64 bytes, and zeros.
HASTEN_INLINE __mmask64 first_bytes(int64_t count) { return count >= 64 ? ~__mmask64(0) : (__mmask64(1) << count) - 1; }
HASTEN_INLINE vec load_fp16_part(const uint16_t* p, int64_t count) {
  const __mmask16 present = count >= 16 ? __mmask16(0xffff) : __mmask16((1u << count) - 1);
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(present, p))};
}
HASTEN_INLINE signed_bytes load_signed(const int8_t* p, int64_t count) {
  const __m512i b = _mm512_maskz_loadu_epi8(first_bytes(count), p);
  return {_mm512_abs_epi8(b), _mm512_movepi8_mask(b)};
}
HASTEN_INLINE __m512i dot_bytes(__m512i total, __m512i unsigned_codes, __m512i signed_codes) {
#if defined(__AVX512VNNI__)
  return _mm512_dpbusd_epi32(total, unsigned_codes, signed_codes);
#else
  const __m512i pairs = _mm512_maddubs_epi16(unsigned_codes, signed_codes);
  return _mm512_add_epi32(total, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
}
// Products with 64 values x, summed: lanes 8g to 8g + 7 belong to group g.
HASTEN_INLINE vec dot_signed(signed_bytes w, const int8_t* x) {
  const __m512i values = _mm512_loadu_si512(x);
  const __m512i turned = _mm512_mask_sub_epi8(values, w.negative, _mm512_setzero_si512(), values);
  return {_mm512_cvtepi32_ps(dot_bytes(_mm512_setzero_si512(), w.magnitude, turned))};
}
// The 256 ternary weights of a block, plus 1 each: part i has columns 64 i to 64 i + 63.
struct ternaries {
  __m512i v[4];
};
// Whole numbers of a sum that `total` adds up.
struct ternary_sum {
  __m512i v[4];
};
HASTEN_INLINE ternaries load_ternaries(const uint8_t* p) {
  // A nibble holds two codes: one table has the lower one's weight for it, the other the upper one's.
  const __m512i lower = _mm512_set1_epi32(int(kTernaryLower)), nibble = _mm512_set1_epi8(15);
  const __m512i upper = _mm512_broadcast_i32x4(_mm_setr_epi32(0x01010101, 0x02020202, 0, 0x01010101));
  const __m512i b = _mm512_loadu_si512(p);
  const __m512i low = _mm512_and_si512(b, nibble), high = _mm512_and_si512(_mm512_srli_epi16(b, 4), nibble);
  return {{_mm512_shuffle_epi8(lower, low), _mm512_shuffle_epi8(upper, low), _mm512_shuffle_epi8(lower, high),
           _mm512_shuffle_epi8(upper, high)}};
}
HASTEN_INLINE ternary_sum no_products() {
  const __m512i none = _mm512_setzero_si512();
  return {{none, none, none, none}};
}
#if defined(__AVX512VNNI__)
HASTEN_INLINE void add_products(ternary_sum& to, const ternaries& w, const int8_t* x) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) to.v[i] = _mm512_dpbusd_epi32(to.v[i], w.v[i], _mm512_loadu_si512(x + 64 * i));
}
HASTEN_INLINE int32_t total(const ternary_sum& a) {
  return _mm512_reduce_add_epi32(_mm512_add_epi32(_mm512_add_epi32(a.v[0], a.v[1]), _mm512_add_epi32(a.v[2], a.v[3])));
}
#else
HASTEN_INLINE void add_products(ternary_sum& to, const ternaries& w, const int8_t* x) {
  // A sum of two products is within 512, so that four of them stay within 16 bits.
  __m512i pairs = _mm512_maddubs_epi16(w.v[0], _mm512_loadu_si512(x));
#pragma GCC unroll 3
  for (int i = 1; i < 4; ++i)
    pairs = _mm512_add_epi16(pairs, _mm512_maddubs_epi16(w.v[i], _mm512_loadu_si512(x + 64 * i)));
  to.v[0] = _mm512_add_epi32(to.v[0], _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
HASTEN_INLINE int32_t total(const ternary_sum& a) { return _mm512_reduce_add_epi32(a.v[0]); }
#endif

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

struct vec {
  __m256 a, b;
};
HASTEN_INLINE vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
HASTEN_INLINE vec broadcast(float f) { return {_mm256_set1_ps(f), _mm256_set1_ps(f)}; }
HASTEN_INLINE vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
HASTEN_INLINE void store(float* p, vec x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
HASTEN_INLINE vec in_register(vec x) { return x; }
HASTEN_INLINE vec fma(vec x, vec y, vec z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
HASTEN_INLINE vec mul(vec x, vec y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
HASTEN_INLINE vec add(vec x, vec y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
HASTEN_INLINE vec sub(vec x, vec y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
HASTEN_INLINE vec div(vec x, vec y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
HASTEN_INLINE vec min(vec x, vec y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
HASTEN_INLINE vec max(vec x, vec y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
HASTEN_INLINE vec abs(vec x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
HASTEN_INLINE vec where_less(vec a, vec b, vec yes, vec no) {
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(a.a, b.a, _CMP_LT_OQ)),
          _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(a.b, b.b, _CMP_LT_OQ))};
}
HASTEN_INLINE vec copysign(vec magnitude, vec sign) {
  const __m256 m = _mm256_set1_ps(-0.0f);
  return {_mm256_or_ps(_mm256_and_ps(m, sign.a), _mm256_andnot_ps(m, magnitude.a)),
          _mm256_or_ps(_mm256_and_ps(m, sign.b), _mm256_andnot_ps(m, magnitude.b))};
}
HASTEN_INLINE vec round(vec x) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, nearest), _mm256_round_ps(x.b, nearest)};
}
HASTEN_INLINE __m256 power2(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
// a * 2^n for whole n in [-252, 254]: in two steps, so that results as small as subnormals come out right.
HASTEN_INLINE vec scale2(vec x, vec n) {
  const vec half = round(mul(n, broadcast(0.5f))), rest = sub(n, half);
  return {_mm256_mul_ps(_mm256_mul_ps(x.a, power2(half.a)), power2(rest.a)),
          _mm256_mul_ps(_mm256_mul_ps(x.b, power2(half.b)), power2(rest.b))};
}
HASTEN_INLINE void store_bf16(uint16_t* p, vec x) {
  float f[kLanes];
  store(f, x);
  for (int i = 0; i < kLanes; ++i) p[i] = to_bf16(f[i]);
}
HASTEN_INLINE float sum(vec x) {
  const __m256 s = _mm256_add_ps(x.a, x.b);
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
HASTEN_INLINE float largest(vec x) {
  const __m256 s = _mm256_max_ps(x.a, x.b);
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
HASTEN_INLINE vec broadcast_fp16(uint16_t h) {
  const __m256 f = _mm256_cvtph_ps(_mm_set1_epi16(short(h)));
  return {f, f};
}
HASTEN_INLINE __m256 widen_bf16(__m128i h) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
HASTEN_INLINE vec load_bf16(const uint16_t* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  return {widen_bf16(_mm_loadu_si128(q)), widen_bf16(_mm_loadu_si128(q + 1))};
}
HASTEN_INLINE vec load_int8(const int8_t* p) {
  const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(b, 8)))};
}
HASTEN_INLINE void load_int4(const uint8_t* p, vec& low, vec& high) {
  const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m256i first = _mm256_cvtepu8_epi32(b), second = _mm256_cvtepu8_epi32(_mm_srli_si128(b, 8));
  const __m256i mask = _mm256_set1_epi32(15);
  low = {_mm256_cvtepi32_ps(_mm256_and_si256(first, mask)), _mm256_cvtepi32_ps(_mm256_and_si256(second, mask))};
  high = {_mm256_cvtepi32_ps(_mm256_srli_epi32(first, 4)), _mm256_cvtepi32_ps(_mm256_srli_epi32(second, 4))};
}

HASTEN_INLINE vec load_fp16(const uint16_t* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
HASTEN_INLINE void store_int8(int8_t* p, vec x) {
  const __m256i pairs = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
  const __m256i bytes = _mm256_packs_epi16(pairs, pairs);  // of 4: a0 b0 a0 b0 | a1 b1 a1 b1
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(bytes, order)));
}
HASTEN_INLINE void sum4(float* out, vec a, vec b, vec c, vec d) {
  const __m256 ab = _mm256_hadd_ps(_mm256_add_ps(a.a, a.b), _mm256_add_ps(b.a, b.b));
  const __m256 cd = _mm256_hadd_ps(_mm256_add_ps(c.a, c.b), _mm256_add_ps(d.a, d.b));
  const __m256 all = _mm256_hadd_ps(ab, cd);
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}

struct signed_bytes {
  __m256i v[2];
};
HASTEN_INLINE __m256i load_32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
HASTEN_INLINE signed_bytes load_signed(const int8_t* p) { return {{load_32(p), load_32(p + 32)}}; }
HASTEN_INLINE vec load_fp16_part(const uint16_t* p, int64_t count) {
  if (count >= 16) return load_fp16(p);
  uint16_t kept[16] = {};
  for (int64_t i = 0; i < count; ++i) kept[i] = p[i];
  return load_fp16(kept);
}
HASTEN_INLINE signed_bytes load_signed(const int8_t* p, int64_t count) {
  if (count >= 64) return load_signed(p);
  alignas(64) int8_t kept[64] = {};
  std::memcpy(kept, p, size_t(count));
  return load_signed(kept);
}
HASTEN_INLINE __m256i dot_bytes(__m256i unsigned_codes, __m256i signed_codes) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned_codes, signed_codes), _mm256_set1_epi16(1));
}
HASTEN_INLINE vec dot_signed(signed_bytes w, const int8_t* x) {
  __m256i total[2];
  for (int i = 0; i < 2; ++i)
    total[i] = dot_bytes(_mm256_abs_epi8(w.v[i]), _mm256_sign_epi8(load_32(x + 32 * i), w.v[i]));
  return {_mm256_cvtepi32_ps(total[0]), _mm256_cvtepi32_ps(total[1])};
}
struct ternaries {
  __m256i v[4][2];
};
struct ternary_sum {
  __m256i v[2];
};
HASTEN_INLINE ternaries load_ternaries(const uint8_t* p) {
  const __m256i lower = _mm256_set1_epi32(int(kTernaryLower)), nibble = _mm256_set1_epi8(15);
  const __m256i upper = _mm256_broadcastsi128_si256(_mm_setr_epi32(0x01010101, 0x02020202, 0, 0x01010101));
  ternaries w;
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const __m256i b = load_32(p + 32 * half);
    const __m256i low = _mm256_and_si256(b, nibble), high = _mm256_and_si256(_mm256_srli_epi16(b, 4), nibble);
    w.v[0][half] = _mm256_shuffle_epi8(lower, low);
    w.v[1][half] = _mm256_shuffle_epi8(upper, low);
    w.v[2][half] = _mm256_shuffle_epi8(lower, high);
    w.v[3][half] = _mm256_shuffle_epi8(upper, high);
  }
  return w;
}
HASTEN_INLINE ternary_sum no_products() { return {{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }
HASTEN_INLINE void add_products(ternary_sum& to, const ternaries& w, const int8_t* x) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    // A sum of two products is within 512, so that four of them stay within 16 bits.
    __m256i pairs = _mm256_maddubs_epi16(w.v[0][half], load_32(x + 32 * half));
#pragma GCC unroll 3
    for (int i = 1; i < 4; ++i)
      pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w.v[i][half], load_32(x + 64 * i + 32 * half)));
    to.v[half] = _mm256_add_epi32(to.v[half], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
}
HASTEN_INLINE int32_t total(const ternary_sum& a) {
  const __m256i both = _mm256_add_epi32(a.v[0], a.v[1]);
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

#elif defined(__aarch64__)

struct vec {
  float32x4_t v[4];
};
#define HASTEN_EACH_QUARTER _Pragma("GCC unroll 4") for (int i = 0; i < 4; ++i)
HASTEN_INLINE vec broadcast(float f) {
  const float32x4_t q = vdupq_n_f32(f);
  return {{q, q, q, q}};
}
HASTEN_INLINE vec zero() { return broadcast(0); }
HASTEN_INLINE vec broadcast_fp16(uint16_t h) { return broadcast(from_fp16(h)); }
HASTEN_INLINE vec load(const float* p) {
  return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}
HASTEN_INLINE void store(float* p, vec a) { HASTEN_EACH_QUARTER vst1q_f32(p + 4 * i, a.v[i]); }
HASTEN_INLINE vec in_register(vec a) { return a; }
HASTEN_INLINE vec fma(vec a, vec b, vec c) {
  HASTEN_EACH_QUARTER c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
  return c;
}
HASTEN_INLINE vec mul(vec a, vec b) {
  HASTEN_EACH_QUARTER a.v[i] = vmulq_f32(a.v[i], b.v[i]);
  return a;
}
HASTEN_INLINE vec add(vec a, vec b) {
  HASTEN_EACH_QUARTER a.v[i] = vaddq_f32(a.v[i], b.v[i]);
  return a;
}
HASTEN_INLINE vec sub(vec a, vec b) {
  HASTEN_EACH_QUARTER a.v[i] = vsubq_f32(a.v[i], b.v[i]);
  return a;
}
HASTEN_INLINE vec div(vec a, vec b) {
  HASTEN_EACH_QUARTER a.v[i] = vdivq_f32(a.v[i], b.v[i]);
  return a;
}
HASTEN_INLINE vec where_less(vec a, vec b, vec yes, vec no) {
  HASTEN_EACH_QUARTER no.v[i] = vbslq_f32(vcltq_f32(a.v[i], b.v[i]), yes.v[i], no.v[i]);
  return no;
}
// The second where one is not a number, as everywhere.
HASTEN_INLINE vec min(vec a, vec b) { return where_less(a, b, a, b); }
HASTEN_INLINE vec max(vec a, vec b) { return where_less(b, a, a, b); }
HASTEN_INLINE vec abs(vec a) {
  HASTEN_EACH_QUARTER a.v[i] = vabsq_f32(a.v[i]);
  return a;
}
HASTEN_INLINE vec copysign(vec magnitude, vec sign) {
  HASTEN_EACH_QUARTER magnitude.v[i] = vbslq_f32(vdupq_n_u32(0x80000000u), sign.v[i], magnitude.v[i]);
  return magnitude;
}
HASTEN_INLINE vec round(vec a) {
  HASTEN_EACH_QUARTER a.v[i] = vrndnq_f32(a.v[i]);
  return a;
}
HASTEN_INLINE float32x4_t power2(float32x4_t n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23));
}
// In two steps, so that results as small as subnormals come out right.
HASTEN_INLINE vec scale2(vec a, vec n) {
  const vec half = round(mul(n, broadcast(0.5f))), rest = sub(n, half);
  HASTEN_EACH_QUARTER a.v[i] = vmulq_f32(vmulq_f32(a.v[i], power2(half.v[i])), power2(rest.v[i]));
  return a;
}
HASTEN_INLINE void store_bf16(uint16_t* p, vec a) {
  float f[kLanes];
  store(f, a);
  for (int i = 0; i < kLanes; ++i) p[i] = to_bf16(f[i]);
}
HASTEN_INLINE float32x4_t quarters(vec a) {
  return vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
}
HASTEN_INLINE float sum(vec a) {
  const float32x4_t q = quarters(a);
  return (vgetq_lane_f32(q, 0) + vgetq_lane_f32(q, 1)) + (vgetq_lane_f32(q, 2) + vgetq_lane_f32(q, 3));
}
HASTEN_INLINE void sum4(float* out, vec a, vec b, vec c, vec d) {
  vst1q_f32(out, vpaddq_f32(vpaddq_f32(quarters(a), quarters(b)), vpaddq_f32(quarters(c), quarters(d))));
}
HASTEN_INLINE float largest(vec a) {
  return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[1]), vmaxq_f32(a.v[2], a.v[3])));
}
HASTEN_INLINE vec load_bf16(const uint16_t* p) {
  vec r;
  HASTEN_EACH_QUARTER r.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16));
  return r;
}
HASTEN_INLINE vec load_fp16(const uint16_t* p) {
  vec r;
  HASTEN_EACH_QUARTER r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
  return r;
}
HASTEN_INLINE vec floats_of(int8x16_t b) {
  const int16x8_t low = vmovl_s8(vget_low_s8(b)), high = vmovl_high_s8(b);
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))}};
}
HASTEN_INLINE vec load_int8(const int8_t* p) { return floats_of(vld1q_s8(p)); }
HASTEN_INLINE void load_int4(const uint8_t* p, vec& low, vec& high) {
  const uint8x16_t b = vld1q_u8(p);
  low = floats_of(vreinterpretq_s8_u8(vandq_u8(b, vdupq_n_u8(15))));
  high = floats_of(vreinterpretq_s8_u8(vshrq_n_u8(b, 4)));
}
HASTEN_INLINE void store_int8(int8_t* p, vec a) {
  const auto two = [&](int i) HASTEN_LAMBDA {
    return vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(a.v[i])), vqmovn_s32(vcvtnq_s32_f32(a.v[i + 1])));
  };
  vst1q_s8(p, vcombine_s8(vqmovn_s16(two(0)), vqmovn_s16(two(2))));
}

#else

struct vec {
  float v[kLanes];
};
HASTEN_INLINE vec broadcast(float f) {
  vec r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = f;
  return r;
}
HASTEN_INLINE vec zero() { return broadcast(0); }
HASTEN_INLINE vec broadcast_fp16(uint16_t h) { return broadcast(from_fp16(h)); }
HASTEN_INLINE vec load(const float* p) {
  vec r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
HASTEN_INLINE void store(float* p, vec a) { std::memcpy(p, a.v, sizeof a.v); }
HASTEN_INLINE vec in_register(vec a) { return a; }
HASTEN_INLINE vec fma(vec a, vec b, vec c) {
  for (int i = 0; i < kLanes; ++i) c.v[i] += a.v[i] * b.v[i];
  return c;
}
HASTEN_INLINE vec mul(vec a, vec b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] *= b.v[i];
  return a;
}
HASTEN_INLINE vec add(vec a, vec b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] += b.v[i];
  return a;
}
HASTEN_INLINE vec sub(vec a, vec b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] -= b.v[i];
  return a;
}
HASTEN_INLINE vec div(vec a, vec b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] /= b.v[i];
  return a;
}
HASTEN_INLINE vec min(vec a, vec b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
  return a;
}
HASTEN_INLINE vec max(vec a, vec b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
  return a;
}
HASTEN_INLINE vec abs(vec a) {
  for (int i = 0; i < kLanes; ++i) a.v[i] = __builtin_fabsf(a.v[i]);
  return a;
}
HASTEN_INLINE vec where_less(vec a, vec b, vec yes, vec no) {
  for (int i = 0; i < kLanes; ++i)
    if (a.v[i] < b.v[i]) no.v[i] = yes.v[i];
  return no;
}
HASTEN_INLINE vec copysign(vec magnitude, vec sign) {
  for (int i = 0; i < kLanes; ++i) magnitude.v[i] = __builtin_copysignf(magnitude.v[i], sign.v[i]);
  return magnitude;
}
// To the nearest whole number, for |a| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction.
HASTEN_INLINE vec round(vec a) {
  for (int i = 0; i < kLanes; ++i) {
    volatile float shifted = a.v[i] + 0x1.8p23f;
    a.v[i] = shifted - 0x1.8p23f;
  }
  return a;
}
HASTEN_INLINE float power2(int n) {
  const uint32_t bits = uint32_t(n + 127) << 23;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
HASTEN_INLINE vec scale2(vec a, vec n) {
  for (int i = 0; i < kLanes; ++i) {
    const int whole = int(n.v[i]), half = whole / 2;
    a.v[i] = a.v[i] * power2(half) * power2(whole - half);
  }
  return a;
}
HASTEN_INLINE void store_bf16(uint16_t* p, vec a) {
  for (int i = 0; i < kLanes; ++i) p[i] = to_bf16(a.v[i]);
}
HASTEN_INLINE float sum(vec a) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += a.v[i];
  return total;
}
HASTEN_INLINE float largest(vec a) {
  float most = a.v[0];
  for (int i = 1; i < kLanes; ++i) most = a.v[i] > most ? a.v[i] : most;
  return most;
}
HASTEN_INLINE vec load_bf16(const uint16_t* p) {
  uint32_t bits[kLanes];
  vec r;
  for (int i = 0; i < kLanes; ++i) bits[i] = uint32_t(p[i]) << 16;
  std::memcpy(r.v, bits, sizeof bits);
  return r;
}
HASTEN_INLINE vec load_int8(const int8_t* p) {
  vec r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = float(p[i]);
  return r;
}
HASTEN_INLINE void load_int4(const uint8_t* p, vec& low, vec& high) {
  for (int i = 0; i < kLanes; ++i) {
    low.v[i] = float(p[i] & 15);
    high.v[i] = float(p[i] >> 4);
  }
}

HASTEN_INLINE vec load_fp16(const uint16_t* p) {
  vec r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = from_fp16(p[i]);
  return r;
}
HASTEN_INLINE void store_int8(int8_t* p, vec a) {
  for (int i = 0; i < kLanes; ++i) p[i] = int8_t(int(a.v[i]));
}
HASTEN_INLINE void sum4(float* out, vec a, vec b, vec c, vec d) {
  out[0] = sum(a);
  out[1] = sum(b);
  out[2] = sum(c);
  out[3] = sum(d);
}

#endif

#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)

struct signed_bytes {
  int8_t p[64];
};
HASTEN_INLINE signed_bytes load_signed(const int8_t* p, int64_t count) {
  signed_bytes r = {};
  std::memcpy(r.p, p, size_t(count < 64 ? count : 64));
  return r;
}
HASTEN_INLINE vec load_fp16_part(const uint16_t* p, int64_t count) {
  float f[kLanes] = {};
  for (int64_t i = 0; i < kLanes && i < count; ++i) f[i] = from_fp16(p[i]);
  return load(f);
}
HASTEN_INLINE vec dot_signed(signed_bytes w, const int8_t* x) {
  float f[kLanes] = {};
  for (int g = 0; g < 2; ++g) {
    int32_t total = 0;
    for (int j = 0; j < 32; ++j) total += w.p[32 * g + j] * x[32 * g + j];
    f[8 * g] = float(total);
  }
  return load(f);
}
struct ternaries {
  uint8_t v[256];
};
struct ternary_sum {
  int32_t v;
};
HASTEN_INLINE ternaries load_ternaries(const uint8_t* p) {
  ternaries w;
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 64; ++j) w.v[64 * i + j] = uint8_t(1 + (p[j] >> 2 * i & 1) - (p[j] >> (2 * i + 1) & 1));
  return w;
}
HASTEN_INLINE ternary_sum no_products() { return {0}; }
HASTEN_INLINE void add_products(ternary_sum& to, const ternaries& w, const int8_t* x) {
  int32_t sum = 0;
  for (int k = 0; k < 256; ++k) sum += w.v[k] * x[k];
  to.v += sum;
}
HASTEN_INLINE int32_t total(const ternary_sum& a) { return a.v; }

#endif

// e^a to about 1 unit in the last place: a = n ln 2 + r with |r| <= ln 2 / 2, then the Taylor-like
// polynomial of Cephes' expf. Arguments beyond +-88 give 0 (or a subnormal) and the largest powers.
HASTEN_INLINE vec exp(vec a) {
  a = min(max(a, broadcast(-103.0f)), broadcast(88.7f));
  const vec n = round(mul(a, broadcast(1.44269504088896341f)));
  vec r = fma(n, broadcast(-0.693359375f), a);
  r = fma(n, broadcast(2.12194440e-4f), r);
  vec p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(mul(p, r), r, add(r, broadcast(1.0f)));
  return scale2(p, n);
}

// 2^a for a <= 127, within 1e-7 of it: a polynomial of degree 5 on [-1/2, 1/2], fitted for relative error.
HASTEN_INLINE vec exp2(vec a) {
  a = max(a, broadcast(-150.0f));
  const vec n = round(a), r = sub(a, n);
  vec p = broadcast(1.3264727065e-3f);
  p = fma(p, r, broadcast(9.6715126489e-3f));
  p = fma(p, r, broadcast(5.5507337437e-2f));
  p = fma(p, r, broadcast(2.4022242085e-1f));
  p = fma(p, r, broadcast(6.9314697760e-1f));
  p = fma(p, r, broadcast(1.0f));
  return scale2(p, n);
}

// 2^a - 1, exact to a few units in the last place also where 2^a is close to 1.
HASTEN_INLINE vec exp2m1(vec a) {
  a = max(a, broadcast(-150.0f));
  const vec n = round(a), r = sub(a, n);
  vec p = broadcast(1.5353361891e-4f);
  p = fma(p, r, broadcast(1.3398874422e-3f));
  p = fma(p, r, broadcast(9.6184373578e-3f));
  p = fma(p, r, broadcast(5.5503324711e-2f));
  p = fma(p, r, broadcast(2.4022647914e-1f));
  p = fma(p, r, broadcast(6.9314720286e-1f));
  return add(scale2(mul(p, r), n), sub(scale2(broadcast(1.0f), n), broadcast(1.0f)));
}

HASTEN_INLINE vec sigmoid(vec a) { return div(broadcast(1.0f), add(broadcast(1.0f), exp(sub(zero(), a)))); }

// Near 0 it errs by 1e-7 at most, in absolute terms.
HASTEN_INLINE vec tanh(vec a) {
  const vec e = exp(mul(broadcast(-2.0f), abs(a)));
  return copysign(div(sub(broadcast(1.0f), e), add(broadcast(1.0f), e)), a);
}

// The error function within 2e-7: Abramowitz and Stegun, 7.1.26.
HASTEN_INLINE vec erf(vec a) {
  const vec x = abs(a), t = div(broadcast(1.0f), fma(broadcast(0.3275911f), x, broadcast(1.0f)));
  vec p = broadcast(1.061405429f);
  for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = fma(p, t, broadcast(c));
  return copysign(sub(broadcast(1.0f), mul(mul(p, t), exp(sub(zero(), mul(x, x))))), a);
}

// log(1 + e^a): log1p(w) is 2 artanh(w / (2 + w)), here for w = e^-|a| in (0, 1].
HASTEN_INLINE vec softplus(vec a) {
  const vec w = exp(sub(zero(), abs(a)));
  const vec s = div(w, add(w, broadcast(2.0f))), q = mul(s, s);
  vec p = broadcast(2.0f / 13);
  p = fma(p, q, broadcast(2.0f / 11));
  p = fma(p, q, broadcast(2.0f / 9));
  p = fma(p, q, broadcast(2.0f / 7));
  p = fma(p, q, broadcast(2.0f / 5));
  p = fma(p, q, broadcast(2.0f / 3));
  p = fma(p, q, broadcast(2.0f));
  return fma(p, s, max(a, zero()));
}

// The first `count` <= 16 numbers, zeros behind; writing likewise touches nothing beyond them.
HASTEN_INLINE vec load_part(const float* p, int64_t count) {
  if (count >= kLanes) return load(p);
  float f[kLanes] = {};
  std::memcpy(f, p, size_t(count) * sizeof(float));
  return load(f);
}
HASTEN_INLINE vec load_part(const uint16_t* p, int64_t count) {
  if (count >= kLanes) return load_bf16(p);
  uint16_t f[kLanes] = {};
  std::memcpy(f, p, size_t(count) * sizeof(uint16_t));
  return load_bf16(f);
}
HASTEN_INLINE void store_part(float* p, vec a, int64_t count) {
  if (count >= kLanes) return store(p, a);
  float f[kLanes];
  store(f, a);
  std::memcpy(p, f, size_t(count) * sizeof(float));
}
HASTEN_INLINE void store_part(uint16_t* p, vec a, int64_t count) {
  if (count >= kLanes) return store_bf16(p, a);
  uint16_t f[kLanes];
  store_bf16(f, a);
  std::memcpy(p, f, size_t(count) * sizeof(uint16_t));
}

}  // namespace
}  // namespace hasten

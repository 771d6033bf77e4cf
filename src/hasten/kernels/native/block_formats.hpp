// Rows of ggml's block formats, see hasten/kernels/block_formats.py: each gives the codes of four groups, and scales and
// mins of sixteen, as formats.hpp says. Facts from ggml (ggml-common.h, ggml-quants.c).
#pragma once

#include "bytes.hpp"
#include "types.hpp"

namespace hasten {
namespace {

#if defined(__AVX512F__) && defined(__AVX512BW__)

// 16 bytes at p, four times.
HASTEN_INLINE bytes repeat_sixteen(const void* p) {
  return {_mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(p)))};
}
// The 16 bytes at each of four places.
HASTEN_INLINE bytes four_sixteens(const void* a, const void* b, const void* c, const void* d) {
  const auto at = [](const void* p) HASTEN_LAMBDA { return _mm_loadu_si128(static_cast<const __m128i*>(p)); };
  const __m512i first = _mm512_inserti32x4(_mm512_castsi128_si512(at(a)), at(b), 1);
  return {_mm512_inserti32x4(_mm512_inserti32x4(first, at(c), 2), at(d), 3)};
}
HASTEN_INLINE bytes both(bytes a, int8_t mask) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(mask))}; }
HASTEN_INLINE bytes either(bytes a, bytes b) { return {_mm512_or_si512(a.v, b.v)}; }
// Of a what the mask says, and b.
HASTEN_INLINE bytes both_or(bytes a, int8_t mask, bytes b) {
  return {_mm512_ternarylogic_epi64(a.v, _mm512_set1_epi8(mask), b.v, 0xea)};
}
// Sixteen i, as four times 32 bits, turned by First + 2 i bits to the right.
template <int First>
HASTEN_INLINE bytes turned(bytes a) {
  constexpr int f = First + 32;
  return {_mm512_rorv_epi32(a.v, _mm512_setr_epi32(f % 32, f % 32, f % 32, f % 32, (f + 2) % 32, (f + 2) % 32,
                                                   (f + 2) % 32, (f + 2) % 32, (f + 4) % 32, (f + 4) % 32, (f + 4) % 32,
                                                   (f + 4) % 32, (f + 6) % 32, (f + 6) % 32, (f + 6) % 32,
                                                   (f + 6) % 32))};
}
// `value` in the bytes of sixteen i that have bit first + i.
HASTEN_INLINE bytes where_bit(bytes a, int first, int8_t value) {
  const __m512i one = _mm512_setr_epi32(0x01010101, 0x01010101, 0x01010101, 0x01010101, 0x02020202, 0x02020202,
                                        0x02020202, 0x02020202, 0x04040404, 0x04040404, 0x04040404, 0x04040404,
                                        0x08080808, 0x08080808, 0x08080808, 0x08080808);
  return {_mm512_maskz_set1_epi8(_mm512_test_epi8_mask(a.v, _mm512_slli_epi16(one, first)), value)};
}
// `value` in byte i where bit i is set.
HASTEN_INLINE bytes where_set(uint64_t set, int8_t value) { return {_mm512_maskz_set1_epi8(set, value)}; }
HASTEN_INLINE bytes looked_up(const int8_t* table, bytes codes) {
  return {_mm512_shuffle_epi8(repeat_sixteen(table).v, codes.v)};
}
// Of four times 32 weights whose low nibbles stand in a and whose high ones in b, two groups a time: see Q4_K.
HASTEN_INLINE bytes first_halves(bytes low, bytes high) {
  return {_mm512_permutex2var_epi64(low.v, _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), high.v)};
}
HASTEN_INLINE bytes second_halves(bytes low, bytes high) {
  return {_mm512_permutex2var_epi64(low.v, _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15), high.v)};
}
// 16 signed bytes, the lowest first, as floats.
HASTEN_INLINE vec floats_of(__m128i a) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(a))}; }
HASTEN_INLINE vec floats_of_halves(__m256i a) { return {_mm512_cvtph_ps(a)}; }
// Of 32 bytes every second one, from `part` on, as floats.
HASTEN_INLINE vec alternate(__m256i all, int part) {
  return {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(_mm512_cvtepu16_epi32(all), part ? 16 : 24), 24))};
}
// Eight times a, eight times b.
HASTEN_INLINE vec two_fp16(uint16_t a, uint16_t b) {
  return {_mm512_cvtph_ps(_mm256_set_m128i(_mm_set1_epi16(short(b)), _mm_set1_epi16(short(a))))};
}

#else

HASTEN_INLINE uint64_t eight(const void* p) {
  uint64_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

HASTEN_INLINE __m128i load_16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
HASTEN_INLINE bytes repeat_sixteen(const void* p) {
  const __m256i twice = _mm256_broadcastsi128_si256(load_16(p));
  return {twice, twice};
}
HASTEN_INLINE bytes four_sixteens(const void* a, const void* b, const void* c, const void* d) {
  return {_mm256_set_m128i(load_16(b), load_16(a)), _mm256_set_m128i(load_16(d), load_16(c))};
}
HASTEN_INLINE bytes both(bytes x, int8_t mask) {
  const __m256i m = _mm256_set1_epi8(mask);
  return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
}
HASTEN_INLINE bytes either(bytes x, bytes y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
HASTEN_INLINE bytes both_or(bytes x, int8_t mask, bytes y) { return either(both(x, mask), y); }
HASTEN_INLINE __m256i two_counts(int a, int b) { return _mm256_setr_epi32(a, a, a, a, b, b, b, b); }
template <int First>
HASTEN_INLINE bytes turned(bytes x) {
  constexpr int f = First + 32;
  const auto turn = [](__m256i v, int a, int b) HASTEN_LAMBDA {
    // A count of 32 or more gives zeros, as a turn by 0 needs them.
    return _mm256_or_si256(_mm256_srlv_epi32(v, two_counts(a, b)), _mm256_sllv_epi32(v, two_counts(32 - a, 32 - b)));
  };
  return {turn(x.a, f % 32, (f + 2) % 32), turn(x.b, (f + 4) % 32, (f + 6) % 32)};
}
HASTEN_INLINE bytes where_bit(bytes x, int first, int8_t value) {
  const auto chosen = [&](__m256i v, int a, int b) HASTEN_LAMBDA {
    const __m256i bit = _mm256_slli_epi16(two_counts(a, b), first);
    return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(v, bit), bit), _mm256_set1_epi8(value));
  };
  return {chosen(x.a, 0x01010101, 0x02020202), chosen(x.b, 0x04040404, 0x08080808)};
}
HASTEN_INLINE bytes where_set(uint64_t set, int8_t value) {
  const auto chosen = [&](uint32_t bits) HASTEN_LAMBDA {
    const __m256i place = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x(int64_t(0x8040201008040201));
    const __m256i spread = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(int(bits)), place), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(spread, bit), _mm256_set1_epi8(value));
  };
  return {chosen(uint32_t(set)), chosen(uint32_t(set >> 32))};
}
HASTEN_INLINE bytes looked_up(const int8_t* table, bytes codes) {
  const __m256i t = _mm256_broadcastsi128_si256(load_16(table));
  return {_mm256_shuffle_epi8(t, codes.a), _mm256_shuffle_epi8(t, codes.b)};
}
HASTEN_INLINE bytes first_halves(bytes low, bytes high) {
  return {_mm256_permute2x128_si256(low.a, high.a, 0x20), _mm256_permute2x128_si256(low.b, high.b, 0x20)};
}
HASTEN_INLINE bytes second_halves(bytes low, bytes high) {
  return {_mm256_permute2x128_si256(low.a, high.a, 0x31), _mm256_permute2x128_si256(low.b, high.b, 0x31)};
}
HASTEN_INLINE vec floats_of(__m128i a) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(a)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(a, 8)))};
}
HASTEN_INLINE vec floats_of_halves(__m256i a) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(a)), _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1))};
}
HASTEN_INLINE vec alternate(__m256i all, int part) {
  const auto eight_floats = [&](__m128i v) HASTEN_LAMBDA {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), part ? 16 : 24), 24));
  };
  return {eight_floats(_mm256_castsi256_si128(all)), eight_floats(_mm256_extracti128_si256(all, 1))};
}
HASTEN_INLINE vec two_fp16(uint16_t a, uint16_t b) {
  return {_mm256_cvtph_ps(_mm_set1_epi16(short(a))), _mm256_cvtph_ps(_mm_set1_epi16(short(b)))};
}

#elif defined(__aarch64__)

HASTEN_INLINE bytes four_sixteens(const void* a, const void* b, const void* c, const void* d) {
  const auto at = [](const void* p) HASTEN_LAMBDA { return vld1q_s8(static_cast<const int8_t*>(p)); };
  return {{at(a), at(b), at(c), at(d)}};
}
HASTEN_INLINE bytes repeat_sixteen(const void* p) { return all_alike(vld1q_s8(static_cast<const int8_t*>(p))); }
HASTEN_INLINE bytes both(bytes a, int8_t mask) {
  HASTEN_EACH_QUARTER a.v[i] = vandq_s8(a.v[i], vdupq_n_s8(mask));
  return a;
}
HASTEN_INLINE bytes either(bytes a, bytes b) {
  HASTEN_EACH_QUARTER a.v[i] = vorrq_s8(a.v[i], b.v[i]);
  return a;
}
HASTEN_INLINE bytes both_or(bytes a, int8_t mask, bytes b) { return either(both(a, mask), b); }
template <int First>
HASTEN_INLINE bytes turned(bytes a) {
  HASTEN_EACH_QUARTER {
    // A shift by 32 gives zeros, as a turn by 0 needs them.
    const int by = (First + 32 + 2 * i) % 32;
    const uint32x4_t v = vreinterpretq_u32_s8(a.v[i]);
    a.v[i] = vreinterpretq_s8_u32(vorrq_u32(vshlq_u32(v, vdupq_n_s32(-by)), vshlq_u32(v, vdupq_n_s32(32 - by))));
  }
  return a;
}
HASTEN_INLINE bytes where_bit(bytes a, int first, int8_t value) {
  HASTEN_EACH_QUARTER {
    const uint8x16_t set = vtstq_s8(a.v[i], vdupq_n_s8(int8_t(1 << (first + i))));
    a.v[i] = vandq_s8(vreinterpretq_s8_u8(set), vdupq_n_s8(value));
  }
  return a;
}
HASTEN_INLINE bytes where_set(uint64_t set, int8_t value) {
  const uint8x8_t bit = vcreate_u8(0x8040201008040201);
  bytes r;
  HASTEN_EACH_QUARTER {
    const uint8x8_t low = vdup_n_u8(uint8_t(set >> 16 * i)), high = vdup_n_u8(uint8_t(set >> (16 * i + 8)));
    const uint8x16_t found = vcombine_u8(vtst_u8(low, bit), vtst_u8(high, bit));
    r.v[i] = vandq_s8(vreinterpretq_s8_u8(found), vdupq_n_s8(value));
  }
  return r;
}
HASTEN_INLINE bytes looked_up(const int8_t* table, bytes codes) {
  const int8x16_t t = vld1q_s8(table);
  HASTEN_EACH_QUARTER codes.v[i] = vqtbl1q_s8(t, vreinterpretq_u8_s8(codes.v[i]));
  return codes;
}
HASTEN_INLINE bytes first_halves(bytes low, bytes high) { return {{low.v[0], high.v[0], low.v[2], high.v[2]}}; }
HASTEN_INLINE bytes second_halves(bytes low, bytes high) { return {{low.v[1], high.v[1], low.v[3], high.v[3]}}; }
HASTEN_INLINE vec floats_of(uint64_t a, uint64_t b) { return floats_of(vcombine_s8(vcreate_s8(a), vcreate_s8(b))); }
HASTEN_INLINE vec alternate(uint64_t a, uint64_t b, uint64_t c, uint64_t d, int part) {
  const int8x16_t low = vcombine_s8(vcreate_s8(a), vcreate_s8(b)), high = vcombine_s8(vcreate_s8(c), vcreate_s8(d));
  return floats_of(part ? vuzp2q_s8(low, high) : vuzp1q_s8(low, high));
}
HASTEN_INLINE vec two_fp16(uint16_t a, uint16_t b) {
  const float32x4_t first = vdupq_n_f32(from_fp16(a)), second = vdupq_n_f32(from_fp16(b));
  return {{first, first, second, second}};
}

#else

HASTEN_INLINE bytes four_sixteens(const void* a, const void* b, const void* c, const void* d) {
  bytes r;
  const void* from[] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) std::memcpy(r.v + 16 * i, from[i], 16);
  return r;
}
HASTEN_INLINE bytes repeat_sixteen(const void* p) { return four_sixteens(p, p, p, p); }
HASTEN_INLINE bytes both(bytes a, int8_t mask) {
  for (int i = 0; i < 64; ++i) a.v[i] = int8_t(a.v[i] & mask);
  return a;
}
HASTEN_INLINE bytes either(bytes a, bytes b) {
  for (int i = 0; i < 64; ++i) a.v[i] = int8_t(a.v[i] | b.v[i]);
  return a;
}
HASTEN_INLINE bytes both_or(bytes a, int8_t mask, bytes b) {
  for (int i = 0; i < 64; ++i) a.v[i] = int8_t((a.v[i] & mask) | b.v[i]);
  return a;
}
template <int First>
HASTEN_INLINE bytes turned(bytes a) {
  for (int i = 0; i < 16; ++i) {
    const int by = (First + 32 + 2 * (i / 4)) % 32;
    uint32_t v;
    std::memcpy(&v, a.v + 4 * i, sizeof v);
    v = by ? v >> by | v << (32 - by) : v;
    std::memcpy(a.v + 4 * i, &v, sizeof v);
  }
  return a;
}
HASTEN_INLINE bytes where_bit(bytes a, int first, int8_t value) {
  for (int i = 0; i < 64; ++i) a.v[i] = uint8_t(a.v[i]) >> (first + i / 16) & 1 ? value : int8_t(0);
  return a;
}
HASTEN_INLINE bytes where_set(uint64_t set, int8_t value) {
  bytes r;
  for (int i = 0; i < 64; ++i) r.v[i] = set >> i & 1 ? value : int8_t(0);
  return r;
}
HASTEN_INLINE bytes looked_up(const int8_t* table, bytes codes) {
  for (int i = 0; i < 64; ++i) codes.v[i] = table[codes.v[i] & 15];
  return codes;
}
HASTEN_INLINE bytes first_halves(bytes low, bytes high) {
  return four_sixteens(low.v, high.v, low.v + 32, high.v + 32);
}
HASTEN_INLINE bytes second_halves(bytes low, bytes high) {
  return four_sixteens(low.v + 16, high.v + 16, low.v + 48, high.v + 48);
}
HASTEN_INLINE vec floats_of(uint64_t a, uint64_t b) {
  vec r;
  for (int i = 0; i < 16; ++i) r.v[i] = float(int8_t((i < 8 ? a : b) >> 8 * (i % 8)));
  return r;
}
HASTEN_INLINE vec alternate(uint64_t a, uint64_t b, uint64_t c, uint64_t d, int part) {
  const uint64_t all[] = {a, b, c, d};
  vec r;
  for (int i = 0; i < 16; ++i) r.v[i] = float(int8_t(all[i / 4] >> 8 * (2 * (i % 4) + part)));
  return r;
}
HASTEN_INLINE vec two_fp16(uint16_t a, uint16_t b) {
  vec r;
  for (int i = 0; i < 16; ++i) r.v[i] = from_fp16(i < 8 ? a : b);
  return r;
}

#endif
#endif

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

// 32 bytes, 16 of each of two places.
HASTEN_INLINE __m256i two_sixteens(const void* a, const void* b) {
  return _mm256_set_m128i(_mm_loadu_si128(static_cast<const __m128i*>(b)),
                          _mm_loadu_si128(static_cast<const __m128i*>(a)));
}
HASTEN_INLINE vec floats_of(uint64_t a, uint64_t b) { return floats_of(_mm_set_epi64x(int64_t(b), int64_t(a))); }
HASTEN_INLINE vec alternate(uint64_t a, uint64_t b, uint64_t c, uint64_t d, int part) {
  return alternate(_mm256_set_epi64x(int64_t(d), int64_t(c), int64_t(b), int64_t(a)), part);
}

#endif

HASTEN_INLINE uint16_t two_bytes(const uint8_t* p) {
  uint16_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
HASTEN_INLINE uint32_t four_bytes(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
HASTEN_INLINE uint64_t eight_bytes(const uint8_t* p) {
  uint64_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Where there are no vectors these are loops over bytes, too long to stand wherever they are used.
#if defined(__AVX2__) || defined(__aarch64__)
#define HASTEN_BLOCK_METHOD HASTEN_INLINE_METHOD
#else
#define HASTEN_BLOCK_METHOD __attribute__((noinline))
#endif

// How the codes of a format in blocks stand for weights: signed ones by themselves, from 0 on with mins, or less `n`.
enum class Coded { kSigned, kWithMins, kLess4 = 4, kLess16 = 16, kLess32 = 32 };

// A row of blocks of `Columns` weights and `Bytes` bytes.
template <int Columns, int Bytes, Coded How, int Parts>
struct BlockRow {
  static constexpr bool kCodes = true, kSigned = How == Coded::kSigned, kMins = How == Coded::kWithMins;
  static constexpr bool kAhead = true;
  static constexpr int kParts = Parts, kLess = kSigned || kMins ? 0 : int(How);
  static constexpr int64_t kBytes = Bytes;
  static constexpr int64_t kGroups = Columns / kGroup;  // of a block
  const uint8_t* w;
  BlockRow(const Matrix& m, int64_t n) : w(static_cast<const uint8_t*>(m.codes) + n * (m.in / Columns * Bytes)) {}
  HASTEN_INLINE_METHOD const uint8_t* block(int64_t g) const { return w + g / kGroups * Bytes; }
  HASTEN_INLINE_METHOD void ask(int64_t g, int64_t count) const {
    ask_memory(w + g * Bytes / kGroups, count * Bytes / kGroups);
  }
  // The next block, where at least one more group is there than a block has.
  HASTEN_INLINE_METHOD const uint8_t* next(const uint8_t* p, int64_t left) const {
    return left > kGroups ? p + Bytes : p;
  }
};

// Formats in blocks of one group.
template <int Bytes, Coded How>
struct SmallBlockRow : BlockRow<32, Bytes, How, 1> {
  using Base = BlockRow<32, Bytes, How, 1>;
  using Base::Base;
  // 16 bytes at `offset` of each of four blocks; those that are not there repeat the last.
  HASTEN_INLINE_METHOD bytes sixteens(int64_t g, int64_t left, int offset) const {
    const uint8_t* p = this->w + g * Bytes + offset;
    return four_sixteens(p, p + (left > 1 ? 1 : 0) * Bytes, p + (left > 2 ? 2 : left - 1) * Bytes,
                         p + (left > 3 ? 3 : left - 1) * Bytes);
  }
  // The fp16 numbers at `offset` of sixteen blocks, zeros where there are none.
  HASTEN_INLINE_METHOD vec halves(int64_t g, int64_t left, int offset) const {
    const uint8_t* p = this->w + g * Bytes + offset;
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
    if (left >= 16) {  // put together in registers: what is written in pieces is not read as a whole for a while
      const auto at = [&](int i) HASTEN_LAMBDA { return short(two_bytes(p + i * Bytes)); };
      return floats_of_halves(_mm256_setr_epi16(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9),
                                                at(10), at(11), at(12), at(13), at(14), at(15)));
    }
#endif
    uint16_t found[16] = {};
    const int64_t count = left < 16 ? left : 16;
    for (int64_t i = 0; i < count; ++i) found[i] = two_bytes(p + i * Bytes);
    return load_fp16(found);
  }
  // Bits 0 to 15 of each block's fifth bits, or bits 16 to 31.
  HASTEN_INLINE_METHOD uint64_t fifth(int64_t g, int64_t left, int offset) const {
    const uint8_t* p = this->w + g * Bytes + offset;
    uint64_t found = two_bytes(p);
    for (int i = 1; i < 4; ++i)
      if (i < left) found |= uint64_t(two_bytes(p + i * Bytes)) << 16 * i;
    return found;
  }
};

template <>
struct Row<kQ5_0> : SmallBlockRow<22, Coded::kLess16> {
  using SmallBlockRow::SmallBlockRow;
  HASTEN_BLOCK_METHOD Quad quad(int64_t g, int64_t left) const {
    const bytes q = sixteens(g, left, 6);
    return {either(low_nibbles(q), where_set(fifth(g, left, 2), 16)),
            either(high_nibbles(q), where_set(fifth(g, left, 4), 16))};
  }
  HASTEN_BLOCK_METHOD vec scales(int64_t g, int64_t left, int) const { return halves(g, left, 0); }
};

template <>
struct Row<kQ5_1> : SmallBlockRow<24, Coded::kWithMins> {
  using SmallBlockRow::SmallBlockRow;
  HASTEN_BLOCK_METHOD Quad quad(int64_t g, int64_t left) const {
    const bytes q = sixteens(g, left, 8);
    return {either(low_nibbles(q), where_set(fifth(g, left, 4), 16)),
            either(high_nibbles(q), where_set(fifth(g, left, 6), 16))};
  }
  HASTEN_BLOCK_METHOD vec scales(int64_t g, int64_t left, int) const { return halves(g, left, 0); }
  HASTEN_BLOCK_METHOD vec mins(int64_t g, int64_t left, int) const { return halves(g, left, 2); }
};

alignas(16) constexpr int8_t kCurve[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
alignas(16) constexpr int8_t kFp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

template <>
struct Row<kIq4Nl> : SmallBlockRow<18, Coded::kSigned> {
  using SmallBlockRow::SmallBlockRow;
  HASTEN_INLINE_METHOD bytes raw(int64_t g, int64_t left) const { return sixteens(g, left, 2); }
  HASTEN_INLINE_METHOD static Quad split(bytes q) {
    return {looked_up(kCurve, low_nibbles(q)), looked_up(kCurve, high_nibbles(q))};
  }
  HASTEN_BLOCK_METHOD Quad quad(int64_t g, int64_t left) const { return split(raw(g, left)); }
  HASTEN_BLOCK_METHOD vec scales(int64_t g, int64_t left, int) const { return halves(g, left, 0); }
};

template <>
struct Row<kMxfp4> : SmallBlockRow<17, Coded::kSigned> {
  using SmallBlockRow::SmallBlockRow;
  HASTEN_INLINE_METHOD bytes raw(int64_t g, int64_t left) const { return sixteens(g, left, 1); }
  HASTEN_INLINE_METHOD static Quad split(bytes q) {
    return {looked_up(kFp4, low_nibbles(q)), looked_up(kFp4, high_nibbles(q))};
  }
  HASTEN_BLOCK_METHOD Quad quad(int64_t g, int64_t left) const { return split(raw(g, left)); }
  HASTEN_BLOCK_METHOD vec scales(int64_t g, int64_t left, int) const {
    uint32_t bits[16] = {};
    const int64_t count = left < 16 ? left : 16;
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t e = w[(g + i) * kBytes];
      bits[i] = e < 2 ? 0x00200000u << e : (e - 1) << 23;  // half of 2^(e - 127)
    }
    float found[16];
    std::memcpy(found, bits, sizeof found);
    return load(found);
  }
};

// Formats in blocks of eight groups.

template <>
struct Row<kQ2K> : BlockRow<256, 84, Coded::kWithMins, 2> {
  using BlockRow::BlockRow;
  HASTEN_BLOCK_METHOD Quad quad(int64_t g, int64_t) const {
    const uint8_t* q = block(g) + 16 + g % 8 * 8;
    return {both(turned<0>(repeat_sixteen(q)), 3), both(turned<0>(repeat_sixteen(q + 16)), 3)};
  }
  HASTEN_BLOCK_METHOD vec scales(int64_t g, int64_t left, int part) const { return factors_of(g, left, part, 0, 80); }
  HASTEN_BLOCK_METHOD vec mins(int64_t g, int64_t left, int part) const {
    return sub(zero(), factors_of(g, left, part, 4, 82));
  }

 private:
  HASTEN_INLINE_METHOD vec factors_of(int64_t g, int64_t left, int part, int shift, int at) const {
    constexpr uint64_t kNibbles = 0x0f0f0f0f0f0f0f0f;
    const uint8_t *p = block(g), *q = next(p, left);
    const auto four = [&](const uint8_t* s) HASTEN_LAMBDA { return eight_bytes(s) >> shift & kNibbles; };
    return mul(alternate(four(p), four(p + 8), four(q), four(q + 8), part),
               two_fp16(two_bytes(p + at), left > 8 ? two_bytes(q + at) : uint16_t(0)));
  }
};

template <>
struct Row<kQ3K> : BlockRow<256, 110, Coded::kLess4, 2> {
  using BlockRow::BlockRow;
  HASTEN_BLOCK_METHOD Quad quad(int64_t g, int64_t) const {
    const uint8_t *high = block(g), *q = high + 32 + g % 8 * 8;
    const int first = int(g % 8);
    return {both_or(turned<0>(repeat_sixteen(q)), 3, where_bit(repeat_sixteen(high), first, 4)),
            both_or(turned<0>(repeat_sixteen(q + 16)), 3, where_bit(repeat_sixteen(high + 16), first, 4))};
  }
  HASTEN_BLOCK_METHOD vec scales(int64_t g, int64_t left, int part) const {
    const uint8_t *p = block(g), *q = next(p, left);
    uint64_t a, b, c, d;
    sixteen(p + 96, a, b);
    sixteen(q + 96, c, d);
    return mul(sub(alternate(a, b, c, d, part), broadcast(32)),
               two_fp16(two_bytes(p + 108), left > 8 ? two_bytes(q + 108) : uint16_t(0)));
  }

 private:
  // 6 bits each: four of them in the nibbles of eight bytes, two in the quarters of four bytes.
  HASTEN_INLINE_METHOD static void sixteen(const uint8_t* p, uint64_t& a, uint64_t& b) {
    constexpr uint64_t kNibbles = 0x0f0f0f0f0f0f0f0f, kPairs = 0x03030303;
    const uint64_t low = eight_bytes(p), high = four_bytes(p + 8);
    a = (low & kNibbles) | (high & kPairs) << 4 | (high >> 2 & kPairs) << 36;
    b = (low >> 4 & kNibbles) | (high >> 4 & kPairs) << 4 | (high >> 6 & kPairs) << 36;
  }
};

// What Q4_K and Q5_K share: d, dmin, and 6 bits for each of eight scales and eight mins.
template <int Bytes>
struct SixBitRow : BlockRow<256, Bytes, Coded::kWithMins, 1> {
  using Base = BlockRow<256, Bytes, Coded::kWithMins, 1>;
  using Base::Base;
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
  HASTEN_INLINE_METHOD vec scales(int64_t g, int64_t left, int) const {
    const __m256i b = begins(g, left), codes = six_bits(b);
    return mul(floats_of(_mm_unpacklo_epi64(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1))),
               eight_halves(b, 0x0100, left));
  }
  HASTEN_INLINE_METHOD vec mins(int64_t g, int64_t left, int) const {
    const __m256i b = begins(g, left), codes = six_bits(b);
    // With the sign turned: what is taken away.
    return mul(floats_of(_mm_unpackhi_epi64(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1))),
               eight_halves(_mm256_xor_si256(b, _mm256_set1_epi32(int(0x80000000u))), 0x0302, left));
  }

 private:
  HASTEN_INLINE_METHOD __m256i begins(int64_t g, int64_t left) const {
    const uint8_t* p = this->block(g);
    return two_sixteens(p, this->next(p, left));
  }
  // The two bytes `which` of each beginning eight times, as fp16; 0 for the second one where it is not there.
  HASTEN_INLINE_METHOD static vec eight_halves(__m256i b, int which, int64_t left) {
    b = _mm256_shuffle_epi8(b, _mm256_set1_epi16(short(which)));
    return floats_of_halves(left > 8 ? b : _mm256_permute2x128_si256(b, b, 0x80));
  }
  // Eight scales and then eight mins of each beginning.
  HASTEN_INLINE_METHOD static __m256i six_bits(__m256i b) {
    const __m256i low_places = _mm256_broadcastsi128_si256(_mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
    const __m256i high_places = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11));
    const __m256i right = _mm256_broadcastsi128_si256(_mm_setr_epi32(0, 0, 0, 4));
    const __m256i mask = _mm256_broadcastsi128_si256(_mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
    const __m256i low = _mm256_and_si256(_mm256_srlv_epi32(_mm256_shuffle_epi8(b, low_places), right), mask);
    const __m256i high = _mm256_srli_epi16(_mm256_shuffle_epi8(b, high_places), 2);
    return _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi8(0x30)));
  }
#else
  HASTEN_BLOCK_METHOD vec scales(int64_t g, int64_t left, int) const {
    const uint8_t *p = this->block(g), *q = this->next(p, left);
    return mul(floats_of(eight_scales(p + 4), eight_scales(q + 4)),
               two_fp16(two_bytes(p), left > 8 ? two_bytes(q) : uint16_t(0)));
  }
  HASTEN_BLOCK_METHOD vec mins(int64_t g, int64_t left, int) const {
    const uint8_t *p = this->block(g), *q = this->next(p, left);
    // With the sign turned: what is taken away.
    return mul(floats_of(eight_mins(p + 4), eight_mins(q + 4)),
               two_fp16(two_bytes(p + 2) ^ 0x8000, left > 8 ? two_bytes(q + 2) ^ 0x8000 : uint16_t(0)));
  }

 private:
  HASTEN_INLINE_METHOD static uint64_t eight_scales(const uint8_t* p) {
    const uint32_t first = four_bytes(p), third = four_bytes(p + 8);
    return (first & 0x3f3f3f3f) | uint64_t((third & 0x0f0f0f0f) | (first >> 2 & 0x30303030)) << 32;
  }
  HASTEN_INLINE_METHOD static uint64_t eight_mins(const uint8_t* p) {
    const uint32_t second = four_bytes(p + 4), third = four_bytes(p + 8);
    return (second & 0x3f3f3f3f) | uint64_t((third >> 4 & 0x0f0f0f0f) | (second >> 2 & 0x30303030)) << 32;
  }
#endif
};

template <>
struct Row<kQ4K> : SixBitRow<144> {
  using SixBitRow::SixBitRow;
  // The 64 bytes that groups g to g + 3 stand in, two groups in the halves of the same bytes.
  HASTEN_INLINE_METHOD bytes raw_pairs(int64_t g) const { return load_bytes(block(g) + 16 + g % 8 * 16); }
  HASTEN_BLOCK_METHOD Quad quad(int64_t g, int64_t) const {
    const bytes q = raw_pairs(g);
    const bytes low = low_nibbles(q), high = high_nibbles(q);
    return {first_halves(low, high), second_halves(low, high)};
  }
};

template <>
struct Row<kQ5K> : SixBitRow<176> {
  using SixBitRow::SixBitRow;
  HASTEN_BLOCK_METHOD Quad quad(int64_t g, int64_t) const {
    const uint8_t* p = block(g);
    const bytes q = load_bytes(p + 48 + g % 8 * 16);
    const bytes low = low_nibbles(q), high = high_nibbles(q);
    const int first = int(g % 8);
    return {either(first_halves(low, high), where_bit(repeat_sixteen(p + 16), first, 16)),
            either(second_halves(low, high), where_bit(repeat_sixteen(p + 32), first, 16))};
  }
};

template <>
struct Row<kQ6K> : BlockRow<256, 210, Coded::kLess32, 2> {
  using BlockRow::BlockRow;
  HASTEN_BLOCK_METHOD Quad quad(int64_t g, int64_t) const {
    const uint8_t *p = block(g), *high_bits = p + 128 + g % 8 * 8;
    const bytes q = load_bytes(p + g % 8 * 16);
    const Quad low = split_sixteens(low_nibbles(q), high_nibbles(q));
    return {both_or(turned<-4>(repeat_sixteen(high_bits)), 0x30, low.first),
            both_or(turned<-4>(repeat_sixteen(high_bits + 16)), 0x30, low.second)};
  }
  HASTEN_BLOCK_METHOD vec scales(int64_t g, int64_t left, int part) const {
    const uint8_t *p = block(g), *q = next(p, left);
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
    const vec codes = alternate(two_sixteens(p + 192, q + 192), part);
#else
    const vec codes = alternate(eight_bytes(p + 192), eight_bytes(p + 200), eight_bytes(q + 192), eight_bytes(q + 200), part);
#endif
    return mul(codes, two_fp16(two_bytes(p + 208), left > 8 ? two_bytes(q + 208) : uint16_t(0)));
  }
};

template <>
struct Row<kIq4Xs> : BlockRow<256, 136, Coded::kSigned, 1> {
  using BlockRow::BlockRow;
  HASTEN_INLINE_METHOD bytes raw(int64_t g, int64_t) const { return load_bytes(block(g) + 8 + g % 8 * 16); }
  HASTEN_INLINE_METHOD static Quad split(bytes q) {
    return {looked_up(kCurve, low_nibbles(q)), looked_up(kCurve, high_nibbles(q))};
  }
  HASTEN_BLOCK_METHOD Quad quad(int64_t g, int64_t left) const { return split(raw(g, left)); }
  HASTEN_BLOCK_METHOD vec scales(int64_t g, int64_t left, int) const {
    const uint8_t *p = block(g), *q = next(p, left);
    return mul(sub(floats_of(eight_scales(p), eight_scales(q)), broadcast(32)),
               two_fp16(two_bytes(p), left > 8 ? two_bytes(q) : uint16_t(0)));
  }

 private:
  // 6 bits each: nibbles of four bytes, pairs of two bytes, brought into a byte each.
  HASTEN_INLINE_METHOD static uint64_t eight_scales(const uint8_t* p) {
    uint64_t low = four_bytes(p + 4), high = two_bytes(p + 2);
    low = (low | low << 16) & 0x0000ffff0000ffff;
    low = (low | low << 8) & 0x00ff00ff00ff00ff;
    low = (low | low << 4) & 0x0f0f0f0f0f0f0f0f;
    high = (high | high << 24) & 0x000000ff000000ff;
    high = (high | high << 12) & 0x000f000f000f000f;
    high = (high | high << 6) & 0x0303030303030303;
    return low | high << 4;
  }
};

}  // namespace
}  // namespace hasten

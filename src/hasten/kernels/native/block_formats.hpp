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
HASTEN_INLINE bytes minus(bytes a, int8_t b) { return {_mm512_sub_epi8(a.v, _mm512_set1_epi8(b))}; }
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
HASTEN_INLINE vec floats_of(uint64_t a, uint64_t b) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_set_epi64x(int64_t(b), int64_t(a))))};
}
// Of 32 bytes every second one, from `part` on, as floats.
HASTEN_INLINE vec alternate(uint64_t a, uint64_t b, uint64_t c, uint64_t d, int part) {
  const __m256i all = _mm256_set_epi64x(int64_t(d), int64_t(c), int64_t(b), int64_t(a));
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
HASTEN_INLINE bytes minus(bytes x, int8_t b) {
  const __m256i s = _mm256_set1_epi8(b);
  return {_mm256_sub_epi8(x.a, s), _mm256_sub_epi8(x.b, s)};
}
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
HASTEN_INLINE vec floats_of(uint64_t a, uint64_t b) {
  const auto eight_floats = [](uint64_t v) HASTEN_LAMBDA {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(int64_t(v))));
  };
  return {eight_floats(a), eight_floats(b)};
}
HASTEN_INLINE vec alternate(uint64_t a, uint64_t b, uint64_t c, uint64_t d, int part) {
  const auto eight_floats = [&](uint64_t v, uint64_t w) HASTEN_LAMBDA {
    const __m256i pairs = _mm256_cvtepu16_epi32(_mm_set_epi64x(int64_t(w), int64_t(v)));
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(pairs, part ? 16 : 24), 24));
  };
  return {eight_floats(a, b), eight_floats(c, d)};
}
HASTEN_INLINE vec two_fp16(uint16_t a, uint16_t b) {
  return {_mm256_cvtph_ps(_mm_set1_epi16(short(a))), _mm256_cvtph_ps(_mm_set1_epi16(short(b)))};
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
HASTEN_INLINE bytes minus(bytes a, int8_t b) {
  for (int i = 0; i < 64; ++i) a.v[i] = int8_t(a.v[i] - b);
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
#if defined(__AVX2__)
#define HASTEN_BLOCK_METHOD HASTEN_INLINE_METHOD
#else
#define HASTEN_BLOCK_METHOD __attribute__((noinline))
#endif

// A row of blocks of `Columns` weights and `Bytes` bytes. With codes from 0 on there are mins.
template <int Columns, int Bytes, bool Signed, int Parts>
struct BlockRow {
  static constexpr bool kCodes = true, kSigned = Signed, kMins = !Signed;
  static constexpr int kParts = Parts;
  static constexpr int64_t kBytes = Bytes;
  static constexpr int64_t kGroups = Columns / kGroup;  // of a block
  const uint8_t* w;
  BlockRow(const Matrix& m, int64_t n) : w(static_cast<const uint8_t*>(m.codes) + n * (m.in / Columns * Bytes)) {}
  HASTEN_INLINE_METHOD const uint8_t* block(int64_t g) const { return w + g / kGroups * Bytes; }
  // The next block, where at least one more group is there than a block has.
  HASTEN_INLINE_METHOD const uint8_t* next(const uint8_t* p, int64_t left) const {
    return left > kGroups ? p + Bytes : p;
  }
};

// Formats in blocks of one group.
template <int Bytes, bool Signed>
struct SmallBlockRow : BlockRow<32, Bytes, Signed, 1> {
  using Base = BlockRow<32, Bytes, Signed, 1>;
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
struct Row<kQ5_0> : SmallBlockRow<22, true> {
  using SmallBlockRow::SmallBlockRow;
  HASTEN_BLOCK_METHOD Quad quad(int64_t g, int64_t left) const {
    const bytes q = sixteens(g, left, 6);
    return {minus(either(low_nibbles(q), where_set(fifth(g, left, 2), 16)), 16),
            minus(either(high_nibbles(q), where_set(fifth(g, left, 4), 16)), 16)};
  }
  HASTEN_BLOCK_METHOD vec scales(int64_t g, int64_t left, int) const { return halves(g, left, 0); }
};

template <>
struct Row<kQ5_1> : SmallBlockRow<24, false> {
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
struct Row<kIq4Nl> : SmallBlockRow<18, true> {
  using SmallBlockRow::SmallBlockRow;
  HASTEN_BLOCK_METHOD Quad quad(int64_t g, int64_t left) const {
    const bytes q = sixteens(g, left, 2);
    return {looked_up(kCurve, low_nibbles(q)), looked_up(kCurve, high_nibbles(q))};
  }
  HASTEN_BLOCK_METHOD vec scales(int64_t g, int64_t left, int) const { return halves(g, left, 0); }
};

template <>
struct Row<kMxfp4> : SmallBlockRow<17, true> {
  using SmallBlockRow::SmallBlockRow;
  HASTEN_BLOCK_METHOD Quad quad(int64_t g, int64_t left) const {
    const bytes q = sixteens(g, left, 1);
    return {looked_up(kFp4, low_nibbles(q)), looked_up(kFp4, high_nibbles(q))};
  }
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
struct Row<kQ2K> : BlockRow<256, 84, false, 2> {
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
struct Row<kQ3K> : BlockRow<256, 110, true, 2> {
  using BlockRow::BlockRow;
  HASTEN_BLOCK_METHOD Quad quad(int64_t g, int64_t) const {
    const uint8_t *high = block(g), *q = high + 32 + g % 8 * 8;
    const int first = int(g % 8);
    return {minus(either(both(turned<0>(repeat_sixteen(q)), 3), where_bit(repeat_sixteen(high), first, 4)), 4),
            minus(either(both(turned<0>(repeat_sixteen(q + 16)), 3), where_bit(repeat_sixteen(high + 16), first, 4)),
                  4)};
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
struct SixBitRow : BlockRow<256, Bytes, false, 1> {
  using Base = BlockRow<256, Bytes, false, 1>;
  using Base::Base;
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
};

template <>
struct Row<kQ4K> : SixBitRow<144> {
  using SixBitRow::SixBitRow;
  HASTEN_BLOCK_METHOD Quad quad(int64_t g, int64_t) const {
    const uint8_t* p = block(g) + 16 + g % 8 * 16;
    const bytes q = load_bytes(p);
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
struct Row<kQ6K> : BlockRow<256, 210, true, 2> {
  using BlockRow::BlockRow;
  HASTEN_BLOCK_METHOD Quad quad(int64_t g, int64_t) const {
    const uint8_t *p = block(g), *high_bits = p + 128 + g % 8 * 8;
    const bytes q = load_bytes(p + g % 8 * 16);
    const Quad low = split_sixteens(low_nibbles(q), high_nibbles(q));
    return {minus(either(low.first, both(turned<-4>(repeat_sixteen(high_bits)), 0x30)), 32),
            minus(either(low.second, both(turned<-4>(repeat_sixteen(high_bits + 16)), 0x30)), 32)};
  }
  HASTEN_BLOCK_METHOD vec scales(int64_t g, int64_t left, int part) const {
    const uint8_t *p = block(g), *q = next(p, left);
    return mul(alternate(eight_bytes(p + 192), eight_bytes(p + 200), eight_bytes(q + 192), eight_bytes(q + 200), part),
               two_fp16(two_bytes(p + 208), left > 8 ? two_bytes(q + 208) : uint16_t(0)));
  }
};

template <>
struct Row<kIq4Xs> : BlockRow<256, 136, true, 1> {
  using BlockRow::BlockRow;
  HASTEN_BLOCK_METHOD Quad quad(int64_t g, int64_t) const {
    const uint8_t* p = block(g) + 8 + g % 8 * 16;
    const bytes q = load_bytes(p);
    return {looked_up(kCurve, low_nibbles(q)), looked_up(kCurve, high_nibbles(q))};
  }
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

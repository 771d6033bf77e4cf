// How formats store a tile: sixteen rows of a weight side by side (hasten/kernels/tiles.py lays them out).
//
// A format is a `Sixteen`: made of a matrix and the number of its first row, it gives of the group that stands at `place`
//   codes(place, i, low, high)   codes 4 i to 4 i + 3 of each row, and 16 + 4 i to 16 + 4 i + 3, in four bytes a row;
//   scale(place, g, part)        the rows' scales, and
//   min(place, g)                if kMins: what is added to each scaled code, where it is group g of a row;
//   ask(place)                   asks the memory for what is read a little later (kAskBytes), wherever that is;
//   kSigned, kLess, kMins, kParts as a `Row` has them (formats.hpp).
// Groups stand in the order in which products add them. A new format adds its Sixteen, and a line to `with_tiles`.
#pragma once

#include "block_formats.hpp"
#include "prefetch.hpp"

namespace hasten {
namespace {

constexpr int64_t kSums = 16;  // of an output, in which every 16th group is added up

// Where a group stands: those of sum 0 come first, then those of sum 1 and so on.
HASTEN_INLINE int64_t place_of(int64_t g, int64_t groups) {
  const int64_t sum = g % kSums, more = groups % kSums;
  return sum * (groups / kSums) + (sum < more ? sum : more) + g / kSums;
}

constexpr int64_t kAskBytes = 4096;  // how far before they are read tiles are asked for
constexpr int64_t kRun = 8;          // groups of a tile of blocks that stand together

// Bytes shifted to the right by so many bits, or to the left where negative; bits from beside them may come in.
template <int By>
HASTEN_INLINE bytes shifted_bytes(bytes a) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
  return {By > 0 ? _mm512_srli_epi16(a.v, By > 0 ? By : 0) : _mm512_slli_epi16(a.v, By < 0 ? -By : 0)};
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
  const auto shift = [](__m256i v) HASTEN_LAMBDA {
    return By > 0 ? _mm256_srli_epi16(v, By > 0 ? By : 0) : _mm256_slli_epi16(v, By < 0 ? -By : 0);
  };
  return {shift(a.a), shift(a.b)};
#elif defined(__aarch64__)
  HASTEN_EACH_QUARTER a.v[i] = vreinterpretq_s8_u8(vshlq_u8(vreinterpretq_u8_s8(a.v[i]), vdupq_n_s8(-By)));
  return a;
#else
  for (int8_t& one : a.v) one = int8_t(By > 0 ? uint8_t(one) >> (By > 0 ? By : 0) : uint8_t(one) << (By < 0 ? -By : 0));
  return a;
#endif
}

template <int Bits>
struct Sixteen;

template <>
struct Sixteen<kInt8> {
  static constexpr bool kSigned = true, kMins = false;
  static constexpr int kParts = 1, kLess = 0;
  const int8_t* w;
  const uint16_t* scales;
  Sixteen(const Matrix& m, int64_t n)
      : w(static_cast<const int8_t*>(m.codes) + n * m.in), scales(m.scales + n * (m.in / kGroup)) {}
  template <int I>
  HASTEN_INLINE_METHOD void codes(int64_t place, bytes& low, bytes& high) const {
    const int8_t* p = w + place * kGroup * kTile + 64 * I;
    low = load_bytes(p);
    high = load_bytes(p + 256);
  }
  HASTEN_INLINE_METHOD vec scale(int64_t place, int64_t, int) const { return load_fp16(scales + place * kTile); }
  HASTEN_INLINE_METHOD void ask(int64_t place) const {
    constexpr int64_t kAhead = kAskBytes / (kGroup * kTile);
    ask_soon(w + (place + kAhead) * kGroup * kTile, kGroup * kTile);
    ask_soon(scales + (place + kAhead) * kTile, 1);
  }
};

// Sixteen times two codes of 4 bits from byte 64 I of 256 on.
template <int I>
HASTEN_INLINE void two_nibbles(const uint8_t* p, bytes& low, bytes& high) {
  const bytes both = in_register(load_bytes(p + 64 * I));
  low = low_nibbles(both);
  high = high_nibbles(both);
}
constexpr int64_t kNibbles = kGroup / 2 * kTile;  // bytes of a group's lowest 4 bits

template <bool Mins>
struct Int4Tile {
  static constexpr bool kSigned = false, kMins = Mins;
  static constexpr int kParts = 1, kLess = Mins ? 0 : 8;
  const uint8_t* w;
  const uint16_t *scales, *mins;
  Int4Tile(const Matrix& m, int64_t n)
      : w(static_cast<const uint8_t*>(m.codes) + n * (m.in / 2)),
        scales(m.scales + n * (m.in / kGroup)),
        mins(Mins ? m.mins + n * (m.in / kGroup) : nullptr) {}
  template <int I>
  HASTEN_INLINE_METHOD void codes(int64_t place, bytes& low, bytes& high) const {
    two_nibbles<I>(w + place * kNibbles, low, high);
  }
  HASTEN_INLINE_METHOD vec scale(int64_t place, int64_t, int) const { return load_fp16(scales + place * kTile); }
  HASTEN_INLINE_METHOD vec min(int64_t place, int64_t) const { return load_fp16(mins + place * kTile); }
  HASTEN_INLINE_METHOD void ask(int64_t place) const {
    constexpr int64_t kAhead = kAskBytes / kNibbles;
    ask_soon(w + (place + kAhead) * kNibbles, kNibbles);
    if (place % 2) return;
    ask_soon(scales + (place + kAhead) * kTile, 1);
    if constexpr (Mins) ask_soon(mins + (place + kAhead) * kTile, 1);
  }
};
template <>
struct Sixteen<kInt4> : Int4Tile<true> {
  using Int4Tile::Int4Tile;
};
template <>
struct Sixteen<kInt4Centred> : Int4Tile<false> {
  using Int4Tile::Int4Tile;
};

// A tile of blocks: their fp16 numbers, `Halves` bytes for every 256 columns, and then its groups in runs of kRun: the
// codes of each, nibbles and the bits above them, and behind those the small numbers of each.
template <int High, int Numbers, int Halves>
struct BlockTile {
  static constexpr bool kSigned = false;
  static constexpr int64_t kCodes = kNibbles + High, kBytes = kCodes + Numbers;  // of a group
  static constexpr int64_t kRead = kBytes + Halves / 8;                          // with its part of the blocks' numbers
  const uint16_t* halves;
  const uint8_t* runs;
  int64_t groups;
  BlockTile(const Matrix& m, int64_t n, int64_t row_bytes)
      : halves(reinterpret_cast<const uint16_t*>(static_cast<const uint8_t*>(m.codes) + n * row_bytes)),
        runs(reinterpret_cast<const uint8_t*>(halves) + m.in / 256 * Halves),
        groups(m.in / kGroup) {}
  HASTEN_INLINE_METHOD const uint8_t* codes_at(int64_t place) const {
    return runs + (place & -kRun) * kBytes + (place & (kRun - 1)) * kCodes;
  }
  HASTEN_INLINE_METHOD const uint8_t* numbers_at(int64_t place) const {
    const int64_t from = place & -kRun, left = groups - from;
    return runs + from * kBytes + (left < kRun ? left : kRun) * kCodes + (place & (kRun - 1)) * Numbers;
  }
  // As the whole tile lies, and the next one behind it.
  HASTEN_INLINE_METHOD void ask(int64_t place) const {
    ask_soon(reinterpret_cast<const uint8_t*>(halves) + place * kRead + kAskBytes, kRead);
  }
  // Bit 4 of codes: of the first half of a group's bits 0 to 3 of each byte, of the second half's bits 4 to 7.
  template <int I>
  HASTEN_INLINE_METHOD void five_bits(int64_t place, bytes& first, bytes& second) const {
    const uint8_t* p = codes_at(place);
    two_nibbles<I>(p, first, second);
    const bytes above = load_bytes(p + kNibbles);
    first = both_or(shifted_bytes<I - 4>(above), 16, first);
    second = both_or(shifted_bytes<I>(above), 16, second);
  }
};

template <>
struct Sixteen<kQ5_0> : BlockTile<64, 32, 0> {
  static constexpr bool kMins = false;
  static constexpr int kParts = 1, kLess = 16;
  Sixteen(const Matrix& m, int64_t n) : BlockTile(m, n, m.in / 32 * 22) {}
  template <int I>
  HASTEN_INLINE_METHOD void codes(int64_t place, bytes& first, bytes& second) const {
    five_bits<I>(place, first, second);
  }
  HASTEN_INLINE_METHOD vec scale(int64_t place, int64_t, int) const {
    return load_fp16(reinterpret_cast<const uint16_t*>(numbers_at(place)));
  }
};

// Scales and mins of 6 bits: their lowest 4 in a byte of each row, the others in half a byte.
template <int High>
struct SixBitTile : BlockTile<High, 24, 64> {
  static constexpr bool kMins = true;
  static constexpr int kParts = 1, kLess = 0;
  using BlockTile<High, 24, 64>::BlockTile;
  HASTEN_INLINE_METHOD vec scale(int64_t place, int64_t g, int) const {
    return mul(six_bits(place, 0), load_fp16(this->halves + g / 8 * 2 * kTile));
  }
  HASTEN_INLINE_METHOD vec min(int64_t place, int64_t g) const {
    // What is taken away.
    return mul(six_bits(place, 1), sub(zero(), load_fp16(this->halves + (g / 8 * 2 + 1) * kTile)));
  }

 private:
  HASTEN_INLINE_METHOD vec six_bits(int64_t place, int which) const {
    constexpr uint64_t kLow = 0x0f0f0f0f0f0f0f0f, kHigh = 0x3030303030303030;
    const uint8_t* p = this->numbers_at(place);
    const uint64_t a = eight_bytes(p) >> 4 * which, b = eight_bytes(p + 8) >> 4 * which, c = eight_bytes(p + 16);
    return floats_of((a & kLow) | ((which ? c << 2 : c << 4) & kHigh), (b & kLow) | ((which ? c >> 2 : c) & kHigh));
  }
};

template <>
struct Sixteen<kQ4K> : SixBitTile<0> {
  Sixteen(const Matrix& m, int64_t n) : SixBitTile(m, n, m.in / 256 * 144) {}
  template <int I>
  HASTEN_INLINE_METHOD void codes(int64_t place, bytes& first, bytes& second) const {
    two_nibbles<I>(codes_at(place), first, second);
  }
};

template <>
struct Sixteen<kQ5K> : SixBitTile<64> {
  Sixteen(const Matrix& m, int64_t n) : SixBitTile(m, n, m.in / 256 * 176) {}
  template <int I>
  HASTEN_INLINE_METHOD void codes(int64_t place, bytes& first, bytes& second) const {
    five_bits<I>(place, first, second);
  }
};

template <>
struct Sixteen<kQ6K> : BlockTile<128, 32, 32> {
  static constexpr bool kMins = false;
  static constexpr int kParts = 2, kLess = 32;
  Sixteen(const Matrix& m, int64_t n) : BlockTile(m, n, m.in / 256 * 210) {}
  template <int I>
  HASTEN_INLINE_METHOD void codes(int64_t place, bytes& first, bytes& second) const {
    const uint8_t *p = codes_at(place), *above = p + kNibbles;
    two_nibbles<I>(p, first, second);
    first = both_or(shifted_bytes<2 * I - 4>(load_bytes(above)), 0x30, first);
    second = both_or(shifted_bytes<2 * I - 4>(load_bytes(above + 64)), 0x30, second);
  }
  HASTEN_INLINE_METHOD vec scale(int64_t place, int64_t g, int part) const {
    const uint8_t* p = numbers_at(place) + part * kTile;
    return mul(floats_of(eight_bytes(p), eight_bytes(p + 8)), load_fp16(halves + g / 8 * kTile));
  }
};

// Calls body(FormatOf<Bits>()) of the format of a matrix in tiles.
template <class Body>
HASTEN_INLINE void with_tiles(const Matrix& m, Body body) {
  switch (m.bits) {
    case kInt8: return body(FormatOf<kInt8>());
    case kQ5_0: return body(FormatOf<kQ5_0>());
    case kQ4K: return body(FormatOf<kQ4K>());
    case kQ5K: return body(FormatOf<kQ5K>());
    case kQ6K: return body(FormatOf<kQ6K>());
    default: return m.mins ? body(FormatOf<kInt4>()) : body(FormatOf<kInt4Centred>());
  }
}

// One row of a tile, where it is wanted alone or in floats: products of codes take all rows at once (tiled_linear.hpp).
template <int Bits>
struct TiledRow : WithoutCodes {
  using Format = Sixteen<Bits>;
  Format tile;
  int64_t row, groups;
  TiledRow(const Matrix& m, int64_t n) : tile(m, n / kTile * kTile), row(n % kTile), groups(m.in / kGroup) {}
  HASTEN_BLOCK_METHOD void pair(int64_t, int64_t, int64_t g, vec& a, vec& b) const {
    const int64_t place = place_of(g, groups);
    alignas(64) int8_t all[8][64], found[kGroup];
    const auto part = [&](auto i) HASTEN_LAMBDA {
      bytes first, second;
      tile.template codes<decltype(i)::kBits>(place, first, second);
      store_bytes(all[decltype(i)::kBits], first);
      store_bytes(all[4 + decltype(i)::kBits], second);
    };
    part(FormatOf<0>());
    part(FormatOf<1>());
    part(FormatOf<2>());
    part(FormatOf<3>());
    for (int i = 0; i < 8; ++i) std::memcpy(found + 4 * i, all[i] + 4 * row, 4);
    alignas(64) float scale[2][16], min[16];
    store(scale[0], tile.scale(place, g, 0));
    store(scale[1], tile.scale(place, g, Format::kParts - 1));
    if constexpr (Format::kMins) store(min, tile.min(place, g));
    const auto weights = [&](int half) HASTEN_LAMBDA {
      vec codes = load_int8(found + half * kLanes);
      if constexpr (Format::kLess != 0) codes = sub(codes, broadcast(float(Format::kLess)));
      const vec by = broadcast(scale[half][row]);
      if constexpr (Format::kMins) return fma(codes, by, broadcast(min[row]));
      return mul(codes, by);
    };
    a = weights(0);
    b = weights(1);
  }
};
template <>
struct Row<kTiled + kInt8> : TiledRow<kInt8> {
  using TiledRow::TiledRow;
};
template <>
struct Row<kTiled + kInt4> : TiledRow<kInt4> {
  using TiledRow::TiledRow;
};
template <>
struct Row<kTiled + kInt4Centred> : TiledRow<kInt4Centred> {
  using TiledRow::TiledRow;
};
template <>
struct Row<kTiled + kQ5_0> : TiledRow<kQ5_0> {
  using TiledRow::TiledRow;
};
template <>
struct Row<kTiled + kQ4K> : TiledRow<kQ4K> {
  using TiledRow::TiledRow;
};
template <>
struct Row<kTiled + kQ5K> : TiledRow<kQ5K> {
  using TiledRow::TiledRow;
};
template <>
struct Row<kTiled + kQ6K> : TiledRow<kQ6K> {
  using TiledRow::TiledRow;
};

}  // namespace
}  // namespace hasten

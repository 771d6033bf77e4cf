// y = x W^T + b with x rounded to int8 in groups of 32 and W in codes (formats.hpp): products of whole numbers, summed
// exactly within a group by the processor's byte dot products, then scaled.
//
// With w = s_w q_w + m_w and x = s_x q_x a group gives s_w s_x sum(q_w q_x) + m_w s_x sum(q_x).
//
// A vector holds the sums of 16 groups of one row of W, which are read one after the other: of one row of x, products of
// a group's codes are added up across the vector; of several, fours of codes first change places, once for all rows of
// x, so that nothing is left to add across. Of many, codes of 16 rows of W are first brought side by side into the cache,
// and a vector holds the sums of 16 outputs. All add the same numbers in the same order, whatever the number of rows:
// group g into sum g % 16, then the 16 sums in order.
#pragma once

#include "formats.hpp"
#include "linear.hpp"

namespace hasten {
namespace {

// Up to which codes of W are used where they are read; and where the last piece of a row is mostly padding.
constexpr int kSeveralRows = 32, kSeveralOfPadded = 16;
constexpr int64_t kQuad = 4 * kGroup;

// Values 32 g to 32 g + 31 of one row, and what `Codes` keeps of them.
HASTEN_INLINE void encode_group(const float* x, const Codes& to, int64_t row, int64_t g) {
  const vec a = load(x + kGroup * g), b = load(x + kGroup * g + kLanes);
  const float most = largest(max(abs(a), abs(b)));
  // Not a number where a value is not finite: a maximum alone would pass over it.
  const float scale = most / 127 + sum(add(mul(a, zero()), mul(b, zero())));
  // Numbers so small that 127 / most were infinite become 0.
  const vec inverse = broadcast(scale > 0 && most > 0x1p-118f ? 127 / most : 0.0f);
  const vec first = round(mul(a, inverse)), second = round(mul(b, inverse));
  int8_t* codes = to.codes + row * to.width + g / 4 * kQuad + g % 4 * 16;
  store_int8(codes, first);
  store_int8(codes + kQuad / 2, second);
  const int64_t groups = to.width / kGroup;
  const float sums[] = {sum(add(first, second)), sum(first), sum(second)};
  to.scales[row * groups + g] = scale;
  for (int i = 0; i < 3; ++i) {
    to.sums[(row * 3 + i) * groups + g] = scale * sums[i];
    // Codes that stand for no number have no sum, and no scale that is a number.
    to.offsets[(row * 3 + i) * groups + g] = scale == scale ? -kWhole * int32_t(sums[i]) : 0;
  }
}

HASTEN_INLINE void encode_row(const float* x, const Codes& to, int64_t row, int64_t in) {
  for (int64_t g = 0; g < in / kGroup; ++g) encode_group(x, to, row, g);
}

// Which of a row's three planes of sums a part of its groups has: all of a group, or one of its halves.
constexpr int64_t plane(int parts, int part) { return parts == 1 ? 0 : 1 + part; }

// Whether products of a format's codes have too much, and what takes it off: a part of what `Codes` has for `kWhole`.
template <class Format>
constexpr bool kHasOffsets = Format::kLess != 0 || (Format::kSigned && kOffset != 0);
template <class Format>
HASTEN_INLINE ints offset_of(ints whole) {
  constexpr int less = Format::kSigned ? kOffset : Format::kLess;
  constexpr int by = less == kWhole ? 0 : less == 32 ? 2 : less == 16 ? 3 : less == 8 ? 4 : 5;
  static_assert(!kHasOffsets<Format> || less << by == kWhole);
  return by ? shifted<by>(whole) : whole;
}

// Sixteen groups from g on of one row of W, of which `left` are there: added to `sums` of each row of x.
template <class Format, int Rows, bool Whole>
HASTEN_INLINE void add_groups(const Format& w, const Codes& x, int64_t row, int64_t g, int64_t left, vec* sums) {
  constexpr int kParts = Format::kParts;
  const int64_t groups = x.width / kGroup;
  const int8_t* codes = x.codes + row * x.width + g * kGroup;
  ints products[kParts][Rows][4];
HASTEN_UNROLL
  for (int i = 0; i < 4; ++i) {
    if (!Whole && 4 * i >= left) {
HASTEN_UNROLL
      for (int t = 0; t < Rows; ++t)
        for (int part = 0; part < kParts; ++part) products[part][t][i] = no_ints();
      continue;
    }
    const Quad q = w.quad(g + 4 * i, Whole ? 4 : left - 4 * i);
    const bytes first = factors<Format::kSigned>(q.first), second = factors<Format::kSigned>(q.second);
HASTEN_UNROLL
    for (int t = 0; t < Rows; ++t) {
      const int8_t* values = codes + t * x.width + kQuad * i;
      products[0][t][i] = dot<Format::kSigned>(no_ints(), first, load_bytes(values));
      products[kParts - 1][t][i] = dot<Format::kSigned>(kParts == 1 ? products[0][t][i] : no_ints(), second,
                                                        load_bytes(values + kQuad / 2));
    }
  }
HASTEN_UNROLL
  for (int part = 0; part < kParts; ++part) {
    const vec scale = w.scales(g, Whole ? 16 : left, part);
    vec min = zero();
    if constexpr (Format::kMins) min = w.mins(g, Whole ? 16 : left, part);
HASTEN_UNROLL
    for (int t = 0; t < Rows; ++t) {
      const ints* p = products[part][t];
      const int64_t at = ((row + t) * 3 + plane(kParts, part)) * groups + g;
      ints total = group_sums(p[0], p[1], p[2], p[3]);
      if constexpr (kHasOffsets<Format>) total = add(total, offset_of<Format>(load_ints(x.offsets + at)));
      sums[t] = fma(to_floats(total), mul(scale, load(x.scales + (row + t) * groups + g)), sums[t]);
      if constexpr (Format::kMins) sums[t] = fma(min, load(x.sums + at), sums[t]);
    }
  }
}

// The bias, and what stands in `kept`: 16 sums of each of 16 outputs, in the order in which `order(i)` says they are.
template <class Order>
HASTEN_INLINE void write_sums(const Matrix& m, const float* kept, float* y, int64_t n, int64_t count, Order order) {
  vec sums[16];
HASTEN_UNROLL
  for (int o = 0; o < 16; ++o) sums[o] = load(kept + o * kSums);
  transpose(sums);
  vec total = sums[order(0)];
HASTEN_UNROLL
  for (int i = 1; i < kSums; ++i) total = add(total, sums[order(i)]);
  const vec bias = m.bias ? load_part(m.bias + n, count) : zero();
  store_part(y + n, add(total, bias), count);
}

// Weights that are asked for so many columns ahead, where a format's unpacking leaves the memory time to give them.
constexpr int64_t kAhead = 16384;

template <class Format>
HASTEN_INLINE void multiply_codes_one(const Matrix& m, const Codes& x, int64_t row, float* y, int64_t n0, int64_t n1) {
  alignas(64) float kept[16][kSums] = {};
  const int64_t groups = m.in / kGroup, ahead = 1 + kAhead / m.in;
  for (int64_t n = n0; n < n1; n += 16) {
    const int64_t count = n1 - n < 16 ? n1 - n : 16;
    for (int64_t o = 0; o < count; ++o) {
      const Format w(m, n + o);
      vec sums[1] = {zero()};
      int64_t g = 0;
      const Format next(m, n + o + ahead);
      for (; g + 16 <= groups; g += 16) {
        if constexpr (Format::kAhead) next.ask(g, 16);
        add_groups<Format, 1, true>(w, x, row, g, 16, sums);
      }
      if (g < groups) add_groups<Format, 1, false>(w, x, row, g, groups - g, sums);
      store(kept[o], sums[0]);
    }
    write_sums(m, kept[0], y, n, count, [](int i) HASTEN_LAMBDA { return i; });
  }
}

// What a row of x has of 16 groups: 512 codes, scales, and of each part sums and offsets; fours of codes of sixteen
// groups stand side by side, in the order of `by_fours`.
template <class Format>
struct Piece {
  static constexpr int64_t kCodes = 16 * kGroup, kVector = 16 * int64_t(sizeof(float));
  static constexpr int64_t kSumsAt = kCodes + kVector;
  static constexpr int64_t kOffsetsAt = kSumsAt + (Format::kMins ? Format::kParts * kVector : 0);
  static constexpr int64_t kBytes = kOffsetsAt + (kHasOffsets<Format> ? Format::kParts * kVector : 0);
};

HASTEN_INLINE ints by_fours(ints a) {
  vec v;
  std::memcpy(&v, &a, sizeof v);
  v = by_fours(v);
  std::memcpy(&a, &v, sizeof a);
  return a;
}
HASTEN_INLINE void store_ints(void* p, ints a) { std::memcpy(p, &a, sizeof a); }

template <class Format>
inline void lay_out_pieces(const Codes& x, int64_t row, int rows, int64_t groups, uint8_t* to) {
  const int64_t known = x.width / kGroup;
  for (int64_t g = 0; g < groups; g += 16)
    for (int64_t t = row; t < row + rows; ++t, to += Piece<Format>::kBytes) {
      const int8_t* codes = x.codes + t * x.width + g * kGroup;
      for (int half = 0; half < 2; ++half) {
        bytes v[4];
HASTEN_UNROLL
        for (int i = 0; i < 4; ++i) v[i] = load_bytes(codes + kQuad * i + kQuad / 2 * half);
        transpose_fours(v);
HASTEN_UNROLL
        for (int i = 0; i < 4; ++i) store_bytes(to + (4 * half + i) * 64, v[i]);
      }
      store(reinterpret_cast<float*>(to + Piece<Format>::kCodes), by_fours(load(x.scales + t * known + g)));
      for (int part = 0; part < Format::kParts; ++part) {
        const int64_t at = (t * 3 + plane(Format::kParts, part)) * known + g, vectors = part * Piece<Format>::kVector;
        if constexpr (Format::kMins)
          store(reinterpret_cast<float*>(to + Piece<Format>::kSumsAt + vectors), by_fours(load(x.sums + at)));
        if constexpr (kHasOffsets<Format>)
          store_ints(to + Piece<Format>::kOffsetsAt + vectors, by_fours(offset_of<Format>(load_ints(x.offsets + at))));
      }
    }
}

// Sixteen groups from g on of `Outs` rows of W, of which `left` are there, times the pieces of `rows` rows of x: added to
// what `kept` has, where there is any yet, a vector for each of 16 rows of W, for each row of x.
template <class Format, int Outs, bool Whole>
HASTEN_INLINE void add_pieces(const Matrix& m, int64_t n, int64_t g, int64_t left, const uint8_t* x, int rows, bool any,
                              float* kept) {
  constexpr int kParts = Format::kParts;
  using Held = Piece<Format>;
  bytes codes[Outs][8];
  vec scale[Outs][kParts], min[Outs][kParts];
HASTEN_UNROLL
  for (int o = 0; o < Outs; ++o) {
    const Format w(m, n + o);
    if constexpr (requires { w.raw(g, left); }) {
      bytes raw[4];
HASTEN_UNROLL
      for (int i = 0; i < 4; ++i)
        raw[i] = !Whole && 4 * i >= left ? no_bytes() : w.raw(g + 4 * i, Whole ? 4 : left - 4 * i);
      transpose_fours(raw);
HASTEN_UNROLL
      for (int i = 0; i < 4; ++i) {
        const Quad q = w.split(raw[i]);
        codes[o][i] = factors<Format::kSigned>(q.first);
        codes[o][4 + i] = factors<Format::kSigned>(q.second);
      }
    } else {
HASTEN_UNROLL
      for (int i = 0; i < 4; ++i) {
        codes[o][i] = codes[o][4 + i] = no_bytes();
        if (!Whole && 4 * i >= left) continue;
        const Quad q = w.quad(g + 4 * i, Whole ? 4 : left - 4 * i);
        codes[o][i] = factors<Format::kSigned>(q.first);
        codes[o][4 + i] = factors<Format::kSigned>(q.second);
      }
      transpose_fours(codes[o]);
      transpose_fours(codes[o] + 4);
    }
HASTEN_UNROLL
    for (int part = 0; part < kParts; ++part) {
      scale[o][part] = by_fours(w.scales(g, Whole ? 16 : left, part));
      if constexpr (Format::kMins) min[o][part] = by_fours(w.mins(g, Whole ? 16 : left, part));
    }
  }
  for (int t = 0; t < rows; ++t, x += Held::kBytes, kept += 16 * kSums) {
    const auto floats = [&](int64_t at) HASTEN_LAMBDA { return load(reinterpret_cast<const float*>(x + at)); };
    vec sums[Outs];
    const vec by = floats(Held::kCodes);
HASTEN_UNROLL
    for (int o = 0; o < Outs; ++o) sums[o] = any ? load(kept + o * kSums) : zero();
HASTEN_UNROLL
    for (int part = 0; part < kParts; ++part) {
      ints total[Outs];
HASTEN_UNROLL
      for (int o = 0; o < Outs; ++o) {
        total[o] = no_ints();
        if constexpr (kHasOffsets<Format>)
          total[o] = load_ints(reinterpret_cast<const int32_t*>(x + Held::kOffsetsAt + part * Held::kVector));
      }
HASTEN_UNROLL
      for (int i = part * 4; i < (kParts == 1 ? 8 : part * 4 + 4); ++i) {
        const bytes values = in_register(load_bytes(x + 64 * i));
HASTEN_UNROLL
        for (int o = 0; o < Outs; ++o) total[o] = dot<Format::kSigned>(total[o], codes[o][i], values);
      }
HASTEN_UNROLL
      for (int o = 0; o < Outs; ++o) {
        sums[o] = fma(to_floats(total[o]), mul(scale[o][part], by), sums[o]);
        if constexpr (Format::kMins) sums[o] = fma(min[o][part], floats(Held::kSumsAt + part * Held::kVector), sums[o]);
      }
    }
HASTEN_UNROLL
    for (int o = 0; o < Outs; ++o) store(kept + o * kSums, sums[o]);
  }
}

// One row of x where two groups stand in the same bytes, one in the low halves and one in the high ones, whole groups
// one after the other (Q4_K): bytes change places before they are taken apart, and the row of x is laid out to match.
// Sums stand in the order of `by_pairs`.
template <class Format>
inline void multiply_codes_paired(const Matrix& m, const Codes& x, int64_t row, float* y, int64_t n0, int64_t n1,
                                  uint8_t* memory) {
  static_assert(!kHasOffsets<Format> && Format::kMins && Format::kParts == 1);
  using Held = Piece<Format>;
  const int64_t groups = m.in / kGroup, known = x.width / kGroup, ahead = 1 + kAhead / m.in;
  for (int64_t g = 0; g < groups; g += 16) {
    const int8_t* codes = x.codes + row * x.width + g * kGroup;
    uint8_t* to = memory + g / 16 * Held::kBytes;
    bytes low[4], high[4];
    for (int i = 0; i < 4; ++i) {
      const bytes first = load_bytes(codes + kQuad * i), second = load_bytes(codes + kQuad * i + kQuad / 2);
      low[i] = first_halves(first, second);
      high[i] = second_halves(first, second);
    }
    transpose_fours(low);
    transpose_fours(high);
    for (int i = 0; i < 4; ++i) {
      store_bytes(to + 64 * i, low[i]);
      store_bytes(to + 64 * (4 + i), high[i]);
    }
    store(reinterpret_cast<float*>(to + Held::kCodes), by_pairs(load(x.scales + row * known + g)));
    store(reinterpret_cast<float*>(to + Held::kSumsAt), by_pairs(load(x.sums + row * 3 * known + g)));
  }
  alignas(64) float kept[16][kSums] = {};
  for (int64_t n = n0; n < n1; n += 16) {
    const int64_t count = n1 - n < 16 ? n1 - n : 16;
    for (int64_t o = 0; o < count; ++o) {
      const Format w(m, n + o), next(m, n + o + ahead);
      vec sums = zero();
      const uint8_t* part = memory;
      for (int64_t g = 0; g < groups; g += 16, part += Held::kBytes) {
        next.ask(g, 16);
        const int64_t left = groups - g;
        bytes raw[4];
HASTEN_UNROLL
        for (int i = 0; i < 4; ++i) raw[i] = 4 * i < left ? w.raw_pairs(g + 4 * i) : no_bytes();
        transpose_fours(raw);
        ints low = no_ints(), high = no_ints();
HASTEN_UNROLL
        for (int i = 0; i < 4; ++i) {
          low = dot<false>(low, low_nibbles(raw[i]), load_bytes(part + 64 * i));
          high = dot<false>(high, high_nibbles(raw[i]), load_bytes(part + 64 * (4 + i)));
        }
        const auto floats = [&](int64_t at) HASTEN_LAMBDA { return load(reinterpret_cast<const float*>(part + at)); };
        sums = fma(to_floats(add_halves(low, high)), mul(by_pairs(w.scales(g, left, 0)), floats(Held::kCodes)), sums);
        sums = fma(by_pairs(w.mins(g, left, 0)), floats(Held::kSumsAt), sums);
      }
      store(kept[o], sums);
    }
    write_sums(m, kept[0], y, n, count,
               [](int i) HASTEN_LAMBDA { return 4 * (i % 4 == 1 ? 2 : i % 4 == 2 ? 1 : i % 4) + i / 4; });
  }
}

// At once: pieces of so many bytes, which stay in the first cache while 16 rows of W pass by.
constexpr int64_t kPieces = 16384;

template <class Format>
inline void multiply_codes_several(const Matrix& m, const Codes& x, int64_t row, int rows, float* y, int64_t ldy,
                                   int64_t n0, int64_t n1, uint8_t* memory) {
  constexpr int64_t kBytes = Piece<Format>::kBytes;
  const int64_t groups = m.in / kGroup, pieces = (groups + 15) / 16;
  lay_out_pieces<Format>(x, row, rows, groups, memory);
  float* kept = reinterpret_cast<float*>(memory + pieces * rows * kBytes);
  const int64_t fit = kPieces / (rows * kBytes), at_once = fit > 0 ? fit : 1;
  for (int64_t n = n0; n < n1; n += 16) {
    const int64_t count = n1 - n < 16 ? n1 - n : 16;
    for (int64_t from = 0; from < pieces; from += at_once)
      for (int64_t o = 0; o < count; o += kTileOuts)
        for (int64_t p = from; p < pieces && p < from + at_once; ++p) {
          const int64_t g = 16 * p, left = groups - g;
          const uint8_t* part = memory + p * rows * kBytes;
          const int outs = count - o < kTileOuts ? int(count - o) : kTileOuts;
          for (int i = 0; i < outs; ++i) Format(m, n + o + i + 16).ask(g, 16);
          if (left >= 16 && outs == kTileOuts) {
            add_pieces<Format, kTileOuts, true>(m, n + o, g, 16, part, rows, p > 0, kept + o * kSums);
            continue;
          }
          for (int i = 0; i < outs; ++i)
            add_pieces<Format, 1, false>(m, n + o + i, g, left, part, rows, p > 0, kept + (o + i) * kSums);
        }
    for (int t = 0; t < rows; ++t)
      write_sums(m, kept + t * 16 * kSums, y + t * ldy, n, count,
                 [](int i) HASTEN_LAMBDA { return 4 * (i % 4) + i / 4; });
  }
}

// Sixteen rows of W side by side: of each group 8 times 4 codes of each row, and a scale and min of each row and part.
// Groups stand in the order of `place_of`.
template <bool Signed, bool Mins, int Parts, int Less>
struct WeightTile {
  static constexpr bool kSigned = Signed, kMins = Mins;
  static constexpr int kParts = Parts, kLess = Less;
  uint8_t* codes;
  float *scales, *mins;

  static int64_t bytes_of(int64_t groups) {
    return groups * 16 * (kGroup + int64_t(sizeof(float)) * Parts * (Mins ? 2 : 1));
  }
  WeightTile() = default;
  WeightTile(void* memory, int64_t groups)
      : codes(static_cast<uint8_t*>(memory)),
        scales(reinterpret_cast<float*>(codes + groups * 16 * kGroup)),
        mins(scales + groups * 16 * Parts) {}
};

template <class Format>
using TileOf = WeightTile<Format::kSigned, Format::kMins, Format::kParts, Format::kLess>;

// Rows n to n + 15 of W, of which those from `end` on repeat the last one: nobody reads what they give.
template <class Format>
inline void fill_tile(const Matrix& m, int64_t n, int64_t end, const TileOf<Format>& to) {
  constexpr int kParts = Format::kParts;
  const int64_t groups = m.in / kGroup;
  const auto row_of = [&](int i) HASTEN_LAMBDA { return Format(m, n + i < end ? n + i : end - 1); };
  // Rows of W are too short, and too many at once, for the processor to see what comes next: the same place of the
  // next tiles is asked for here.
  constexpr int kNext = 16 * kTileOuts;
  for (int64_t g = 0; g < groups; g += 4) {
    const int64_t left = groups - g;
    bytes first[16], second[16];
HASTEN_UNROLL
    for (int i = 0; i < 16; ++i) {
      const Quad q = row_of(i).quad(g, left);
      row_of(i + kNext).ask(g, 4);
      first[i] = factors<Format::kSigned>(q.first);
      second[i] = factors<Format::kSigned>(q.second);
    }
    transpose(first);
    transpose(second);
    for (int j = 0; j < 4 && j < left; ++j) {
      uint8_t* codes = to.codes + place_of(g + j, groups) * 16 * kGroup;
HASTEN_UNROLL
      for (int i = 0; i < 4; ++i) {
        store_bytes(codes + 64 * i, first[4 * j + i]);
        store_bytes(codes + 64 * (4 + i), second[4 * j + i]);
      }
    }
  }
  for (int64_t g = 0; g < groups; g += 16)
    for (int part = 0; part < kParts; ++part) {
      const int64_t left = groups - g;
      vec found[16];
      for (int i = 0; i < 16; ++i) found[i] = row_of(i).scales(g, left, part);
      transpose(found);
      for (int i = 0; i < 16 && i < left; ++i)
        store(to.scales + (place_of(g + i, groups) * kParts + part) * 16, found[i]);
      if constexpr (Format::kMins) {
        for (int i = 0; i < 16; ++i) found[i] = row_of(i).mins(g, left, part);
        transpose(found);
        for (int i = 0; i < 16 && i < left; ++i)
          store(to.mins + (place_of(g + i, groups) * kParts + part) * 16, found[i]);
      }
    }
}

// `Rows` rows of x times the outputs of `kTileOuts` tiles, of which those from n1 on are not written.
template <class Tile, int Rows>
inline void multiply_tiles(const Matrix& m, const Tile* tiles, const Codes& x, int64_t row, float* y, int64_t ldy,
                           int64_t n, int64_t n1) {
  constexpr int kParts = Tile::kParts, kOuts = kTileOuts;
  constexpr bool kSigned = Tile::kSigned, kMins = Tile::kMins;
  const int64_t groups = m.in / kGroup, known = x.width / kGroup;
  const int8_t* codes = x.codes + row * x.width;
  vec total[kOuts][Rows];
HASTEN_UNROLL
  for (int o = 0; o < kOuts; ++o)
HASTEN_UNROLL
    for (int t = 0; t < Rows; ++t) total[o][t] = zero();
  int64_t place = 0;
  for (int64_t sum = 0; sum < kSums && sum < groups; ++sum) {
    vec sums[kOuts][Rows];
HASTEN_UNROLL
    for (int o = 0; o < kOuts; ++o)
HASTEN_UNROLL
      for (int t = 0; t < Rows; ++t) sums[o][t] = zero();
    for (int64_t g = sum; g < groups; g += kSums, ++place) {
      const int8_t* values = codes + g / 4 * kQuad + g % 4 * 16;
HASTEN_UNROLL
      for (int part = 0; part < kParts; ++part) {
        const int64_t at = (row * 3 + plane(kParts, part)) * known + g;
        ints products[kOuts][Rows];
HASTEN_UNROLL
        for (int t = 0; t < Rows; ++t) {
          ints start = no_ints();
          if constexpr (kHasOffsets<Tile>) start = offset_of<Tile>(broadcast_int(x.offsets[at + t * 3 * known]));
HASTEN_UNROLL
          for (int o = 0; o < kOuts; ++o) products[o][t] = start;
        }
HASTEN_UNROLL
        for (int i = part * 4; i < (kParts == 1 ? 8 : part * 4 + 4); ++i) {
          bytes w[kOuts];
HASTEN_UNROLL
          for (int o = 0; o < kOuts; ++o) w[o] = load_bytes(tiles[o].codes + place * 16 * kGroup + 64 * i);
HASTEN_UNROLL
          for (int t = 0; t < Rows; ++t) {
            const bytes four = broadcast_four(values + t * x.width + i / 4 * (kQuad / 2) + i % 4 * 4);
HASTEN_UNROLL
            for (int o = 0; o < kOuts; ++o) products[o][t] = dot<kSigned>(products[o][t], w[o], four);
          }
        }
HASTEN_UNROLL
        for (int o = 0; o < kOuts; ++o) {
          const vec scale = load(tiles[o].scales + (place * kParts + part) * 16);
          vec min = zero();
          if constexpr (kMins) min = load(tiles[o].mins + (place * kParts + part) * 16);
HASTEN_UNROLL
          for (int t = 0; t < Rows; ++t) {
            const vec both = mul(scale, broadcast(x.scales[(row + t) * known + g]));
            sums[o][t] = fma(to_floats(products[o][t]), both, sums[o][t]);
            if constexpr (kMins) sums[o][t] = fma(min, broadcast(x.sums[at + t * 3 * known]), sums[o][t]);
          }
        }
      }
    }
HASTEN_UNROLL
    for (int o = 0; o < kOuts; ++o)
HASTEN_UNROLL
      for (int t = 0; t < Rows; ++t) total[o][t] = add(total[o][t], sums[o][t]);
  }
  for (int o = 0; o < kOuts && n + 16 * o < n1; ++o) {
    const int64_t from = n + 16 * o, count = n1 - from < 16 ? n1 - from : 16;
    const vec bias = m.bias ? load_part(m.bias + from, count) : zero();
HASTEN_UNROLL
    for (int t = 0; t < Rows; ++t) store_part(y + (row + t) * ldy + from, add(total[o][t], bias), count);
  }
}

// Rows of x in blocks of nearly the same size: of more than `kSeveralRows`, none is smaller than half of `kTileRows`.
template <class Tile, int Rows = kTileRows>
HASTEN_INLINE void multiply_tiles_by(int rows, const Matrix& m, const Tile* tiles, const Codes& x, int64_t row,
                                     float* y, int64_t ldy, int64_t n, int64_t n1) {
  if constexpr (Rows > (kTileRows + 1) / 2)
    if (rows < Rows) return multiply_tiles_by<Tile, Rows - 1>(rows, m, tiles, x, row, y, ldy, n, n1);
  multiply_tiles<Tile, Rows>(m, tiles, x, row, y, ldy, n, n1);
}

template <class Tile>
inline void multiply_by_tiles(const Matrix& m, const Tile* tiles, const Codes& x, int rows, float* y, int64_t ldy,
                              int64_t n, int64_t n1) {
  const int64_t blocks = (rows + kTileRows - 1) / kTileRows;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t row = rows * b / blocks;
    multiply_tiles_by(int(rows * (b + 1) / blocks - row), m, tiles, x, row, y, ldy, n, n1);
  }
}

template <class Format>
inline void multiply_codes_many(const Matrix& m, const Codes& x, int rows, float* y, int64_t ldy, int64_t n0,
                                int64_t n1, uint8_t* memory) {
  const int64_t groups = m.in / kGroup;
  TileOf<Format> tiles[kTileOuts];
  for (int o = 0; o < kTileOuts; ++o) tiles[o] = TileOf<Format>(memory + o * TileOf<Format>::bytes_of(groups), groups);
  for (int64_t n = n0; n < n1; n += 16 * kTileOuts) {
    for (int o = 0; o < kTileOuts && n + 16 * o < n1; ++o) fill_tile<Format>(m, n + 16 * o, n1, tiles[o]);
    multiply_by_tiles(m, tiles, x, rows, y, ldy, n, n1);
  }
}

template <class Format>
inline void multiply_codes_as(const Matrix& m, const Codes& x, int rows, float* y, int64_t ldy, int64_t n0,
                              int64_t n1) {
  const int64_t groups = m.in / kGroup, read = (groups + 15) / 16 * 16;
  if (rows > (4 * read > 5 * groups ? kSeveralOfPadded : kSeveralRows)) {
    if (void* memory = tile_memory(kTileOuts * TileOf<Format>::bytes_of(m.in / kGroup)))
      return multiply_codes_many<Format>(m, x, rows, y, ldy, n0, n1, static_cast<uint8_t*>(memory));
  } else if (rows > 1) {
    const int64_t pieces = (m.in / kGroup + 15) / 16;
    if (void* memory = tile_memory(rows * (pieces * Piece<Format>::kBytes + 16 * kSums * int64_t(sizeof(float)))))
      return multiply_codes_several<Format>(m, x, 0, rows, y, ldy, n0, n1, static_cast<uint8_t*>(memory));
  }
  if constexpr (requires(const Format& w) { w.raw_pairs(0); })
    if (void* memory = tile_memory((m.in / kGroup + 15) / 16 * Piece<Format>::kBytes)) {
      for (int row = 0; row < rows; ++row)
        multiply_codes_paired<Format>(m, x, row, y + row * ldy, n0, n1, static_cast<uint8_t*>(memory));
      return;
    }
  for (int row = 0; row < rows; ++row) multiply_codes_one<Format>(m, x, row, y + row * ldy, n0, n1);
}

}  // namespace
}  // namespace hasten

#include "tiled_linear.hpp"

namespace hasten {
namespace {

// Rows [n0, n1) of W times every row of x, for a matrix that takes codes.
inline void multiply_codes(const Matrix& m, const Codes& x, int rows, float* y, int64_t ldy, int64_t n0, int64_t n1) {
  if (m.tiled) return multiply_codes_tiled(m, x, rows, y, ldy, n0, n1);
  with_format(m, [&](auto format) {
    using Format = Row<decltype(format)::kBits>;
    if constexpr (Format::kCodes) multiply_codes_as<Format>(m, x, rows, y, ldy, n0, n1);
  });
}

inline void encode_rows(const float* x, const Codes& to, int64_t in, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) encode_row(x + t * in, to, t, in);
}

// By codes where the matrix takes them, else in floats.
HASTEN_INLINE void multiply_either(const Matrix& m, const float* x, int64_t ldx, const Codes& codes, int rows, float* y,
                                   int64_t ldy, int64_t n0, int64_t n1) {
  if (m.takes_codes())
    multiply_codes(m, codes, rows, y, ldy, n0, n1);
  else
    multiply(m, x, ldx, rows, y, ldy, n0, n1);
}

}  // namespace
}  // namespace hasten

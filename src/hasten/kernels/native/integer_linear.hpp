// y = x W^T + b with x rounded to int8 in groups of 32 and W in codes (formats.hpp): products of whole numbers, summed
// exactly within a group by the processor's byte dot products, then scaled.
//
// With w = s_w q_w + m_w and x = s_x q_x a group gives s_w s_x sum(q_w q_x) + m_w s_x sum(q_x).
//
// Of few rows of x, rows of W are read one after the other, and a vector holds the sums of 16 groups. Of many, codes of
// 16 rows of W are first brought side by side into the cache, and a vector holds the sums of 16 outputs. Both add the
// same numbers in the same order, whatever the number of rows: group g into sum g % 16, then the 16 sums in order.
#pragma once

#include "formats.hpp"
#include "linear.hpp"

namespace hasten {
namespace {

constexpr int64_t kSums = 16;       // of an output, in which every 16th group is added up
constexpr int kFewRows = 4;         // up to which codes of W are used where they are read
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
    to.offsets[(row * 3 + i) * groups + g] = scale == scale ? -kOffset * int32_t(sums[i]) : 0;
  }
}

HASTEN_INLINE void encode_row(const float* x, const Codes& to, int64_t row, int64_t in) {
  for (int64_t g = 0; g < in / kGroup; ++g) encode_group(x, to, row, g);
}

// Which of a row's three planes of sums a part of its groups has: all of a group, or one of its halves.
constexpr int64_t plane(int parts, int part) { return parts == 1 ? 0 : 1 + part; }

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
      if (Format::kSigned && kOffset) total = add(total, load_ints(x.offsets + at));
      sums[t] = fma(to_floats(total), mul(scale, load(x.scales + (row + t) * groups + g)), sums[t]);
      if constexpr (Format::kMins) sums[t] = fma(min, load(x.sums + at), sums[t]);
    }
  }
}

template <class Format, int Rows>
HASTEN_INLINE void multiply_codes_few(const Matrix& m, const Codes& x, int64_t row, float* y, int64_t ldy, int64_t n0,
                                      int64_t n1) {
  alignas(64) float kept[Rows][16][kSums] = {};
  const int64_t groups = m.in / kGroup;
  for (int64_t n = n0; n < n1; n += 16) {
    const int64_t count = n1 - n < 16 ? n1 - n : 16;
    for (int64_t o = 0; o < count; ++o) {
      const Format w(m, n + o);
      vec sums[Rows];
HASTEN_UNROLL
      for (int t = 0; t < Rows; ++t) sums[t] = zero();
      int64_t g = 0;
      for (; g + 16 <= groups; g += 16) add_groups<Format, Rows, true>(w, x, row, g, 16, sums);
      if (g < groups) add_groups<Format, Rows, false>(w, x, row, g, groups - g, sums);
HASTEN_UNROLL
      for (int t = 0; t < Rows; ++t) store(kept[t][o], sums[t]);
    }
    const vec bias = m.bias ? load_part(m.bias + n, count) : zero();
    for (int t = 0; t < Rows; ++t) {
      vec sums[16];
HASTEN_UNROLL
      for (int o = 0; o < 16; ++o) sums[o] = load(kept[t][o]);
      transpose(sums);
HASTEN_UNROLL
      for (int i = 1; i < kSums; ++i) sums[0] = add(sums[0], sums[i]);
      store_part(y + t * ldy + n, add(sums[0], bias), count);
    }
  }
}

// Sixteen rows of W side by side: of each group 8 times 4 codes of each row, and a scale and min of each row and part.
// Groups stand in the order in which they are added: those of sum 0, of sum 1 and so on.
template <bool Signed, bool Mins, int Parts>
struct WeightTile {
  static constexpr bool kSigned = Signed, kMins = Mins;
  static constexpr int kParts = Parts;
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
using TileOf = WeightTile<Format::kSigned, Format::kMins, Format::kParts>;

HASTEN_INLINE int64_t place_of(int64_t g, int64_t groups) {
  const int64_t sum = g % kSums, more = groups % kSums;
  return sum * (groups / kSums) + (sum < more ? sum : more) + g / kSums;
}

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
      if constexpr (requires(const Format& w) { w.codes_at(g); }) {
        const Format row = row_of(i + kNext);
        const char *next = static_cast<const char*>(row.codes_at(g)), *last = static_cast<const char*>(row.codes_at(g + 4));
        for (; next < last; next += 64) __builtin_prefetch(next, 0, 2);
      }
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
          const ints start = kSigned && kOffset ? broadcast_int(x.offsets[at + t * 3 * known]) : no_ints();
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

// Rows of x in blocks of nearly the same size: of more than `kFewRows`, none is smaller than half of `kTileRows`.
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
  if (rows > kFewRows)
    if (void* memory = tile_memory(kTileOuts * TileOf<Format>::bytes_of(m.in / kGroup)))
      return multiply_codes_many<Format>(m, x, rows, y, ldy, n0, n1, static_cast<uint8_t*>(memory));
  int row = 0;
  for (; rows - row >= 4; row += 4) multiply_codes_few<Format, 4>(m, x, row, y + row * ldy, ldy, n0, n1);
  float* rest = y + row * ldy;
  switch (rows - row) {
    case 1: return multiply_codes_few<Format, 1>(m, x, row, rest, ldy, n0, n1);
    case 2: return multiply_codes_few<Format, 2>(m, x, row, rest, ldy, n0, n1);
    case 3: return multiply_codes_few<Format, 3>(m, x, row, rest, ldy, n0, n1);
    default: return;
  }
}

// Rows [n0, n1) of W times every row of x, for a matrix that takes codes.
inline void multiply_codes(const Matrix& m, const Codes& x, int rows, float* y, int64_t ldy, int64_t n0, int64_t n1) {
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

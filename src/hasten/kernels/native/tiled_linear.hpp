// Products of codes with weights in tiles (tiles.hpp): of a group a vector holds four columns of 16 outputs, so that
// nothing is left to add across it, nothing is padded, and the tile is read once from its beginning to its end.
//
// Any number of rows of x takes this way, and all add what integer_linear.hpp adds for weights in rows, in the same
// order: bit for bit the same.
#pragma once

#include "integer_linear.hpp"

namespace hasten {
namespace {

// `Rows` rows of x times `Outs` tiles from row n of W on, of which rows outside of [n0, n1) are not written; where the
// second one would begin behind them, the first one is taken twice.
template <class Format, int Outs, int Rows>
inline void multiply_tiled(const Matrix& m, const Codes& x, int64_t row, float* y, int64_t ldy, int64_t n, int64_t n0,
                           int64_t n1) {
  constexpr bool kSigned = Format::kSigned, kMins = Format::kMins;
  // Of few sums each is made of two, or a product would wait for the one before it.
  constexpr int kParts = Format::kParts, kApart = kParts > 1 || Outs * Rows < 4 ? 2 : 1;
  const int64_t groups = m.in / kGroup, known = x.width / kGroup;
  const int8_t* codes = x.codes + row * x.width;
  static_assert(Outs <= 2);
  const Format tiles[2] = {Format(m, n), Format(m, Outs > 1 && n + kTile < n1 ? n + kTile : n)};
  vec total[Outs][Rows];
HASTEN_UNROLL
  for (int o = 0; o < Outs; ++o)
HASTEN_UNROLL
    for (int t = 0; t < Rows; ++t) total[o][t] = zero();
  int64_t place = 0;
  for (int64_t sum = 0; sum < kSums && sum < groups; ++sum) {
    vec sums[Outs][Rows];
HASTEN_UNROLL
    for (int o = 0; o < Outs; ++o)
HASTEN_UNROLL
      for (int t = 0; t < Rows; ++t) sums[o][t] = zero();
    for (int64_t g = sum; g < groups; g += kSums, ++place) {
      const int8_t* values = codes + g / 4 * kQuad + g % 4 * 16;
HASTEN_UNROLL
      for (int o = 0; o < Outs; ++o) tiles[o].ask(place);
      ints products[kApart][Outs][Rows];
HASTEN_UNROLL
      for (int part = kApart - 1; part >= 0; --part)
HASTEN_UNROLL
        for (int t = 0; t < Rows; ++t) {
          ints start = no_ints();
          if constexpr (kHasOffsets<Format>)
            if (part < kParts)
              start = offset_of<Format>(broadcast_int(x.offsets[((row + t) * 3 + plane(kParts, part)) * known + g]));
HASTEN_UNROLL
          for (int o = 0; o < Outs; ++o) products[part][o][t] = start;
        }
      const auto add_fours = [&](auto number) HASTEN_LAMBDA {
        constexpr int i = decltype(number)::kBits;
        bytes low[Outs], high[Outs];
HASTEN_UNROLL
        for (int o = 0; o < Outs; ++o) {
          tiles[o].template codes<i>(place, low[o], high[o]);
          low[o] = factors<kSigned>(low[o]);
          high[o] = factors<kSigned>(high[o]);
        }
HASTEN_UNROLL
        for (int t = 0; t < Rows; ++t) {
          const int8_t* fours = values + t * x.width + 4 * i;
          const bytes first = broadcast_four(fours), second = broadcast_four(fours + kQuad / 2);
HASTEN_UNROLL
          for (int o = 0; o < Outs; ++o) {
            products[0][o][t] = dot<kSigned>(products[0][o][t], low[o], first);
            products[kApart - 1][o][t] = dot<kSigned>(products[kApart - 1][o][t], high[o], second);
          }
        }
      };
      add_fours(FormatOf<0>());
      add_fours(FormatOf<1>());
      add_fours(FormatOf<2>());
      add_fours(FormatOf<3>());
HASTEN_UNROLL
      for (int part = 0; part < kParts; ++part)
HASTEN_UNROLL
        for (int o = 0; o < Outs; ++o) {
          const vec scale = tiles[o].scale(place, g, part);
          vec min = zero();
          if constexpr (kMins) min = tiles[o].min(place, g);
HASTEN_UNROLL
          for (int t = 0; t < Rows; ++t) {
            ints product = products[part][o][t];
            if constexpr (kParts < kApart) product = add(product, products[kApart - 1][o][t]);
            const vec both = mul(scale, broadcast(x.scales[(row + t) * known + g]));
            sums[o][t] = fma(to_floats(product), both, sums[o][t]);
            if constexpr (kMins) sums[o][t] = fma(min, broadcast(x.sums[(row + t) * 3 * known + g]), sums[o][t]);
          }
        }
    }
HASTEN_UNROLL
    for (int o = 0; o < Outs; ++o)
HASTEN_UNROLL
      for (int t = 0; t < Rows; ++t) total[o][t] = add(total[o][t], sums[o][t]);
  }
  for (int o = 0; o < Outs; ++o) {
    const int64_t from = n + o * kTile, begin = from > n0 ? from : n0, end = from + kTile < n1 ? from + kTile : n1;
    if (begin >= end) continue;
    const vec bias = m.bias ? load(m.bias + from) : zero();
    for (int t = 0; t < Rows; ++t) {
      const vec found = add(total[o][t], bias);
      float* to = y + (row + t) * ldy;
      if (end - begin == kTile) {
        store(to + from, found);
      } else {
        alignas(64) float kept[kTile];
        store(kept, found);
        std::memcpy(to + begin, kept + (begin - from), size_t(end - begin) * sizeof(float));
      }
    }
  }
}

// One row of x reads one tile after the other, several share what is unpacked of two.
template <class Format, int Rows = kTileRows>
HASTEN_INLINE void multiply_tiled_by(int rows, const Matrix& m, const Codes& x, int64_t row, float* y, int64_t ldy,
                                     int64_t n, int64_t n0, int64_t n1) {
  if constexpr (Rows > 1)
    if (rows < Rows) return multiply_tiled_by<Format, Rows - 1>(rows, m, x, row, y, ldy, n, n0, n1);
  multiply_tiled<Format, Rows == 1 ? 1 : kTileOuts, Rows>(m, x, row, y, ldy, n, n0, n1);
}

// Rows of x in blocks of nearly the same size.
template <class Format>
inline void multiply_codes_tiled_as(const Matrix& m, const Codes& x, int rows, float* y, int64_t ldy, int64_t n0,
                                    int64_t n1) {
  const int64_t blocks = (rows + kTileRows - 1) / kTileRows, step = (rows == 1 ? 1 : kTileOuts) * kTile;
  for (int64_t n = n0 / kTile * kTile; n < n1; n += step)
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t row = rows * b / blocks;
      multiply_tiled_by<Format>(int(rows * (b + 1) / blocks - row), m, x, row, y, ldy, n, n0, n1);
    }
}

inline void multiply_codes_tiled(const Matrix& m, const Codes& x, int rows, float* y, int64_t ldy, int64_t n0,
                                 int64_t n1) {
  with_tiles(m, [&](auto format) {
    multiply_codes_tiled_as<Sixteen<decltype(format)::kBits>>(m, x, rows, y, ldy, n0, n1);
  });
}

}  // namespace
}  // namespace hasten

// y = x W^T + b with x in floats, and W in any format (formats.hpp).
//
// A weight is unpacked to scale * code + min, of few rows of x in registers, for every one of them before the next weight
// is read: the time is the time to stream W from memory. Of many rows, a few rows of W are unpacked into the cache, and
// used for all rows of x. Each (row of x, row of W) pair is summed in the same order whatever the number of rows, so a
// token's logits do not depend on how many tokens were computed beside it: speculative decoding stays exact.
#pragma once

#include <cstring>

#include "formats.hpp"
#include "tile_memory.hpp"

namespace hasten {
namespace {

// Groups g to g + 15 of a row in blocks, of which `left` are there, as floats.
template <int Bits>
inline void unpack_groups(const Row<Bits>& row, int64_t g, int64_t left, float* out) {
  using Format = Row<Bits>;
  alignas(64) float scale[Format::kParts][16], low[Format::kParts][16];
  alignas(64) int8_t first[64], second[64];
#pragma GCC unroll 2
  for (int part = 0; part < Format::kParts; ++part) {
    store(scale[part], row.scales(g, left, part));
    if constexpr (Format::kMins) store(low[part], row.mins(g, left, part));
  }
  for (int i = 0; i < 4 && 4 * i < left; ++i) {
    const Quad q = row.quad(g + 4 * i, left - 4 * i);
    store_bytes(first, q.first);
    store_bytes(second, q.second);
    for (int j = 0; j < 4 && 4 * i + j < left; ++j, out += kGroup)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const int part = half * (Format::kParts - 1);
        vec codes = load_int8((half ? second : first) + 16 * j);
        const vec by = broadcast(scale[part][4 * i + j]);
        if constexpr (Format::kLess != 0) codes = sub(codes, broadcast(float(Format::kLess)));
        if constexpr (Format::kMins)
          store(out + half * kLanes, fma(codes, by, broadcast(low[part][4 * i + j])));
        else
          store(out + half * kLanes, mul(codes, by));
      }
  }
}

constexpr int64_t kPiece = 16 * kGroup;  // weights of a row that `unpack_groups` gives

// Columns [from, from + count) of one unpacked row of W against `Rows` rows of x, added to `sums` (Rows, 2).
template <int Rows>
inline void add_piece(const float* piece, int64_t count, const float* x, int64_t ldx, vec* sums) {
  vec first[Rows], second[Rows];
  for (int t = 0; t < Rows; ++t) {
    first[t] = sums[2 * t];
    second[t] = sums[2 * t + 1];
  }
  for (int64_t k = 0; k < count; k += 2 * kLanes) {
    const vec a = load(piece + k), b = load(piece + k + kLanes);
    for (int t = 0; t < Rows; ++t) {
      first[t] = fma(a, load(x + t * ldx + k), first[t]);
      second[t] = fma(b, load(x + t * ldx + k + kLanes), second[t]);
    }
  }
  for (int t = 0; t < Rows; ++t) {
    sums[2 * t] = first[t];
    sums[2 * t + 1] = second[t];
  }
}

// One row of W in blocks against `Rows` rows of x, a piece of it at a time as floats.
template <int Bits, int Rows>
inline void multiply_blocks(const Matrix& m, const float* x, int64_t ldx, float* y, int64_t ldy, int64_t n) {
  alignas(64) float piece[kPiece];
  vec sums[2 * Rows];
  for (vec& s : sums) s = zero();
  const Row<Bits> row(m, n);
  for (int64_t from = 0; from < m.in; from += kPiece) {
    const int64_t count = m.in - from < kPiece ? m.in - from : kPiece;
    unpack_groups<Bits>(row, from / kGroup, count / kGroup, piece);
    add_piece<Rows>(piece, count, x + from, ldx, sums);
  }
  const float bias = m.bias ? m.bias[n] : 0.0f;
  for (int t = 0; t < Rows; ++t) y[t * ldy + n] = sum(add(sums[2 * t], sums[2 * t + 1])) + bias;
}

// `Outs` rows of W from n on against `Rows` rows of x: y[t * ldy + n]. Two sums a pair of rows, and several
// pairs at once: one chain of dependent additions would wait four cycles for each.
template <int Bits, int Outs, int Rows>
HASTEN_INLINE void multiply_block(const Matrix& m, const float* x, int64_t ldx, float* y, int64_t ldy, int64_t n) {
  vec first[Outs][Rows], second[Outs][Rows];
  for (int o = 0; o < Outs; ++o)
    for (int t = 0; t < Rows; ++t) first[o][t] = second[o][t] = zero();
  const Row<Bits> row0(m, n), row1(m, n + (Outs > 1 ? 1 : 0)), row2(m, n + (Outs > 2 ? 2 : 0)),
      row3(m, n + (Outs > 3 ? 3 : 0));
  each_pair<Bits>(m, [&](int64_t k, int64_t l, int64_t byte, int64_t g) HASTEN_LAMBDA {
    for (int o = 0; o < Outs; ++o) {
      vec a, b;
      (o == 0 ? row0 : o == 1 ? row1 : o == 2 ? row2 : row3).pair(k, byte, g, a, b);
      for (int t = 0; t < Rows; ++t) {
        first[o][t] = fma(a, load(x + t * ldx + k), first[o][t]);
        second[o][t] = fma(b, load(x + t * ldx + l), second[o][t]);
      }
    }
  });
  for (int o = 0; o < Outs; ++o) {
    const float bias = m.bias ? m.bias[n + o] : 0.0f;
    for (int t = 0; t < Rows; ++t) y[t * ldy + n + o] = sum(add(first[o][t], second[o][t])) + bias;
  }
}

template <int Bits, int Rows>
HASTEN_INLINE void multiply_rows(const Matrix& m, const float* x, int64_t ldx, float* y, int64_t ldy, int64_t n0,
                                 int64_t n1) {
  constexpr int kOuts = Rows == 1 ? 4 : Rows <= 3 ? 2 : 1;
  int64_t n = n0;
  if constexpr (in_blocks(Bits)) {
    for (; n < n1; ++n) multiply_blocks<Bits, Rows>(m, x, ldx, y, ldy, n);
    return;
  }
  if constexpr (!in_blocks(Bits)) {
    for (; n + kOuts <= n1; n += kOuts) multiply_block<Bits, kOuts, Rows>(m, x, ldx, y, ldy, n);
    for (; n < n1; ++n) multiply_block<Bits, 1, Rows>(m, x, ldx, y, ldy, n);
  }
}

template <int Bits>
HASTEN_INLINE void multiply_all(const Matrix& m, const float* x, int64_t ldx, int rows, float* y, int64_t ldy,
                                int64_t n0, int64_t n1) {
  for (; rows >= 6; rows -= 6, x += 6 * ldx, y += 6 * ldy) multiply_rows<Bits, 6>(m, x, ldx, y, ldy, n0, n1);
  switch (rows) {
    case 1: return multiply_rows<Bits, 1>(m, x, ldx, y, ldy, n0, n1);
    case 2: return multiply_rows<Bits, 2>(m, x, ldx, y, ldy, n0, n1);
    case 3: return multiply_rows<Bits, 3>(m, x, ldx, y, ldy, n0, n1);
    case 4: return multiply_rows<Bits, 4>(m, x, ldx, y, ldy, n0, n1);
    case 5: return multiply_rows<Bits, 5>(m, x, ldx, y, ldy, n0, n1);
    default: return;
  }
}

template <int Bits>
HASTEN_INLINE void unpack_all(const Matrix& m, float* out, int64_t n0, int64_t n1) {
  for (int64_t n = n0; n < n1; ++n, out += m.in) {
    const Row<Bits> row(m, n);
    if constexpr (in_blocks(Bits)) {
      for (int64_t from = 0; from < m.in; from += kPiece)
        unpack_groups<Bits>(row, from / kGroup, (m.in - from) / kGroup, out + from);
    } else {
      each_pair<Bits>(m, [&](int64_t k, int64_t l, int64_t byte, int64_t g) HASTEN_LAMBDA {
        vec a, b;
        row.pair(k, byte, g, a, b);
        store(out + k, a);
        store(out + l, b);
      });
    }
  }
}

// Rows [n0, n1) of W as floats, (n1 - n0, in).
inline void unpack(const Matrix& m, float* out, int64_t n0, int64_t n1) {
  with_format(m, [&](auto format) { unpack_all<decltype(format)::kBits>(m, out, n0, n1); });
}

// From so many rows of x and columns on, rows of W are unpacked into the cache first.
constexpr int kManyRows = 12;
constexpr int64_t kManyColumns = 512;
// At once: rows of W that are unpacked, and of x, whose columns are taken so many at a time that they stay in the
// first cache.
constexpr int64_t kUnpacked = 16, kRowsAtOnce = 6, kColumnsAtOnce = 768;
// Between rows: lines of rows that are a multiple of 4096 bytes apart have the same few places in the first cache.
constexpr int64_t kBetween = kLanes;

HASTEN_INLINE int64_t columns_at_once(Halves at) {
  return at.group < kColumnsAtOnce ? kColumnsAtOnce / at.group * at.group : at.group;
}

// `columns` columns of `Outs` unpacked rows of W, `ldw` apart, against `Rows` rows of x: added to what `sums` has of
// them, (outs, kRowsAtOnce, 2, kLanes), if there are any yet.
template <int Outs, int Rows>
inline void add_columns(const float* w, int64_t ldw, Halves at, const float* x, int64_t ldx, int64_t columns, bool any,
                        float* sums) {
  vec first[Outs][Rows], second[Outs][Rows];
HASTEN_UNROLL
  for (int o = 0; o < Outs; ++o)
HASTEN_UNROLL
    for (int t = 0; t < Rows; ++t) {
      const float* known = sums + (o * kRowsAtOnce + t) * 2 * kLanes;
      first[o][t] = any ? load(known) : zero();
      second[o][t] = any ? load(known + kLanes) : zero();
    }
  for (int64_t group = 0; group < columns; group += at.group)
    for (int64_t k = group; k < group + at.half; k += kLanes) {
      vec a[Outs], b[Outs];
HASTEN_UNROLL
      for (int o = 0; o < Outs; ++o) {
        a[o] = load(w + o * ldw + k);
        b[o] = load(w + o * ldw + k + at.half);
      }
HASTEN_UNROLL
      for (int t = 0; t < Rows; ++t) {
        const vec xa = in_register(load(x + t * ldx + k)), xb = in_register(load(x + t * ldx + k + at.half));
HASTEN_UNROLL
        for (int o = 0; o < Outs; ++o) {
          first[o][t] = fma(a[o], xa, first[o][t]);
          second[o][t] = fma(b[o], xb, second[o][t]);
        }
      }
    }
HASTEN_UNROLL
  for (int o = 0; o < Outs; ++o)
HASTEN_UNROLL
    for (int t = 0; t < Rows; ++t) {
      float* known = sums + (o * kRowsAtOnce + t) * 2 * kLanes;
      store(known, first[o][t]);
      store(known + kLanes, second[o][t]);
    }
}

// `outs` rows of W, `Rows` of x; `room` for kColumnsAtOnce columns of x, or of a group that is longer.
template <int Rows = int(kRowsAtOnce)>
inline void multiply_unpacked(int rows, const Matrix& m, Halves at, const float* w, int64_t ldw, int64_t outs,
                              const float* x, int64_t ldx, float* y, int64_t ldy, int64_t n, float* room) {
  if constexpr (Rows > 1)
    if (rows < Rows) return multiply_unpacked<Rows - 1>(rows, m, at, w, ldw, outs, x, ldx, y, ldy, n, room);
  alignas(64) float sums[kUnpacked * kRowsAtOnce * 2 * kLanes];
  const int64_t most = columns_at_once(at);
  for (int64_t from = 0; from < m.in; from += most) {
    const int64_t columns = from + most < m.in ? most : m.in - from;
    const float* part = x + from;
    int64_t apart = ldx;
    if (ldx % 1024 == 0) {
      apart = most + kBetween;
      for (int t = 0; t < Rows; ++t) std::memcpy(room + t * apart, part + t * ldx, size_t(columns) * sizeof(float));
      part = room;
    }
    int64_t o = 0;
    for (; o + 2 <= outs; o += 2)
      add_columns<2, Rows>(w + o * ldw + from, ldw, at, part, apart, columns, from > 0, sums + o * kRowsAtOnce * 2 * kLanes);
    if (o < outs)
      add_columns<1, Rows>(w + o * ldw + from, ldw, at, part, apart, columns, from > 0, sums + o * kRowsAtOnce * 2 * kLanes);
  }
  for (int64_t o = 0; o < outs; ++o) {
    const float bias = m.bias ? m.bias[n + o] : 0.0f;
    for (int t = 0; t < Rows; ++t) {
      const float* found = sums + (o * kRowsAtOnce + t) * 2 * kLanes;
      y[t * ldy + n + o] = sum(add(load(found), load(found + kLanes))) + bias;
    }
  }
}

template <int Bits>
inline void multiply_many(const Matrix& m, const float* x, int64_t ldx, int rows, float* y, int64_t ldy, int64_t n0,
                          int64_t n1, float* memory) {
  const int64_t blocks = (rows + kRowsAtOnce - 1) / kRowsAtOnce, ldw = m.in + kBetween;
  for (int64_t n = n0; n < n1; n += kUnpacked) {
    const int64_t outs = n1 - n < kUnpacked ? n1 - n : kUnpacked;
    for (int64_t o = 0; o < outs; ++o) unpack_all<Bits>(m, memory + o * ldw, n + o, n + o + 1);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t row = rows * b / blocks;
      multiply_unpacked(int(rows * (b + 1) / blocks - row), m, halves_of<Bits>(m), memory, ldw, outs, x + row * ldx, ldx,
                        y + row * ldy, ldy, n, memory + kUnpacked * ldw);
    }
  }
}

// Rows [n0, n1) of W times every row of x.
inline void multiply(const Matrix& m, const float* x, int64_t ldx, int rows, float* y, int64_t ldy, int64_t n0,
                     int64_t n1) {
  void* memory = nullptr;
  if (rows >= kManyRows && m.in >= kManyColumns) {
    const int64_t group = m.group > kColumnsAtOnce ? m.group : kColumnsAtOnce;
    memory = tile_memory((kUnpacked * (m.in + kBetween) + kRowsAtOnce * (group + kBetween)) * int64_t(sizeof(float)));
  }
  with_format(m, [&](auto format) {
    constexpr int bits = decltype(format)::kBits;
    if (memory)
      multiply_many<bits>(m, x, ldx, rows, y, ldy, n0, n1, static_cast<float*>(memory));
    else
      multiply_all<bits>(m, x, ldx, rows, y, ldy, n0, n1);
  });
}

}  // namespace
}  // namespace hasten

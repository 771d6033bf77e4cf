// How a format stores a row of a weight: all that products (linear.hpp, integer_linear.hpp) know of it.
//
// A format is a `Row`: made of a matrix and a row's number, it gives
//   pair(k, byte, g, a, b)   32 weights as floats, where `each_pair` stands;
// and, if it has codes, for products in whole numbers, with groups of 32 counted from the row's beginning:
//   quad(g, left)            the codes of groups g to g + 3 (a multiple of 4), zeros for those beyond `left` groups;
//   scales(g, left, part)    the scales of groups g to g + 15 (a multiple of 16), likewise;
//   mins(g, left, part)      if kMins: what is added to each scaled code;
//   kSigned                  whether codes are signed; else they are 0 to 127;
//   kLess                    what is taken off unsigned codes: 0, or a power of two from 4 to 32;
//   kMins                    whether there are mins;
//   raw(g, left), split(raw) of formats with 16 bytes a group: these of groups g to g + 3, and the codes in any of them;
//   kAhead                   whether one row of x asks for weights ahead of time: not where the processor sees them coming;
//   ask(g, count)            asks the memory for so many groups from g on ahead of time, wherever the row stands;
//   kParts                   2 where each half of a group (16 weights) has a scale and min of its own, `part`; else 1.
// No read goes beyond the row's last group. A new format adds its Row, and a line to `with_format`.
#pragma once

#include "bytes.hpp"
#include "prefetch.hpp"
#include "types.hpp"

namespace hasten {
namespace {

template <int Bits>
struct Row;

template <int Bits>
struct FormatOf {
  static constexpr int kBits = Bits;
};

// For formats whose weights are plain numbers.
struct WithoutCodes {
  static constexpr bool kCodes = false;
};

template <>
struct Row<kFp32> : WithoutCodes {
  const float* w;
  Row(const Matrix& m, int64_t n) : w(static_cast<const float*>(m.codes) + n * m.in) {}
  HASTEN_INLINE_METHOD void pair(int64_t k, int64_t, int64_t, vec& a, vec& b) const {
    a = load(w + k);
    b = load(w + k + kLanes);
  }
};

template <>
struct Row<kBf16> : WithoutCodes {
  const uint16_t* w;
  Row(const Matrix& m, int64_t n) : w(static_cast<const uint16_t*>(m.codes) + n * m.in) {}
  HASTEN_INLINE_METHOD void pair(int64_t k, int64_t, int64_t, vec& a, vec& b) const {
    a = load_bf16(w + k);
    b = load_bf16(w + k + kLanes);
  }
};

template <>
struct Row<kFp16> : WithoutCodes {
  const uint16_t* w;
  Row(const Matrix& m, int64_t n) : w(static_cast<const uint16_t*>(m.codes) + n * m.in) {}
  HASTEN_INLINE_METHOD void pair(int64_t k, int64_t, int64_t, vec& a, vec& b) const {
    a = load_fp16(w + k);
    b = load_fp16(w + k + kLanes);
  }
};

template <>
struct Row<kInt8> {
  static constexpr bool kCodes = true, kSigned = true, kMins = false, kAhead = false;
  static constexpr int kParts = 1, kLess = 0;
  const int8_t* w;
  const uint16_t* scale;
  Row(const Matrix& m, int64_t n)
      : w(static_cast<const int8_t*>(m.codes) + n * m.in), scale(m.scales + n * (m.in / m.group)) {}
  HASTEN_INLINE_METHOD void pair(int64_t k, int64_t, int64_t g, vec& a, vec& b) const {
    const vec s = broadcast_fp16(scale[g]);
    a = mul(load_int8(w + k), s);
    b = mul(load_int8(w + k + kLanes), s);
  }
  HASTEN_INLINE_METHOD void ask(int64_t g, int64_t count) const {
    ask_memory(w + kGroup * g, kGroup * count);
    if (g % 32 == 0) ask_memory(scale + g, 1);
  }
  HASTEN_INLINE_METHOD Quad quad(int64_t g, int64_t left) const {
    const int8_t* p = w + kGroup * g;
    const bytes a = left >= 2 ? load_bytes(p) : load_bytes(p, kGroup);
    const bytes b = left >= 4 ? load_bytes(p + 64) : load_bytes(p + 64, left > 2 ? kGroup : 0);
    return split_sixteens(a, b);
  }
  HASTEN_INLINE_METHOD vec scales(int64_t g, int64_t left, int) const { return load_fp16_part(scale + g, left); }
};

// 16 codes of int4 and the 16 behind them as the weights that they stand for.
template <bool Mins>
HASTEN_INLINE void int4_pair(const uint8_t* w, const uint16_t* scale, const uint16_t* min, vec& a, vec& b) {
  const vec s = broadcast_fp16(*scale);
  load_int4(w, a, b);
  if constexpr (Mins) {
    const vec low = broadcast_fp16(*min);
    a = fma(a, s, low);
    b = fma(b, s, low);
  } else {
    a = mul(sub(a, broadcast(8)), s);
    b = mul(sub(b, broadcast(8)), s);
  }
}

template <bool Mins>
struct Int4Row {
  static constexpr bool kCodes = true, kSigned = false, kMins = Mins, kAhead = true;
  static constexpr int kParts = 1, kLess = Mins ? 0 : 8;
  const uint8_t* w;
  const uint16_t *scale, *min;
  Int4Row(const Matrix& m, int64_t n)
      : w(static_cast<const uint8_t*>(m.codes) + n * (m.in / 2)),
        scale(m.scales + n * (m.in / m.group)),
        min(Mins ? m.mins + n * (m.in / m.group) : nullptr) {}
  HASTEN_INLINE_METHOD void pair(int64_t, int64_t byte, int64_t g, vec& a, vec& b) const {
    int4_pair<Mins>(w + byte, scale + g, Mins ? min + g : nullptr, a, b);
  }
  HASTEN_INLINE_METHOD void ask(int64_t g, int64_t count) const {
    ask_memory(w + kGroup / 2 * g, kGroup / 2 * count);
    if (g % 32) return;
    ask_memory(scale + g, 1);
    if constexpr (Mins) ask_memory(min + g, 1);
  }
  HASTEN_INLINE_METHOD bytes raw(int64_t g, int64_t left) const {
    const uint8_t* p = w + kGroup / 2 * g;
    return left >= 4 ? load_bytes(p) : load_bytes(p, kGroup / 2 * left);
  }
  HASTEN_INLINE_METHOD static Quad split(bytes both) { return {low_nibbles(both), high_nibbles(both)}; }
  HASTEN_INLINE_METHOD Quad quad(int64_t g, int64_t left) const { return split(raw(g, left)); }
  HASTEN_INLINE_METHOD vec scales(int64_t g, int64_t left, int) const { return load_fp16_part(scale + g, left); }
  HASTEN_INLINE_METHOD vec mins(int64_t g, int64_t left, int) const { return load_fp16_part(min + g, left); }
};
template <>
struct Row<kInt4> : Int4Row<true> {
  using Int4Row::Int4Row;
};
template <>
struct Row<kInt4Centred> : Int4Row<false> {
  using Int4Row::Int4Row;
};

// Where the two halves of 32 weights stand, of whose products two sums are made: an int4 group's first and second half.
struct Halves {
  int64_t group, half;  // columns of a group, and from its beginning to the second half
};
template <int Bits>
HASTEN_INLINE Halves halves_of(const Matrix& m) {
  return Bits == kInt4 || Bits == kInt4Centred ? Halves{m.group, m.group / 2} : Halves{2 * kLanes, kLanes};
}

}  // namespace
}  // namespace hasten

#include "block_formats.hpp"
#include "tiles.hpp"

namespace hasten {
namespace {

// Calls body(k, second, byte, g) for every 32 weights of a row: they stand at k..k+15 and
// second..second+15, in group g, and an int4 row holds them in the 16 bytes from `byte`.
template <int Bits, class Body>
HASTEN_INLINE void each_pair(const Matrix& m, Body body) {
  if constexpr (Bits == kInt8) {
    for (int64_t k = 0, g = 0; k < m.in; k += m.group, ++g)
      for (int64_t j = 0; j < m.group; j += 2 * kLanes) body(k + j, k + j + kLanes, 0, g);
  } else {
    const Halves at = halves_of<Bits>(m);
    for (int64_t k = 0, g = 0; k < m.in; k += at.group, ++g)
      for (int64_t j = 0; j < at.half; j += kLanes) body(k + j, k + at.half + j, k / 2 + j, g);
  }
}

// Calls body(FormatOf<Bits>()) of the matrix's format.
template <class Body>
HASTEN_INLINE void with_format(const Matrix& m, Body body) {
  if (m.tiled) return with_tiles(m, [&](auto format) { body(FormatOf<kTiled + decltype(format)::kBits>()); });
  switch (m.bits) {
    case kFp32: return body(FormatOf<kFp32>());
    case kFp16: return body(FormatOf<kFp16>());
    case kBf16: return body(FormatOf<kBf16>());
    case kInt8: return body(FormatOf<kInt8>());
    case kQ5_0: return body(FormatOf<kQ5_0>());
    case kQ5_1: return body(FormatOf<kQ5_1>());
    case kQ2K: return body(FormatOf<kQ2K>());
    case kQ3K: return body(FormatOf<kQ3K>());
    case kQ4K: return body(FormatOf<kQ4K>());
    case kQ5K: return body(FormatOf<kQ5K>());
    case kQ6K: return body(FormatOf<kQ6K>());
    case kIq4Nl: return body(FormatOf<kIq4Nl>());
    case kIq4Xs: return body(FormatOf<kIq4Xs>());
    case kMxfp4: return body(FormatOf<kMxfp4>());
    default: return m.mins ? body(FormatOf<kInt4>()) : body(FormatOf<kInt4Centred>());
  }
}

}  // namespace
}  // namespace hasten

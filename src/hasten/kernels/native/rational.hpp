// A rational function P / Q of degrees 5 and 4, its coefficients shared by groups of channels, and its gradient;
// formulas in hasten/kernels/rational.py. The gradient of the coefficients is summed in registers over a block of
// rows of one group and leaves it once (FlashKAT, arXiv 2505.13813, section 4); `naive` adds every element's share
// to one shared address instead, as the kernel did that it replaces.
#pragma once

#include <cstdint>

namespace hasten {

struct RationalArgs {
  static constexpr int64_t kTop = 6, kBottom = 4, kSums = kTop + kBottom, kRows = 64;
  int64_t rows = 0, channels = 0, groups = 1;
  int64_t numerators = 1, denominators = 1;  // each 1 or groups
  bool bf16 = false;
  const void *x = nullptr, *grad = nullptr;  // (rows, channels)
  const float *top = nullptr;                // (numerators, 6)
  const float *bottom = nullptr;             // (denominators, 4)
  void* y = nullptr;                         // forward: the value; backward: the gradient of x
  // What each block adds up (blocks(), groups, 10); naive: (groups, 10).
  float* sums = nullptr;
  int64_t repeats = 1;  // naive: how often the quotient is evaluated, to see whether arithmetic matters
  float nothing = 0;    // 0 that the compiler does not know

  int64_t blocks() const { return (rows + kRows - 1) / kRows; }
};

struct RationalKernels {
  // Rows [begin, end).
  void (*forward)(const RationalArgs&, int64_t begin, int64_t end);
  // Blocks of 64 rows [begin, end).
  void (*backward)(const RationalArgs&, int64_t begin, int64_t end);
  // Rows [begin, end); returns the shared additions made.
  int64_t (*naive)(const RationalArgs&, int64_t begin, int64_t end);
};

}  // namespace hasten

#if defined(HASTEN_ISA)
#include "simd.hpp"

namespace hasten {
namespace {

struct Fraction {
  const float *a, *b;
  vec p, q;  // P and 1 / Q

  HASTEN_INLINE_METHOD Fraction(const float* top, const float* bottom) : a(top), b(bottom) {}

  HASTEN_INLINE_METHOD void at(vec v, vec size) {
    p = broadcast(a[5]);
    for (int i = 4; i >= 0; --i) p = fma(p, v, broadcast(a[i]));
    vec denominator = broadcast(b[3]);
    for (int j = 2; j >= 0; --j) denominator = fma(denominator, size, broadcast(b[j]));
    denominator = fma(denominator, size, broadcast(1.0f));
    q = div(broadcast(1.0f), denominator);
  }

  // dF/dv, with d|v|/dv = 1 at 0.
  HASTEN_INLINE_METHOD vec slope(vec v, vec size, vec m) const {
    vec up = broadcast(5 * a[5]);
    for (int i = 4; i >= 1; --i) up = fma(up, v, broadcast(float(i) * a[i]));
    vec down = broadcast(4 * b[3]);
    for (int j = 2; j >= 0; --j) down = fma(down, size, broadcast(float(j + 1) * b[j]));
    return fma(up, q, mul(copysign(m, mul(m, copysign(broadcast(1.0f), v))), down));
  }
};

struct RationalGroup {
  int64_t first, width;
  float a[RationalArgs::kTop], b[RationalArgs::kBottom], sign[RationalArgs::kBottom];

  RationalGroup(const RationalArgs& r, int64_t group) : first(group * (r.channels / r.groups)), width(r.channels / r.groups) {
    std::memcpy(a, r.top + (r.numerators > 1 ? group * RationalArgs::kTop : 0), sizeof a);
    std::memcpy(b, r.bottom + (r.denominators > 1 ? group * RationalArgs::kBottom : 0), sizeof b);
    for (int j = 0; j < RationalArgs::kBottom; ++j) {
      sign[j] = b[j] < 0 ? -1.0f : 1.0f;
      b[j] *= sign[j];
    }
  }
};

template <class T>
void rational_forward_as(const RationalArgs& r, int64_t begin, int64_t end) {
  for (int64_t g = 0; g < r.groups; ++g) {
    const RationalGroup group(r, g);
    Fraction f(group.a, group.b);
    for (int64_t row = begin; row < end; ++row) {
      const T* x = static_cast<const T*>(r.x) + row * r.channels + group.first;
      T* y = static_cast<T*>(r.y) + row * r.channels + group.first;
      for (int64_t c = 0; c < group.width; c += kLanes) {
        const vec v = load_part(x + c, group.width - c);
        f.at(v, abs(v));
        store_part(y + c, mul(f.p, f.q), group.width - c);
      }
    }
  }
}

template <class T>
void rational_backward_as(const RationalArgs& r, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    const int64_t from = block * RationalArgs::kRows;
    const int64_t to = from + RationalArgs::kRows < r.rows ? from + RationalArgs::kRows : r.rows;
    for (int64_t g = 0; g < r.groups; ++g) {
      const RationalGroup group(r, g);
      Fraction f(group.a, group.b);
      vec da[RationalArgs::kTop], db[RationalArgs::kBottom];
      for (vec& sum : da) sum = zero();
      for (vec& sum : db) sum = zero();
      for (int64_t row = from; row < to; ++row) {
        const int64_t at = row * r.channels + group.first;
        const T *x = static_cast<const T*>(r.x) + at, *grad = static_cast<const T*>(r.grad) + at;
        T* dx = static_cast<T*>(r.y) + at;
        for (int64_t c = 0; c < group.width; c += kLanes) {
          const int64_t count = group.width - c;
          // Lanes beyond the group read a gradient of 0 and add nothing.
          const vec v = load_part(x + c, count), o = load_part(grad + c, count), size = abs(v);
          f.at(v, size);
          const vec m = sub(zero(), mul(mul(f.p, f.q), f.q));
          store_part(dx + c, mul(o, f.slope(v, size, m)), count);
          vec share = mul(o, f.q);
          da[0] = add(da[0], share);
          for (int i = 1; i < RationalArgs::kTop; ++i) {
            share = mul(share, v);
            da[i] = add(da[i], share);
          }
          share = mul(o, m);
          for (vec& sum : db) {
            share = mul(share, size);
            sum = add(sum, share);
          }
        }
      }
      float* sums = r.sums + (block * r.groups + g) * RationalArgs::kSums;
      for (int i = 0; i < RationalArgs::kTop; ++i) sums[i] = sum(da[i]);
      for (int j = 0; j < RationalArgs::kBottom; ++j) sums[RationalArgs::kTop + j] = group.sign[j] * sum(db[j]);
    }
  }
}

// No std::atomic here: its functions would be linked once for all instruction sets.
HASTEN_INLINE void add_shared(float* to, float share) {
  uint32_t* bits = reinterpret_cast<uint32_t*>(to);
  uint32_t before = __atomic_load_n(bits, __ATOMIC_RELAXED), after;
  do {
    float value;
    std::memcpy(&value, &before, sizeof value);
    value += share;
    std::memcpy(&after, &value, sizeof after);
  } while (!__atomic_compare_exchange_n(bits, &before, after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
}

template <class T>
int64_t rational_naive_as(const RationalArgs& r, int64_t begin, int64_t end) {
  int64_t additions = 0;
  for (int64_t row = begin; row < end; ++row)
    for (int64_t g = 0; g < r.groups; ++g) {
      const RationalGroup group(r, g);
      Fraction f(group.a, group.b);
      const int64_t at = row * r.channels + group.first;
      const T *x = static_cast<const T*>(r.x) + at, *grad = static_cast<const T*>(r.grad) + at;
      T* dx = static_cast<T*>(r.y) + at;
      float* sums = r.sums + g * RationalArgs::kSums;  // KAT's kernel pools per group
      float shares[RationalArgs::kSums][kLanes];
      for (int64_t c = 0; c < group.width; c += kLanes) {
        const int64_t count = group.width - c;
        const vec v = load_part(x + c, count), o = load_part(grad + c, count), size = abs(v);
        vec again = v;
        for (int64_t i = 0; i < r.repeats; ++i) {
          f.at(again, abs(again));
          // P and the quotient both: neither polynomial nor the division can be left out.
          again = fma(mul(f.p, f.q), broadcast(r.nothing), v);
        }
        const vec m = sub(zero(), mul(mul(f.p, f.q), f.q));
        store_part(dx + c, mul(o, f.slope(v, size, m)), count);
        vec share = mul(o, f.q);
        store(shares[0], share);
        for (int i = 1; i < RationalArgs::kTop; ++i) store(shares[i], share = mul(share, v));
        share = mul(o, m);
        for (int j = 0; j < RationalArgs::kBottom; ++j)
          store(shares[RationalArgs::kTop + j], mul(share = mul(share, size), broadcast(group.sign[j])));
        for (int lane = 0; lane < kLanes && lane < count; ++lane)
          for (int i = 0; i < RationalArgs::kSums; ++i) {
            add_shared(sums + i, shares[i][lane]);
            ++additions;
          }
      }
    }
  return additions;
}

void rational_forward(const RationalArgs& r, int64_t begin, int64_t end) {
  r.bf16 ? rational_forward_as<uint16_t>(r, begin, end) : rational_forward_as<float>(r, begin, end);
}

void rational_backward(const RationalArgs& r, int64_t begin, int64_t end) {
  r.bf16 ? rational_backward_as<uint16_t>(r, begin, end) : rational_backward_as<float>(r, begin, end);
}

int64_t rational_naive(const RationalArgs& r, int64_t begin, int64_t end) {
  return r.bf16 ? rational_naive_as<uint16_t>(r, begin, end) : rational_naive_as<float>(r, begin, end);
}

constexpr RationalKernels rational_kernels = {&rational_forward, &rational_backward, &rational_naive};

}  // namespace
}  // namespace hasten
#endif

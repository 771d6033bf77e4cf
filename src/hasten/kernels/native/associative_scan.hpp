// h[t] = a[t] h[t-1] + b[t], element by element, with resets, and its gradient; see
// hasten/kernels/associative_scan.py. Complex numbers come as two planes of a row: all real parts, then all
// imaginary ones. Sixteen states of one sequence are a task.
#pragma once

#include <cstdint>

namespace hasten {

struct LinearScanArgs {
  int64_t batch = 0, length = 0, states = 0;
  bool complex = false, constant = false, bf16 = false;
  // (batch, length, states or 2 states); a (states or 2 states), always fp32, when constant
  const void *a = nullptr, *b = nullptr;
  const uint8_t* resets = nullptr;  // (batch, length) or null
  const float* initial = nullptr;   // (batch, width) or null
  void* h = nullptr;                // (batch, length, width)
  float* last = nullptr;            // (batch, width)
  const void* h_grad = nullptr;
  const float* last_grad = nullptr;  // (batch, width) or null
  void* a_grad = nullptr;            // as a; (batch, width) fp32 when constant
  void* b_grad = nullptr;
  float* initial_grad = nullptr;  // (batch, width) or null

  int64_t width() const { return complex ? 2 * states : states; }
  int64_t blocks() const { return (states + 15) / 16; }
};

struct AssociativeScanKernels {
  void (*forward)(const LinearScanArgs&, int64_t begin, int64_t end);
  void (*backward)(const LinearScanArgs&, int64_t begin, int64_t end);
};

}  // namespace hasten

#if defined(HASTEN_ISA)
#include "simd.hpp"

namespace hasten {
namespace {

// One number of each of sixteen states; the imaginary part is not touched unless complex.
template <bool complex>
struct Number {
  vec re, im;

  static HASTEN_INLINE_METHOD Number none() { return {zero(), zero()}; }
  template <class T>
  static HASTEN_INLINE_METHOD Number at(const T* row, int64_t states, int64_t count) {
    Number n;
    n.re = load_part(row, count);
    if constexpr (complex) n.im = load_part(row + states, count);
    return n;
  }
  template <class T>
  HASTEN_INLINE_METHOD void put(T* row, int64_t states, int64_t count) const {
    store_part(row, re, count);
    if constexpr (complex) store_part(row + states, im, count);
  }
  // this * x + y
  HASTEN_INLINE_METHOD Number times(const Number& x, const Number& y) const {
    Number n;
    n.re = fma(re, x.re, y.re);
    if constexpr (complex) {
      n.re = sub(n.re, mul(im, x.im));
      n.im = fma(re, x.im, fma(im, x.re, y.im));
    }
    return n;
  }
  HASTEN_INLINE_METHOD Number conjugate() const {
    Number n = *this;
    if constexpr (complex) n.im = sub(zero(), im);
    return n;
  }
};

template <class T, bool complex>
void linear_forward_task(const LinearScanArgs& s, int64_t sequence, int64_t first, int64_t count) {
  using N = Number<complex>;
  const int64_t width = s.width(), from = sequence * s.length * width + first;
  const T* b = static_cast<const T*>(s.b) + from;
  const T* a = s.constant ? nullptr : static_cast<const T*>(s.a) + from;
  T* h = static_cast<T*>(s.h) + from;
  const N fixed = s.constant ? N::at(static_cast<const float*>(s.a) + first, s.states, count) : N::none();
  N state = s.initial ? N::at(s.initial + sequence * width + first, s.states, count) : N::none();
  for (int64_t t = 0; t < s.length; ++t) {
    __builtin_prefetch(b + 16 * width);
    if (s.resets && s.resets[sequence * s.length + t]) state = N::none();
    state = (a ? N::at(a, s.states, count) : fixed).times(state, N::at(b, s.states, count));
    state.put(h, s.states, count);
    b += width;
    h += width;
    if (a) a += width;
  }
  state.put(s.last + sequence * width + first, s.states, count);
}

template <class T, bool complex>
void linear_backward_task(const LinearScanArgs& s, int64_t sequence, int64_t first, int64_t count) {
  using N = Number<complex>;
  const int64_t width = s.width(), row = sequence * s.length * width + first, own = sequence * width + first;
  const T *h = static_cast<const T*>(s.h) + row, *h_grad = static_cast<const T*>(s.h_grad) + row;
  const T* a = s.constant ? nullptr : static_cast<const T*>(s.a) + row;
  T* b_grad = static_cast<T*>(s.b_grad) + row;
  T* a_grad = s.constant ? nullptr : static_cast<T*>(s.a_grad) + row;
  const N fixed = s.constant ? N::at(static_cast<const float*>(s.a) + first, s.states, count) : N::none();
  const N initial = s.initial ? N::at(s.initial + own, s.states, count) : N::none();
  N carry = s.last_grad ? N::at(s.last_grad + own, s.states, count) : N::none();
  N total = N::none();
  for (int64_t t = s.length - 1; t >= 0; --t) {
    const bool reset = s.resets && s.resets[sequence * s.length + t];
    N g = N::at(h_grad + t * width, s.states, count);
    g.re = add(g.re, carry.re);
    if constexpr (complex) g.im = add(g.im, carry.im);
    g.put(b_grad + t * width, s.states, count);
    const N before = reset ? N::none() : t ? N::at(h + (t - 1) * width, s.states, count) : initial;
    if (a_grad)
      before.conjugate().times(g, N::none()).put(a_grad + t * width, s.states, count);
    else
      total = before.conjugate().times(g, total);
    carry = reset ? N::none() : (a ? N::at(a + t * width, s.states, count) : fixed).conjugate().times(g, N::none());
  }
  if (s.constant) total.put(static_cast<float*>(s.a_grad) + own, s.states, count);
  if (s.initial_grad) carry.put(s.initial_grad + own, s.states, count);
}

template <class T, bool complex>
void linear_scan_as(const LinearScanArgs& s, int64_t begin, int64_t end, bool back) {
  for (int64_t task = begin; task < end; ++task) {
    const int64_t sequence = task / s.blocks(), first = task % s.blocks() * kLanes;
    const int64_t count = s.states - first < kLanes ? s.states - first : kLanes;
    back ? linear_backward_task<T, complex>(s, sequence, first, count)
         : linear_forward_task<T, complex>(s, sequence, first, count);
  }
}

void linear_scan(const LinearScanArgs& s, int64_t begin, int64_t end, bool back) {
  if (s.bf16)
    s.complex ? linear_scan_as<uint16_t, true>(s, begin, end, back) : linear_scan_as<uint16_t, false>(s, begin, end, back);
  else
    s.complex ? linear_scan_as<float, true>(s, begin, end, back) : linear_scan_as<float, false>(s, begin, end, back);
}

void linear_forward(const LinearScanArgs& s, int64_t begin, int64_t end) { linear_scan(s, begin, end, false); }
void linear_backward(const LinearScanArgs& s, int64_t begin, int64_t end) { linear_scan(s, begin, end, true); }

constexpr AssociativeScanKernels associative_scan_kernels = {&linear_forward, &linear_backward};

}  // namespace
}  // namespace hasten
#endif

// The selective scan of a state-space layer, and its gradient; the formulas stand in
// hasten/kernels/selective_scan.py. Sixteen channels of one sequence are a task: their states stay in the
// first cache level, so nothing of size (length, channels, states) exists. The gradient starts from the
// states at the borders of chunks, which the forward pass keeps, and runs each chunk again.
#pragma once

#include <cstdint>

namespace hasten {

struct ScanArgs {
  int64_t batch = 0, length = 0, channels = 0, states = 0;
  int64_t padded = 0;  // channels rounded up to whole vectors: the width of a, skip and bias
  bool bf16 = false;   // what x, delta, z, y and their gradients are
  bool softplus = false, exact = false;
  // (batch, length, channels) with rows that far apart
  const void *x = nullptr, *delta = nullptr, *z = nullptr;
  int64_t x_row = 0, delta_row = 0, z_row = 0;
  const float* a = nullptr;                     // (states, padded)
  const float *b = nullptr, *c = nullptr;       // (batch, length, states)
  const float *skip = nullptr, *bias = nullptr;  // (padded) or null
  const uint8_t* starts = nullptr;              // (batch, length) or null
  const float* initial = nullptr;               // (batch, channels, states) or null
  void* y = nullptr;                            // (batch, length, channels)
  float* last = nullptr;                        // (batch, channels, states)
  float* borders = nullptr;                     // (batch, padded / 16, chunks, states, 16) or null
  // Of the gradient. Those with a thread index are sums that the caller adds up.
  const void* y_grad = nullptr;          // (batch, length, channels)
  const float* last_grad = nullptr;      // (batch, channels, states) or null
  void *x_grad = nullptr, *delta_grad = nullptr, *z_grad = nullptr;
  float *b_grad = nullptr, *c_grad = nullptr;          // of this thread: (batch, length, states)
  float *a_grad = nullptr;                             // of this thread: (states, padded)
  float *skip_grad = nullptr, *bias_grad = nullptr;    // of this thread: (padded)
  float* initial_grad = nullptr;                       // (batch, channels, states) or null
  float* scratch = nullptr;                            // of this thread: scan_scratch() floats

  int64_t chunks() const { return (length + kChunk - 1) / kChunk; }
  int64_t tasks() const { return batch * (padded / 16); }

  static constexpr int64_t kChunk = 32;        // steps between the states that are written
  static constexpr int64_t kMostStates = 256;  // of a channel
};

// Floats of scratch for the gradient of up to `tasks` tasks.
static inline int64_t scan_scratch(int64_t states, int64_t tasks) {
  constexpr int64_t chunk = ScanArgs::kChunk;
  return 16 * (states * (5 * chunk + 1 + tasks) + 8 * chunk);
}

struct SelectiveScanKernels {
  void (*forward)(const ScanArgs&, int64_t begin, int64_t end);
  void (*backward)(const ScanArgs&, int64_t begin, int64_t end);
};

}  // namespace hasten

#if defined(HASTEN_ISA)
#include "simd.hpp"

namespace hasten {
namespace {

constexpr float kLog2e = 1.44269504088896341f;

// One task: which channels, how many of them are real.
struct ScanTask {
  int64_t sequence, channel, count;
  ScanTask(const ScanArgs& s, int64_t task) {
    const int64_t blocks = s.padded / kLanes;
    sequence = task / blocks;
    channel = task % blocks * kLanes;
    count = s.channels - channel < kLanes ? s.channels - channel : kLanes;
  }
};

template <class T>
HASTEN_INLINE vec scan_step_size(const ScanArgs& s, const T* delta, vec bias, int64_t count) {
  const vec d = add(load_part(delta, count), bias);
  return s.softplus ? softplus(d) : d;
}

HASTEN_INLINE void load_states(const float* from, int64_t states, int64_t count, float* h) {
  for (int64_t n = 0; n < states; ++n)
    for (int64_t i = 0; i < kLanes; ++i) h[n * kLanes + i] = from && i < count ? from[i * states + n] : 0;
}

HASTEN_INLINE void store_states(float* to, int64_t states, int64_t count, const float* h) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t n = 0; n < states; ++n) to[i * states + n] = h[n * kLanes + i];
}

// The derivative of the exact hold's factor (e^(da) - 1) / a by a. Its closed form (d e^(da) - factor) / a cancels
// for small da, where the series d^2 (1/2 + u/3 + u^2/8 + ...), u = da, of terms u^k / (k! (k + 2)), stands in.
HASTEN_INLINE vec hold_bend(vec d, vec a, vec grown, vec factor) {
  const vec u = mul(d, a);
  vec p = broadcast(1.0f / 5760);
  p = fma(p, u, broadcast(1.0f / 840));
  p = fma(p, u, broadcast(1.0f / 144));
  p = fma(p, u, broadcast(1.0f / 30));
  p = fma(p, u, broadcast(1.0f / 8));
  p = fma(p, u, broadcast(1.0f / 3));
  p = fma(p, u, broadcast(1.0f / 2));
  return where_less(abs(u), broadcast(0.5f), mul(mul(d, d), p), div(sub(mul(d, grown), factor), a));
}

template <class T, bool exact>
void scan_forward_task(const ScanArgs& s, const ScanTask& k) {
  const int64_t states = s.states, count = k.count;
  alignas(64) float h[kLanes * ScanArgs::kMostStates], a2[kLanes * ScanArgs::kMostStates],
      inverse[exact ? kLanes * ScanArgs::kMostStates : 1];
  load_states(s.initial ? s.initial + (k.sequence * s.channels + k.channel) * states : nullptr, states, count, h);
  for (int64_t n = 0; n < states; ++n) {
    const vec a = load(s.a + n * s.padded + k.channel);
    store(a2 + n * kLanes, mul(a, broadcast(kLog2e)));
    if constexpr (exact) store(inverse + n * kLanes, div(broadcast(1.0f), a));
  }
  const int64_t row = k.sequence * s.length;
  const T* x = static_cast<const T*>(s.x) + row * s.x_row + k.channel;
  const T* delta = static_cast<const T*>(s.delta) + row * s.delta_row + k.channel;
  const T* z = s.z ? static_cast<const T*>(s.z) + row * s.z_row + k.channel : nullptr;
  T* y = static_cast<T*>(s.y) + row * s.channels + k.channel;
  const float* b = s.b + row * states;
  const float* c = s.c + row * states;
  const uint8_t* starts = s.starts ? s.starts + row : nullptr;
  float* borders = s.borders
                       ? s.borders + (k.sequence * (s.padded / kLanes) + k.channel / kLanes) * s.chunks() * states * kLanes
                       : nullptr;
  const vec bias = s.bias ? load(s.bias + k.channel) : zero();
  const vec skip = s.skip ? load(s.skip + k.channel) : zero();
  for (int64_t t = 0; t < s.length; ++t) {
    if (borders && t % ScanArgs::kChunk == 0) {
      std::memcpy(borders, h, size_t(states * kLanes) * sizeof(float));
      borders += states * kLanes;
    }
    if (starts && starts[t]) std::memset(h, 0, size_t(states * kLanes) * sizeof(float));
    __builtin_prefetch(x + 12 * s.x_row);
    __builtin_prefetch(delta + 12 * s.delta_row);
    const vec d = scan_step_size(s, delta, bias, count), xt = load_part(x, count), dx = mul(d, xt);
    vec out = mul(skip, xt);
    vec out2 = zero();
#pragma GCC unroll 2
    for (int64_t n = 0; n < states; ++n) {
      const vec u = mul(d, load(a2 + n * kLanes));
      vec next;
      if constexpr (exact) {
        const vec less = exp2m1(u);
        const vec in = mul(mul(less, load(inverse + n * kLanes)), mul(xt, broadcast(b[n])));
        const vec before = load(h + n * kLanes);
        next = add(fma(less, before, before), in);
      } else {
        next = fma(exp2(u), load(h + n * kLanes), mul(dx, broadcast(b[n])));
      }
      store(h + n * kLanes, next);
      (n & 1 ? out2 : out) = fma(next, broadcast(c[n]), n & 1 ? out2 : out);
    }
    out = add(out, out2);
    if (z) {
      __builtin_prefetch(z + 12 * s.z_row);
      const vec gate = load_part(z, count);
      out = mul(out, mul(gate, sigmoid(gate)));
      z += s.z_row;
    }
    store_part(y, out, count);
    x += s.x_row;
    delta += s.delta_row;
    y += s.channels;
    b += states;
    c += states;
  }
  if (s.last) store_states(s.last + (k.sequence * s.channels + k.channel) * states, states, count, h);
}

// Tasks [begin, end) are of one sequence; their gradients of B and C are summed here.
template <class T, bool exact>
void scan_backward_tasks(const ScanArgs& s, int64_t begin, int64_t end) {
  constexpr int64_t chunk = ScanArgs::kChunk;
  const int64_t states = s.states, width = states * kLanes, blocks = s.padded / kLanes;
  float* h = s.scratch;                  // (chunk + 1, states, 16): before each step, and after the last
  float* decay = h + (chunk + 1) * width;  // (chunk, states, 16)
  float* input = decay + chunk * width;    // (chunk, states, 16): the input's factor, when exact
  float* db = input + chunk * width;       // (chunk, states, 16)
  float* dc = db + chunk * width;
  float* step = dc + chunk * width;  // (chunk, 16)
  float* carried = step + 8 * chunk * kLanes;  // (tasks, states, 16): the gradient that flows to the step before
  const int64_t sequence = begin / blocks, row = sequence * s.length;
  for (int64_t task = begin; task < end; ++task) {
    const ScanTask k(s, task);
    load_states(s.last_grad ? s.last_grad + (sequence * s.channels + k.channel) * states : nullptr, states, k.count,
                carried + (task - begin) * width);
  }
  for (int64_t part = s.chunks() - 1; part >= 0; --part) {
    const int64_t from = part * chunk, steps = s.length - from < chunk ? s.length - from : chunk;
    std::memset(db, 0, size_t(2 * chunk * width) * sizeof(float));
    const float* b = s.b + (row + from) * states;
    const float* c = s.c + (row + from) * states;
    const uint8_t* starts = s.starts ? s.starts + row + from : nullptr;
    for (int64_t task = begin; task < end; ++task) {
      const ScanTask k(s, task);
      const int64_t count = k.count;
      const T* x = static_cast<const T*>(s.x) + (row + from) * s.x_row + k.channel;
      const T* delta = static_cast<const T*>(s.delta) + (row + from) * s.delta_row + k.channel;
      const T* z = s.z ? static_cast<const T*>(s.z) + (row + from) * s.z_row + k.channel : nullptr;
      const T* y_grad = static_cast<const T*>(s.y_grad) + (row + from) * s.channels + k.channel;
      T* x_grad = static_cast<T*>(s.x_grad) + (row + from) * s.channels + k.channel;
      T* delta_grad = static_cast<T*>(s.delta_grad) + (row + from) * s.channels + k.channel;
      T* z_grad = s.z ? static_cast<T*>(s.z_grad) + (row + from) * s.channels + k.channel : nullptr;
      const float* a = s.a + k.channel;
      const vec bias = s.bias ? load(s.bias + k.channel) : zero();
      const vec skip = s.skip ? load(s.skip + k.channel) : zero();
      vec skip_grad = zero(), bias_grad = zero();
      std::memcpy(h, s.borders + ((sequence * blocks + k.channel / kLanes) * s.chunks() + part) * width,
                  size_t(width) * sizeof(float));
      // The chunk's states again; `step` keeps each step's size and the gradient of the ungated output.
      for (int64_t t = 0; t < steps; ++t) {
        const vec d = scan_step_size(s, delta + t * s.delta_row, bias, count);
        const vec xt = load_part(x + t * s.x_row, count), dx = mul(d, xt), d2 = mul(d, broadcast(kLog2e));
        vec gradient = load_part(y_grad + t * s.channels, count);
        const float keep = starts && starts[t] ? 0.0f : 1.0f;
        const float *bt = b + t * states, *ct = c + t * states;
        float *ht = h + t * width, *at = decay + t * width, *wt = input + t * width;
        vec out = mul(skip, xt), out2 = zero();
#pragma GCC unroll 2
        for (int64_t n = 0; n < states; ++n) {
          const vec an = load(a + n * s.padded), u = mul(d2, an);
          vec next;
          if constexpr (exact) {
            const vec less = exp2m1(u), factor = div(less, an);
            store(wt + n * kLanes, factor);
            const vec masked = mul(add(less, broadcast(1.0f)), broadcast(keep));
            store(at + n * kLanes, masked);
            next = fma(masked, load(ht + n * kLanes), mul(factor, mul(xt, broadcast(bt[n]))));
          } else {
            const vec masked = mul(exp2(u), broadcast(keep));
            store(at + n * kLanes, masked);
            next = fma(masked, load(ht + n * kLanes), mul(dx, broadcast(bt[n])));
          }
          store(ht + width + n * kLanes, next);
          if (z) (n & 1 ? out2 : out) = fma(next, broadcast(ct[n]), n & 1 ? out2 : out);
        }
        if (z) {
          const vec gate = load_part(z + t * s.z_row, count), open = sigmoid(gate), silu = mul(gate, open);
          // d silu = open (1 + gate (1 - open))
          const vec slope = mul(open, fma(gate, sub(broadcast(1.0f), open), broadcast(1.0f)));
          store_part(z_grad + t * s.channels, mul(gradient, mul(add(out, out2), slope)), count);
          gradient = mul(gradient, silu);
        }
        store(step + 2 * t * kLanes, d);
        store(step + (2 * t + 1) * kLanes, gradient);
      }
      float* carry = carried + (task - begin) * width;
      float* a_grad = s.a_grad + k.channel;
      for (int64_t t = steps - 1; t >= 0; --t) {
        const vec d = load(step + 2 * t * kLanes), gradient = load(step + (2 * t + 1) * kLanes);
        const vec xt = load_part(x + t * s.x_row, count), dx = mul(d, xt);
        const float *bt = b + t * states, *ct = c + t * states;
        const float *ht = h + t * width, *at = decay + t * width, *wt = input + t * width;
        float *dbt = db + t * width, *dct = dc + t * width;
        vec d_grad = zero(), x_grad_t = zero();
#pragma GCC unroll 2
        for (int64_t n = 0; n < states; ++n) {
          const vec g = fma(gradient, broadcast(ct[n]), load(carry + n * kLanes));
          const vec decayed = mul(g, load(at + n * kLanes));
          const vec an = load(a + n * s.padded);
          store(carry + n * kLanes, decayed);
          store(dct + n * kLanes, fma(gradient, load(ht + width + n * kLanes), load(dct + n * kLanes)));
          const vec through = mul(decayed, load(ht + n * kLanes));
          if constexpr (exact) {
            const vec factor = load(wt + n * kLanes), gb = mul(g, broadcast(bt[n])), gbx = mul(gb, xt);
            store(dbt + n * kLanes, fma(mul(g, factor), xt, load(dbt + n * kLanes)));
            x_grad_t = fma(gb, factor, x_grad_t);
            const vec grown = fma(factor, an, broadcast(1.0f));  // e^(delta a)
            d_grad = fma(through, an, fma(gbx, grown, d_grad));
            const vec bend = hold_bend(d, an, grown, factor);
            store(a_grad + n * s.padded, fma(through, d, fma(gbx, bend, load(a_grad + n * s.padded))));
          } else {
            store(dbt + n * kLanes, fma(g, dx, load(dbt + n * kLanes)));
            x_grad_t = fma(g, broadcast(bt[n]), x_grad_t);
            d_grad = fma(through, an, d_grad);
            store(a_grad + n * s.padded, fma(through, d, load(a_grad + n * s.padded)));
          }
        }
        if constexpr (!exact) {
          d_grad = fma(x_grad_t, xt, d_grad);
          x_grad_t = mul(x_grad_t, d);
        }
        x_grad_t = fma(gradient, skip, x_grad_t);
        skip_grad = fma(gradient, xt, skip_grad);
        // softplus'(v) = sigmoid(v) = 1 - e^-softplus(v)
        if (s.softplus) d_grad = mul(d_grad, sub(zero(), exp2m1(mul(d, broadcast(-kLog2e)))));
        bias_grad = add(bias_grad, d_grad);
        store_part(x_grad + t * s.channels, x_grad_t, count);
        store_part(delta_grad + t * s.channels, d_grad, count);
      }
      store(s.skip_grad + k.channel, add(skip_grad, load(s.skip_grad + k.channel)));
      store(s.bias_grad + k.channel, add(bias_grad, load(s.bias_grad + k.channel)));
    }
    for (int64_t i = 0; i < steps * states; ++i) {
      s.b_grad[(row + from) * states + i] = sum(load(db + i * kLanes));
      s.c_grad[(row + from) * states + i] = sum(load(dc + i * kLanes));
    }
  }
  if (s.initial_grad)
    for (int64_t task = begin; task < end; ++task) {
      const ScanTask k(s, task);
      store_states(s.initial_grad + (sequence * s.channels + k.channel) * states, states, k.count,
                   carried + (task - begin) * width);
    }
}

template <class T>
void scan_forward_as(const ScanArgs& s, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task)
    s.exact ? scan_forward_task<T, true>(s, ScanTask(s, task)) : scan_forward_task<T, false>(s, ScanTask(s, task));
}

void scan_forward(const ScanArgs& s, int64_t begin, int64_t end) {
  s.bf16 ? scan_forward_as<uint16_t>(s, begin, end) : scan_forward_as<float>(s, begin, end);
}

template <class T>
void scan_backward_as(const ScanArgs& s, int64_t begin, int64_t end) {
  const int64_t blocks = s.padded / kLanes;
  while (begin < end) {
    int64_t border = (begin / blocks + 1) * blocks;
    if (border > end) border = end;
    s.exact ? scan_backward_tasks<T, true>(s, begin, border) : scan_backward_tasks<T, false>(s, begin, border);
    begin = border;
  }
}

void scan_backward(const ScanArgs& s, int64_t begin, int64_t end) {
  s.bf16 ? scan_backward_as<uint16_t>(s, begin, end) : scan_backward_as<float>(s, begin, end);
}

constexpr SelectiveScanKernels selective_scan_kernels = {&scan_forward, &scan_backward};

}  // namespace
}  // namespace hasten
#endif

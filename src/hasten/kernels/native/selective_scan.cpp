#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>

#include "bindings.hpp"
#include "team.hpp"

namespace hasten {
namespace {

template <class T>
void set(T*& field, uintptr_t address) {
  field = pointer<T>(address);
}

struct Scan : ScanArgs {
  Scan(int64_t batch, int64_t length, int64_t channels, int64_t states, bool bf16, bool softplus, bool exact) {
    if (states < 1 || states > kMostStates) throw std::invalid_argument("the compiled scan takes 1 to 256 states");
    this->batch = batch;
    this->length = length;
    this->channels = channels;
    this->states = states;
    this->bf16 = bf16;
    this->softplus = softplus;
    this->exact = exact;
    padded = (channels + 15) / 16 * 16;
  }

  void inputs(uintptr_t x, int64_t x_row, uintptr_t delta, int64_t delta_row, uintptr_t z, int64_t z_row, uintptr_t a,
              uintptr_t b, uintptr_t c, uintptr_t skip, uintptr_t bias, uintptr_t starts, uintptr_t initial,
              uintptr_t borders) {
    this->x = pointer<const void>(x);
    this->delta = pointer<const void>(delta);
    this->z = pointer<const void>(z);
    this->x_row = x_row;
    this->delta_row = delta_row;
    this->z_row = z_row;
    set(this->a, a);
    set(this->b, b);
    set(this->c, c);
    set(this->skip, skip);
    set(this->bias, bias);
    set(this->starts, starts);
    set(this->initial, initial);
    set(this->borders, borders);
  }

  void forward(uintptr_t y, uintptr_t last, int threads) {
    this->y = pointer<void>(y);
    set(this->last, last);
    together(threads, [&](int rank, int size) {
      int64_t begin, end;
      share(tasks(), 1, rank, size, begin, end);
      kernels().selective_scan.forward(*this, begin, end);
    });
  }

  // b_grad, c_grad (threads, batch, length, states), a_grad (threads, states, padded), skip_grad and bias_grad
  // (threads, padded) are zeros; a thread adds to its own.
  void backward(uintptr_t y_grad, uintptr_t last_grad, uintptr_t x_grad, uintptr_t delta_grad, uintptr_t z_grad,
                uintptr_t a_grad, uintptr_t b_grad, uintptr_t c_grad, uintptr_t skip_grad, uintptr_t bias_grad,
                uintptr_t initial_grad, int threads) {
    this->y_grad = pointer<const void>(y_grad);
    set(this->last_grad, last_grad);
    this->x_grad = pointer<void>(x_grad);
    this->delta_grad = pointer<void>(delta_grad);
    this->z_grad = pointer<void>(z_grad);
    set(this->initial_grad, initial_grad);
    const int64_t floats = (scan_scratch(states, padded / 16) + 15) / 16 * 16;
    struct Free {
      void operator()(float* p) const { std::free(p); }
    };
    const std::unique_ptr<float, Free> buffer(
        static_cast<float*>(std::aligned_alloc(64, size_t(floats * threads) * sizeof(float))));
    if (!buffer) throw std::bad_alloc();
    together(threads, [&](int rank, int size) {
      ScanArgs mine = *this;
      mine.a_grad = pointer<float>(a_grad) + rank * states * padded;
      mine.b_grad = pointer<float>(b_grad) + rank * batch * length * states;
      mine.c_grad = pointer<float>(c_grad) + rank * batch * length * states;
      mine.skip_grad = pointer<float>(skip_grad) + rank * padded;
      mine.bias_grad = pointer<float>(bias_grad) + rank * padded;
      mine.scratch = buffer.get() + rank * floats;
      int64_t begin, end;
      share(tasks(), 1, rank, size, begin, end);
      kernels().selective_scan.backward(mine, begin, end);
    });
  }
};

}  // namespace

void bind_selective_scan(nb::module_& m) {
  const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
  nb::class_<Scan>(m, "Scan")
      .def(nb::init<int64_t, int64_t, int64_t, int64_t, bool, bool, bool>())
      .def("inputs", &Scan::inputs)
      .def("forward", &Scan::forward, unlocked)
      .def("backward", &Scan::backward, unlocked);
  m.attr("scan_chunk") = ScanArgs::kChunk;
}

}  // namespace hasten

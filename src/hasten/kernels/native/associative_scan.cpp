#include <nanobind/nanobind.h>

#include "bindings.hpp"
#include "team.hpp"

namespace hasten {
namespace {

LinearScanArgs describe(int64_t batch, int64_t length, int64_t states, bool complex, bool constant, bool bf16,
                        uintptr_t a, uintptr_t b, uintptr_t resets, uintptr_t initial) {
  LinearScanArgs s;
  s.batch = batch;
  s.length = length;
  s.states = states;
  s.complex = complex;
  s.constant = constant;
  s.bf16 = bf16;
  s.a = pointer<const void>(a);
  s.b = pointer<const void>(b);
  s.resets = pointer<const uint8_t>(resets);
  s.initial = pointer<const float>(initial);
  return s;
}

template <class Call>
void split(const LinearScanArgs& s, int threads, Call call) {
  together(threads, [&](int rank, int size) {
    int64_t begin, end;
    share(s.batch * s.blocks(), 1, rank, size, begin, end);
    call(s, begin, end);
  });
}

void forward(LinearScanArgs s, uintptr_t h, uintptr_t last, int threads) {
  s.h = pointer<void>(h);
  s.last = pointer<float>(last);
  split(s, threads, kernels().associative_scan.forward);
}

void backward(LinearScanArgs s, uintptr_t h, uintptr_t h_grad, uintptr_t last_grad, uintptr_t a_grad, uintptr_t b_grad,
              uintptr_t initial_grad, int threads) {
  s.h = pointer<void>(h);
  s.h_grad = pointer<const void>(h_grad);
  s.last_grad = pointer<const float>(last_grad);
  s.a_grad = pointer<void>(a_grad);
  s.b_grad = pointer<void>(b_grad);
  s.initial_grad = pointer<float>(initial_grad);
  split(s, threads, kernels().associative_scan.backward);
}

}  // namespace

void bind_associative_scan(nb::module_& m) {
  const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
  nb::class_<LinearScanArgs>(m, "LinearScan").def_ro("length", &LinearScanArgs::length);
  m.def("linear_scan", &describe);
  m.def("linear_scan_forward", &forward, unlocked);
  m.def("linear_scan_backward", &backward, unlocked);
}

}  // namespace hasten

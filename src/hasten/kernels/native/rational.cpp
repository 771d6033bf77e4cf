#include <nanobind/nanobind.h>

#include <atomic>

#include "bindings.hpp"
#include "team.hpp"

namespace hasten {
namespace {

RationalArgs arguments(uintptr_t x, uintptr_t grad, uintptr_t top, int64_t numerators, uintptr_t bottom,
                       int64_t denominators, int64_t rows, int64_t channels, int64_t groups, bool bf16, uintptr_t y,
                       uintptr_t sums) {
  RationalArgs r;
  r.x = pointer<const void>(x);
  r.grad = pointer<const void>(grad);
  r.top = pointer<const float>(top);
  r.numerators = numerators;
  r.bottom = pointer<const float>(bottom);
  r.denominators = denominators;
  r.rows = rows;
  r.channels = channels;
  r.groups = groups;
  r.bf16 = bf16;
  r.y = pointer<void>(y);
  r.sums = pointer<float>(sums);
  return r;
}

void forward(const RationalArgs& r, int threads) {
  together(threads, [&](int rank, int size) {
    int64_t begin, end;
    share(r.rows, 1, rank, size, begin, end);
    kernels().rational.forward(r, begin, end);
  });
}

// Returns how often a block added to the sums: ten times a block and group.
int64_t backward(const RationalArgs& r, int threads) {
  together(threads, [&](int rank, int size) {
    int64_t begin, end;
    share(r.blocks(), 1, rank, size, begin, end);
    kernels().rational.backward(r, begin, end);
  });
  return r.blocks() * r.groups * RationalArgs::kSums;
}

int64_t naive(RationalArgs r, int64_t repeats, int threads) {
  r.repeats = repeats;
  std::atomic<int64_t> additions{0};
  together(threads, [&](int rank, int size) {
    int64_t begin, end;
    share(r.rows, 1, rank, size, begin, end);
    additions += kernels().rational.naive(r, begin, end);
  });
  return additions;
}

}  // namespace

void bind_rational(nb::module_& m) {
  const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
  nb::class_<RationalArgs>(m, "Rational")
      .def_ro("rows", &RationalArgs::rows)
      .def("blocks", &RationalArgs::blocks);
  m.def("rational", &arguments);
  m.def("rational_forward", &forward, unlocked);
  m.def("rational_backward", &backward, unlocked);
  m.def("rational_naive_backward", &naive, unlocked);
}

}  // namespace hasten

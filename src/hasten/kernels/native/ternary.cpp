#include <nanobind/nanobind.h>

#include "bindings.hpp"
#include "team.hpp"

namespace hasten {
namespace {

void multiply(uintptr_t x, int64_t rows, uintptr_t packed, int64_t out, int64_t blocks, uintptr_t y, int threads) {
  TernaryArgs t;
  t.x = pointer<const int8_t>(x);
  t.rows = rows;
  t.packed = pointer<const uint8_t>(packed);
  t.out = out;
  t.blocks = blocks;
  t.y = pointer<float>(y);
  together(threads, [&](int rank, int size) {
    int64_t begin, end;
    share(out, 1, rank, size, begin, end);
    kernels().ternary.multiply(t, begin, end);
  });
}

}  // namespace

void bind_ternary(nb::module_& m) { m.def("ternary_multiply", &multiply, nb::call_guard<nb::gil_scoped_release>()); }

}  // namespace hasten

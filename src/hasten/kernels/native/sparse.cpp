#include "sparse.hpp"

#include <stdexcept>

#include "bindings.hpp"
#include "team.hpp"

namespace hasten {
namespace {

void sparse_linear(uintptr_t packed, uintptr_t scales, uintptr_t zeros, int64_t out, int64_t in, int64_t zero_bytes,
                   uintptr_t x, uintptr_t row_scales, int rows, uintptr_t y, int threads) {
  if (rows > SparseMatrix::kMostRows) throw std::invalid_argument("more rows than the sparse kernel has sums for");
  SparseMatrix m;
  m.packed = pointer<const uint8_t>(packed);
  m.scales = pointer<const uint16_t>(scales);
  m.zeros = pointer<const uint8_t>(zeros);
  m.out = out;
  m.in = in;
  m.zero_bytes = zero_bytes;
  together(threads, [&](int rank, int size) {
    int64_t n0, n1;
    share(out, 8, rank, size, n0, n1);
    kernels().sparse.multiply(m, pointer<const int8_t>(x), pointer<const float>(row_scales), rows, pointer<float>(y), n0,
                              n1);
  });
}

}  // namespace

void bind_sparse(nb::module_& m) { m.def("sparse_linear", &sparse_linear, nb::call_guard<nb::gil_scoped_release>()); }

}  // namespace hasten

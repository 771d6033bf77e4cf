#include "deform.hpp"

#include <stdexcept>

#include "bindings.hpp"
#include "team.hpp"

namespace hasten {
namespace {

DeformArgs map_of(int64_t height, int64_t width, int64_t channels, int64_t side, uintptr_t x, uintptr_t offset) {
  if (side < 1 || side > DeformArgs::kMostSide || side % 2 == 0) throw std::invalid_argument("a kernel of that side is not compiled");
  DeformArgs d;
  d.height = height;
  d.width = width;
  d.channels = channels;
  d.side = side;
  d.x = pointer<const float>(x);
  d.offset = pointer<const float>(offset);
  return d;
}

// Samples of `places` places, written one behind the other; `first` is the first place's number over all maps.
void sample(int64_t height, int64_t width, int64_t channels, int64_t side, uintptr_t x, uintptr_t offset, int64_t first,
            int64_t places, uintptr_t out, int threads) {
  DeformArgs d = map_of(height, width, channels, side, x, offset);
  d.out = pointer<float>(out);
  d.first = first;
  together(threads, [&](int rank, int size) {
    int64_t begin, end;
    share(places, 1, rank, size, begin, end);
    kernels().deform.sample(d, first + begin, first + end);
  });
}

void depthwise(int64_t maps, int64_t height, int64_t width, int64_t channels, int64_t side, uintptr_t x,
               uintptr_t offset, uintptr_t weight, uintptr_t out, int threads) {
  DeformArgs d = map_of(height, width, channels, side, x, offset);
  d.weight = pointer<const float>(weight);
  d.out = pointer<float>(out);
  together(threads, [&](int rank, int size) {
    int64_t begin, end;
    share(maps * height * width, 1, rank, size, begin, end);
    kernels().deform.depthwise(d, begin, end);
  });
}

void scatter(int64_t maps, int64_t height, int64_t width, int64_t channels, int64_t side, uintptr_t x, uintptr_t offset,
             uintptr_t grad, uintptr_t x_grad, uintptr_t offset_grad, int threads) {
  DeformArgs d = map_of(height, width, channels, side, x, offset);
  d.grad = pointer<const float>(grad);
  d.x_grad = pointer<float>(x_grad);
  d.offset_grad = pointer<float>(offset_grad);
  together(threads, [&](int rank, int size) {
    int64_t begin, end;
    share(maps, 1, rank, size, begin, end);
    kernels().deform.scatter(d, begin, end);
  });
}

}  // namespace

void bind_deform(nb::module_& m) {
  const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
  m.def("deform_sample", &sample, unlocked);
  m.def("deform_depthwise", &depthwise, unlocked);
  m.def("deform_scatter", &scatter, unlocked);
}

}  // namespace hasten

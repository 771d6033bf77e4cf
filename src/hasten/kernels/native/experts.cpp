#include <nanobind/nanobind.h>

#include <atomic>

#include "bindings.hpp"
#include "team.hpp"

namespace hasten {
namespace {

// Returns how many weight rows were multiplied with a token.
int64_t expert_ffn(uintptr_t x, uintptr_t scores, uintptr_t up, uintptr_t down, bool bf16, uintptr_t used, int64_t count,
                   int64_t tokens, int64_t width, int64_t experts, int64_t each, uintptr_t inner, uintptr_t y,
                   int threads) {
  ExpertArgs e;
  e.x = pointer<const float>(x);
  e.scores = pointer<const float>(scores);
  e.up = pointer<const void>(up);
  e.down = pointer<const void>(down);
  e.bf16 = bf16;
  e.used = pointer<const int32_t>(used);
  e.count = count;
  e.tokens = tokens;
  e.width = width;
  e.experts = experts;
  e.each = each;
  e.inner = pointer<float>(inner);
  e.y = pointer<float>(y);
  std::atomic<int64_t> products{0};
  together_with_barrier(threads, [&](int rank, int size, Barrier& all) {
    int64_t begin, end;
    share(count * each, 1, rank, size, begin, end);
    products += kernels().experts.up(e, begin, end);
    all.wait();
    share(width, 16, rank, size, begin, end);
    kernels().experts.down(e, begin, end);
  });
  return products;
}

}  // namespace

void bind_experts(nb::module_& m) { m.def("expert_ffn", &expert_ffn, nb::call_guard<nb::gil_scoped_release>()); }

}  // namespace hasten

// How many vector instructions a core does in a second: the yardstick for kernels that compute.
#pragma once

#include <cstdint>

namespace hasten {

// Independent chains of multiply-adds in registers, in one call of multiply_adds per round.
constexpr int kChains = 12;

}  // namespace hasten

#if defined(HASTEN_ISA)
#include "simd.hpp"

namespace hasten {
namespace {

// rounds * kChains multiply-adds of 16 numbers; the sum keeps the compiler from leaving them out.
float multiply_adds(int64_t rounds) {
  vec sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = broadcast(float(i));
  const vec factor = broadcast(0.999f), more = broadcast(0.001f);
  for (int64_t r = 0; r < rounds; ++r)
    for (vec& s : sums) s = fma(s, factor, more);
  vec total = zero();
  for (vec s : sums) total = add(total, s);
  return sum(total);
}

}  // namespace
}  // namespace hasten
#endif

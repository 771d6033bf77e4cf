// How many vector instructions a core does in a second, and what it reads: the yardsticks for kernels.
#pragma once

#include <cstdint>

namespace hasten {

// Independent chains of instructions in registers, each of which a round of multiply_adds or code_products goes on.
constexpr int kChains = 12;

}  // namespace hasten

#if defined(HASTEN_ISA)
#include "bytes.hpp"

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

// rounds * kChains products of 64 codes, as integer_linear.hpp adds them up.
float code_products(int64_t rounds) {
  ints sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = broadcast_int(i);
  const ints ones = broadcast_int(0x01010101);
  bytes factor;
  std::memcpy(&factor, &ones, sizeof factor);
  for (int64_t r = 0; r < rounds; ++r)
    for (ints& s : sums) s = dot<false>(s, factor, factor);
  ints total = no_ints();
  for (ints s : sums) total = add(total, s);
  return sum(to_floats(total));
}

// Reads memory as fast as it comes, and adds it up.
float read_all(const void* memory, int64_t size) {
  constexpr int64_t kLine = 64, kAtOnce = 8;
  const char* p = static_cast<const char*>(memory);
  ints sums[kAtOnce];
  for (ints& s : sums) s = no_ints();
  for (int64_t at = 0; at + kAtOnce * kLine <= size; at += kAtOnce * kLine)
    for (int64_t i = 0; i < kAtOnce; ++i)
      sums[i] = add(sums[i], load_ints(reinterpret_cast<const int32_t*>(p + at + i * kLine)));
  ints total = no_ints();
  for (ints s : sums) total = add(total, s);
  return sum(to_floats(total));
}

}  // namespace
}  // namespace hasten
#endif

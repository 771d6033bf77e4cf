#pragma once

#include <cstdint>

namespace hasten {

struct TernaryKernels {};

}  // namespace hasten

#if defined(HASTEN_ISA)
#include "simd.hpp"

namespace hasten {
namespace {

constexpr TernaryKernels ternary_kernels = {};

}  // namespace
}  // namespace hasten
#endif

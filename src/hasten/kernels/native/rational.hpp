#pragma once

#include <cstdint>

namespace hasten {

struct RationalKernels {};

}  // namespace hasten

#if defined(HASTEN_ISA)
#include "simd.hpp"

namespace hasten {
namespace {

constexpr RationalKernels rational_kernels = {};

}  // namespace
}  // namespace hasten
#endif

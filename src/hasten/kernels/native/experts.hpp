#pragma once

#include <cstdint>

namespace hasten {

struct ExpertsKernels {};

}  // namespace hasten

#if defined(HASTEN_ISA)
#include "simd.hpp"

namespace hasten {
namespace {

constexpr ExpertsKernels experts_kernels = {};

}  // namespace
}  // namespace hasten
#endif

#pragma once

#include <cstdint>

namespace hasten {

struct SelectiveScanKernels {};

}  // namespace hasten

#if defined(HASTEN_ISA)
#include "simd.hpp"

namespace hasten {
namespace {

constexpr SelectiveScanKernels selective_scan_kernels = {};

}  // namespace
}  // namespace hasten
#endif

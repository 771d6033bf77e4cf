#pragma once

#include <cstdint>

namespace hasten {

struct AssociativeScanKernels {};

}  // namespace hasten

#if defined(HASTEN_ISA)
#include "simd.hpp"

namespace hasten {
namespace {

constexpr AssociativeScanKernels associative_scan_kernels = {};

}  // namespace
}  // namespace hasten
#endif

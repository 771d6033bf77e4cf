// The kernels for one instruction set: compiled several times, each with other flags and another
// HASTEN_ISA, into one binary (CMakeLists.txt). Everything below has internal linkage, so no function
// compiled for a newer machine is ever linked into an older one's path.
#include "step.hpp"
#include "table.hpp"

#define HASTEN_JOIN_(a, b) a##b
#define HASTEN_JOIN(a, b) HASTEN_JOIN_(a, b)
#define HASTEN_TEXT_(a) #a
#define HASTEN_TEXT(a) HASTEN_TEXT_(a)

namespace hasten {

extern const Kernels HASTEN_JOIN(kernels_, HASTEN_ISA);
const Kernels HASTEN_JOIN(kernels_, HASTEN_ISA) = {HASTEN_TEXT(HASTEN_ISA), &multiply, &multiply_codes, &encode_rows, &unpack, &step, &TileRoom::floats, &multiply_adds, &code_products, &read_all,
                                                     selective_scan_kernels, associative_scan_kernels, rational_kernels, ternary_kernels, experts_kernels,
                                                     sparse_kernels, deform_kernels};

}  // namespace hasten

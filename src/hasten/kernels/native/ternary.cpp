#include <nanobind/nanobind.h>

#include "bindings.hpp"

namespace hasten {

void bind_ternary(nb::module_&) {}

}  // namespace hasten

#include <nanobind/nanobind.h>

#include "bindings.hpp"

namespace hasten {

void bind_experts(nb::module_&) {}

}  // namespace hasten

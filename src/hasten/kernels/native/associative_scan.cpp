#include <nanobind/nanobind.h>

#include "bindings.hpp"

namespace hasten {

void bind_associative_scan(nb::module_&) {}

}  // namespace hasten

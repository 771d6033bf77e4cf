#include <nanobind/nanobind.h>

#include "bindings.hpp"

namespace hasten {

void bind_rational(nb::module_&) {}

}  // namespace hasten

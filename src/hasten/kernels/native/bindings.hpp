// What the files that bind one family of kernels to Python share; module.cpp calls their bind functions.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

#include "table.hpp"

namespace nb = nanobind;

namespace hasten {

// The kernels in use.
const Kernels& kernels();

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_selective_scan(nb::module_&);
void bind_associative_scan(nb::module_&);
void bind_rational(nb::module_&);
void bind_ternary(nb::module_&);
void bind_experts(nb::module_&);
void bind_sparse(nb::module_&);
void bind_deform(nb::module_&);
void bind_dram(nb::module_&);
void bind_oblivious(nb::module_&);

}  // namespace hasten

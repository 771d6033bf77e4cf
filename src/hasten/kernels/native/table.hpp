// Everything that is compiled once per instruction set (isa.cpp), as one table of functions.
#pragma once

#include "arithmetic.hpp"
#include "associative_scan.hpp"
#include "deform.hpp"
#include "experts.hpp"
#include "rational.hpp"
#include "selective_scan.hpp"
#include "sparse.hpp"
#include "ternary.hpp"
#include "types.hpp"

namespace hasten {

struct Kernels {
  const char* name;
  void (*multiply)(const Matrix&, const float* x, int64_t ldx, int rows, float* y, int64_t ldy, int64_t n0,
                   int64_t n1);
  void (*multiply_codes)(const Matrix&, const Codes& x, int rows, float* y, int64_t ldy, int64_t n0, int64_t n1);
  void (*encode_rows)(const float* x, const Codes& to, int64_t in, int64_t begin, int64_t end);
  void (*unpack)(const Matrix&, float* out, int64_t n0, int64_t n1);
  void (*step)(const Model&, const Cache&, const Tokens&, const Scratch&, float* logits, int rank, int threads,
               Barrier&);
  int64_t (*tile_floats)(int64_t head_dim);  // that a thread needs to attend from a tile of rows
  float (*multiply_adds)(int64_t rounds);
  float (*code_products)(int64_t rounds);
  float (*read_all)(const void* memory, int64_t size);
  SelectiveScanKernels selective_scan;
  AssociativeScanKernels associative_scan;
  RationalKernels rational;
  TernaryKernels ternary;
  ExpertsKernels experts;
  SparseKernels sparse;
  DeformKernels deform;
};

}  // namespace hasten

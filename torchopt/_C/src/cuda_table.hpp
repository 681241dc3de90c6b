// SPDX-License-Identifier: Apache-2.0
// What the CUDA driver hands to a kernel: a part of a tree, passed by value as the kernel's parameter.
#pragma once

#include <cstddef>

#include "torchopt/catalogue.hpp"

namespace torchopt {

constexpr int cuda_threads = 256;  // in a block
// Arrays that are read and written directly start at multiples of this.
constexpr std::size_t cuda_alignment = 16;

struct CudaLeaf {
  std::int64_t size;
  std::uint32_t first_block;    // of this launch
  std::uint32_t first_partial;  // where the sums of its blocks go
  std::int32_t row;             // in the table, or on the device
  bool direct;                  // all its arrays are aligned and stored in the type of the arithmetic
};

struct CudaTable {
  static constexpr std::size_t limit = 32764;  // bytes of parameters, from CUDA 12.1 and compute capability 7.0
  // Entries for leaves with few arrays; a leaf with many arrays, or with a row of coefficients of its own, takes several.
  static constexpr int max_leaves = 340, max_arrays = 7 * max_leaves, coef_bytes = 8 * max_leaves;

  const double* device_coefs;
  double* partials;
  std::int32_t leaf_count;
  std::uint32_t tile;  // elements of a block
  CudaLeaf leaves[max_leaves];
  void* data[max_arrays];  // [leaf][inputs, then outputs]
  alignas(8) unsigned char coefs[coef_bytes];  // [row][coefs], in the type of the arithmetic
  Storage storage[max_arrays];
};
static_assert(sizeof(CudaTable) <= CudaTable::limit, "the parameters of a kernel are limited");

// Functions with one parameter, a CudaTable.
struct CudaKernel {
  const void* single;
  const void* wide;
};

}  // namespace torchopt

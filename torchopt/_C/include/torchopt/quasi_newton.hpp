// SPDX-License-Identifier: Apache-2.0
// The kernels of quasi-Newton methods on the CPU: for one problem whose vector is a tree, or for a batch of problems.
#pragma once

#include <cstdint>

#include "cpu.hpp"

namespace torchopt {

// A leaf of all vectors of a call. Each column has n elements for each sample of the batch, one sample behind the other;
// the columns of pairs have a ring of rows of n elements for each sample.
template <class T>
struct Vectors {
  static constexpr int columns = 6;
  T* column[columns];
  std::int64_t n;
};

template <class T>
struct Leaves {
  const Vectors<T>* begin_;
  std::int64_t count, samples;

  const Vectors<T>* begin() const { return begin_; }
  const Vectors<T>* end() const { return begin_ + count; }
};

// The pairs of each sample: rows of a ring, of which those with weight zero hold no pair.
struct Pairs {
  std::int64_t size;           // rows of a ring
  const std::int64_t* newest;  // the row of the newest pair of each sample
  const double* weights;       // 1 / <y, s> of each row
  const double* gamma;         // the scale of each sample
};

template <class T>
struct QuasiNewton {
  // Columns: x and g before and after a step, rings of s and y. Writes s and y into row `place[sample]`, unless that is
  // negative, and the inner products <y, s>, <s, s>, <y, y> and <g, g> into row `sample` of each quarter of `inner`. With
  // `from_zero`, leaves whose x and g were zero did not exist before the step: their differences are zero.
  void (*difference)(const Leaves<T>& leaves, std::int64_t size, const std::int64_t* place, bool from_zero, double* inner);
  // Columns: g, rings of s and y, and the product of the inverse Hessian with g, which is written. `scratch` has room for
  // two vectors of one sample and the rows of a ring. With `guarded`, g is scaled so that nothing overflows, and where the
  // product is no direction of ascent, gamma * g replaces it.
  void (*product)(const Leaves<T>& leaves, const Pairs& pairs, bool guarded, double* scratch);
  // Columns: an inverse Hessian of n rows, which is written, s and y, g, and the product of the new one with g, which is
  // written. The matrix becomes scale * H, and then H + the update of BFGS, if rho = 1 / <y, s> is not zero. `scratch` has
  // room for a vector.
  void (*bfgs)(const Leaves<T>& leaves, const double* scale, const double* rho, double* scratch);
};

template <class T>
const QuasiNewton<T>& quasi_newton(InstructionSet isa);

}  // namespace torchopt

// SPDX-License-Identifier: Apache-2.0
// The kernels of quasi-Newton methods, for every instruction set. Sums, and vectors between operations, are in double
// precision.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

#include "torchopt/quasi_newton.hpp"

#ifdef __OPTIMIZE__
#define TORCHOPT_BODY TORCHOPT_INLINE
#else
#define TORCHOPT_BODY inline
#endif

namespace torchopt {
namespace {

// Sums have lanes that the processor adds at once; the order of the additions is the same for every instruction set.
constexpr int lanes = 4;

TORCHOPT_BODY double total(double* sums) {
  for (int width = lanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) {
      sums[lane] += sums[lane + width];
    }
  }
  return sums[0];
}

template <class T, class U>
TORCHOPT_BODY double dot(const T* a, const U* b, std::int64_t n) {
  double sums[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    for (int lane = 0; lane < lanes; ++lane) {
      sums[lane] += double(a[i + lane]) * double(b[i + lane]);
    }
  }
  for (int lane = 0; lane < n - i; ++lane) {
    sums[lane] += double(a[i + lane]) * double(b[i + lane]);
  }
  return total(sums);
}

template <class T>
TORCHOPT_BODY void add(double factor, const T* a, double* b, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    b[i] += factor * double(a[i]);
  }
}

template <class T>
TORCHOPT_BODY bool is_zero(const T* a, std::int64_t n) {
  return std::all_of(a, a + n, [](T x) { return x == T(0); });
}

template <class T>
TORCHOPT_BODY void difference(const Leaves<T>& leaves, std::int64_t size, const std::int64_t* place, bool from_zero,
                              double* inner) {
  for (std::int64_t b = 0; b < leaves.samples; ++b) {
    double ys = 0, ss = 0, yy = 0, gg = 0;
    for (const Vectors<T>& leaf : leaves) {
      const std::int64_t n = leaf.n, row = (b * size + place[b]) * n;
      if (place[b] < 0) {
        break;
      }
      const T *x = leaf.column[0] + b * n, *new_x = leaf.column[1] + b * n;
      const T *g = leaf.column[2] + b * n, *new_g = leaf.column[3] + b * n;
      T *s = leaf.column[4] + row, *y = leaf.column[5] + row;
      if (from_zero && is_zero(x, n) && is_zero(g, n)) {
        std::fill_n(s, n, T(0));
        std::fill_n(y, n, T(0));
        continue;
      }
      for (std::int64_t i = 0; i < n; ++i) {
        s[i] = T(new_x[i] - x[i]);
        y[i] = T(new_g[i] - g[i]);
      }
      ys += dot(y, s, n);
      ss += dot(s, s, n);
      yy += dot(y, y, n);
      gg += dot(g, g, n);
    }
    for (const double sum : {ys, ss, yy, gg}) {
      inner[b] = sum;
      inner += leaves.samples;
    }
    inner -= 4 * leaves.samples;
  }
}

// The two loops of Nocedal and Wright, algorithm 7.4, for one sample: q becomes H q / gamma.
template <class T>
TORCHOPT_BODY void two_loops(const Leaves<T>& leaves, const Pairs& pairs, std::int64_t b, double* q, double* alpha) {
  const std::int64_t size = pairs.size;
  const double* weights = pairs.weights + b * size;
  const double gamma = pairs.gamma[b];
  for (std::int64_t step = 0; step < 2 * size; ++step) {
    // From the newest pair to the oldest, and back.
    const bool back = step >= size;
    const std::int64_t age = back ? 2 * size - 1 - step : step;
    const std::int64_t place = (pairs.newest[b] - age + size) % size;
    if (weights[place] == 0) {
      continue;
    }
    double inner = 0, *part = q;
    for (const Vectors<T>& leaf : leaves) {
      inner += dot(leaf.column[back ? 2 : 1] + (b * size + place) * leaf.n, part, leaf.n);
      part += leaf.n;
    }
    inner *= weights[place];
    const double factor = back ? alpha[place] / gamma - inner : -inner;
    if (!back) {
      alpha[place] = inner;
    }
    part = q;
    for (const Vectors<T>& leaf : leaves) {
      add(factor, leaf.column[back ? 1 : 2] + (b * size + place) * leaf.n, part, leaf.n);
      part += leaf.n;
    }
  }
}

template <class T>
TORCHOPT_BODY void product(const Leaves<T>& leaves, const Pairs& pairs, bool guarded, double* scratch) {
  std::int64_t length = 0;
  for (const Vectors<T>& leaf : leaves) {
    length += leaf.n;
  }
  double *unit = scratch, *q = scratch + length, *alpha = q + length;
  for (std::int64_t b = 0; b < leaves.samples; ++b) {
    double* part = unit;
    for (const Vectors<T>& leaf : leaves) {
      std::copy_n(leaf.column[0] + b * leaf.n, leaf.n, part);
      part += leaf.n;
    }
    double largest = 0;
    for (std::int64_t i = 0; guarded && i < length; ++i) {
      largest = std::max(largest, std::fabs(unit[i]));
    }
    for (std::int64_t i = 0; largest > 0 && i < length; ++i) {
      unit[i] /= largest;
    }
    std::copy_n(unit, length, q);
    two_loops(leaves, pairs, b, q, alpha);
    double factor = pairs.gamma[b] * (largest > 0 ? largest : 1);
    const double* found = q;
    if (guarded) {
      const double norm = std::sqrt(dot(unit, unit, length)), q_norm = std::sqrt(dot(q, q, length));
      if (!(dot(unit, q, length) > double(std::numeric_limits<T>::epsilon()) * q_norm * norm) && norm != 0) {
        found = unit;
      }
      // The elements of the direction are at most the largest number of their type.
      const double longest = double(std::numeric_limits<T>::max()) / std::max(found == q ? q_norm : norm, DBL_MIN);
      factor = factor < longest || std::isnan(factor) ? factor : longest;
    }
    for (const Vectors<T>& leaf : leaves) {
      T* out = leaf.column[3] + b * leaf.n;
      for (std::int64_t i = 0; i < leaf.n; ++i) {
        out[i] = T(factor * found[i]);
      }
      found += leaf.n;
    }
  }
}

template <class T>
TORCHOPT_BODY void bfgs(const Leaves<T>& leaves, const double* scale, const double* rho, double* by_y) {
  const Vectors<T>& leaf = *leaves.begin();
  const std::int64_t n = leaf.n;
  for (std::int64_t b = 0; b < leaves.samples; ++b) {
    T* matrix = leaf.column[0] + b * n * n;
    const T *s = leaf.column[1] + b * n, *y = leaf.column[2] + b * n, *g = leaf.column[3] + b * n;
    T* out = leaf.column[4] + b * n;
    double factor = 0;
    for (std::int64_t i = 0; rho[b] != 0 && i < n; ++i) {
      by_y[i] = scale[b] * rho[b] * dot(matrix + i * n, y, n);
      factor += by_y[i] * double(y[i]);
    }
    factor = rho[b] * (1 + factor);
    for (std::int64_t i = 0; i < n; ++i) {
      T* row = matrix + i * n;
      if (rho[b] != 0) {
        const double of_s = factor * double(s[i]) - by_y[i], of_y = -double(s[i]);
        for (std::int64_t j = 0; j < n; ++j) {
          row[j] = T(scale[b] * double(row[j]) + of_s * double(s[j]) + of_y * by_y[j]);
        }
      } else if (scale[b] != 1) {
        for (std::int64_t j = 0; j < n; ++j) {
          row[j] = T(scale[b] * double(row[j]));
        }
      }
      out[i] = T(dot(row, g, n));
    }
  }
}

template <class T, InstructionSet isa>
struct Compiled;
#define TORCHOPT_COMPILED(isa, name, attribute)                                                                       \
  template <class T>                                                                                                  \
  struct Compiled<T, InstructionSet::isa> {                                                                           \
    attribute static void run_difference(const Leaves<T>& leaves, std::int64_t size, const std::int64_t* place,       \
                                         bool from_zero, double* inner) {                                             \
      difference(leaves, size, place, from_zero, inner);                                                              \
    }                                                                                                                 \
    attribute static void run_product(const Leaves<T>& leaves, const Pairs& pairs, bool guarded, double* scratch) {   \
      product(leaves, pairs, guarded, scratch);                                                                       \
    }                                                                                                                 \
    attribute static void run_bfgs(const Leaves<T>& leaves, const double* scale, const double* rho, double* scratch) { \
      bfgs(leaves, scale, rho, scratch);                                                                              \
    }                                                                                                                 \
    static constexpr QuasiNewton<T> kernels = {&run_difference, &run_product, &run_bfgs};                             \
  };
TORCHOPT_INSTRUCTION_SETS(TORCHOPT_COMPILED)

}  // namespace

template <class T>
const QuasiNewton<T>& quasi_newton(InstructionSet isa) {
#define TORCHOPT_KERNELS(isa, name, attribute) &Compiled<T, InstructionSet::isa>::kernels,
  static const QuasiNewton<T>* const tables[] = {TORCHOPT_INSTRUCTION_SETS(TORCHOPT_KERNELS)};
  return *tables[int(isa)];
}

template const QuasiNewton<float>& quasi_newton(InstructionSet isa);
template const QuasiNewton<double>& quasi_newton(InstructionSet isa);

}  // namespace torchopt

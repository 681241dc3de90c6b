// SPDX-License-Identifier: Apache-2.0
// The kernels of one derivative order, compiled for one instruction set. CMake compiles this file once for each
// pair: TORCHOPT_ORDER is the order, TORCHOPT_ISA the name of the instruction set.

#include "torchopt/catalogue.hpp"
#include "torchopt/cpu.hpp"

namespace torchopt {
// Without linkage, so that the linker never takes a function of one instruction set for that of another.
namespace {

template <class Kernel, class T, int... I, int... O, int... C, int... R>
void run(const T* const* in, T* const* out, const T* coefs, std::int64_t n, double* reduced, Sequence<I...>,
         Sequence<O...>, Sequence<C...>, Sequence<R...>) {
  const auto c = tuple(coefs[C]...);
  const auto x = tuple(in[I]...);
  const auto y = tuple(out[O]...);
  if constexpr (Kernel::reduced == 0) {
    // Outputs may be inputs of the same leaf (a step in place), then at the same index: iterations are independent.
#if defined(__clang__)
#pragma clang loop vectorize(assume_safety)
#elif defined(__GNUC__)
#pragma GCC ivdep
#endif
    for (std::int64_t i = 0; i < n; ++i) {
      const auto result = Kernel::template apply<T>(tuple(get<I>(x)[i]...), c);
      ((get<O>(y)[i] = dense<T>(get<O>(result))), ...);
    }
  } else {
    // Sums over a fixed number of lanes, added up in a fixed order: they are the same for any number of threads,
    // and the loop over the lanes vectorizes although additions are not reordered.
    constexpr int lanes = 16;
    T sums[Kernel::reduced][lanes] = {};
    for (std::int64_t begin = 0; begin < n; begin += lanes) {
      const int count = int(n - begin < lanes ? n - begin : lanes);
#if defined(__clang__)
#pragma clang loop vectorize(assume_safety)
#elif defined(__GNUC__)
#pragma GCC ivdep
#endif
      for (int lane = 0; lane < count; ++lane) {
        const std::int64_t i = begin + lane;
        const auto result = Kernel::template apply<T>(tuple(get<I>(x)[i]...), c);
        ((get<O>(y)[i] = dense<T>(get<O>(result))), ...);
        ((sums[R][lane] += dense<T>(get<sizeof...(O) + R>(result))), ...);
      }
    }
    for (int r = 0; r < Kernel::reduced; ++r) {
      double sum = 0;
      for (int lane = 0; lane < lanes; ++lane) {
        sum += double(sums[r][lane]);
      }
      reduced[r] = sum;
    }
  }
}

template <class Rule, class T>
void chunk(const T* const* in, T* const* out, const T* coefs, std::int64_t n, double* reduced) {
  using Kernel = typename KernelOf<Rule, Order(TORCHOPT_ORDER)>::type;
  static_assert(Kernel::inputs <= max_inputs && Kernel::outputs <= max_outputs && Kernel::coefs <= max_coefs,
                "enlarge the limits in catalogue.hpp");
  run<Kernel, T>(in, out, coefs, n, reduced, Indices<Kernel::inputs>{}, Indices<Kernel::outputs>{},
                 Indices<Kernel::coefs>{}, Indices<Kernel::reduced>{});
}

template <class Rule>
constexpr CpuKernel kernel() {
  return {shape_of<typename KernelOf<Rule, Order(TORCHOPT_ORDER)>::type>(), &chunk<Rule, float>, &chunk<Rule, double>};
}

#define TORCHOPT_KERNEL(name, rule) kernel<rule>(),
constexpr CpuKernel kernels[rule_count] = {TORCHOPT_RULES(TORCHOPT_KERNEL)};

}  // namespace

#define TORCHOPT_JOIN_(a, b, c) a##_##b##_##c
#define TORCHOPT_JOIN(a, b, c) TORCHOPT_JOIN_(a, b, c)
const CpuKernel* TORCHOPT_JOIN(cpu_kernels, TORCHOPT_ISA, TORCHOPT_ORDER)() { return kernels; }

}  // namespace torchopt

// SPDX-License-Identifier: Apache-2.0
// The kernels of one derivative order, for every instruction set. CMake compiles this file once for each:
// TORCHOPT_ORDER is the order.

#include "torchopt/catalogue.hpp"
#include "torchopt/cpu.hpp"

// Functions that read and write columns are inlined like the arithmetic, but stay instrumented under a sanitizer.
#ifdef __OPTIMIZE__
#define TORCHOPT_BODY TORCHOPT_INLINE
#else
#define TORCHOPT_BODY inline
#endif

namespace torchopt {
namespace {

template <class Kernel, class T, int... I, int... O, int... C, int... R>
TORCHOPT_BODY void run(const T* const* in, T* const* out, const T* coefs, std::int64_t n, double* reduced, Sequence<I...>,
         Sequence<O...>, Sequence<C...>, Sequence<R...>) {
  auto c = tuple(coefs[C]...);
  auto x = tuple(in[I]...);
  auto y = tuple(out[O]...);
  if constexpr (Kernel::reduced == 0) {
    // Outputs may be inputs of the same leaf (a step in place), then at the same index: iterations are independent.
#if defined(__clang__)
#pragma clang loop vectorize(assume_safety)
#elif defined(__GNUC__)
#pragma GCC ivdep
#endif
    for (std::int64_t i = 0; i < n; ++i) {
      auto result = Kernel::template apply<T>(tuple(T(get<I>(x)[i])...), c);
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
        auto result = Kernel::template apply<T>(tuple(T(get<I>(x)[i])...), c);
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
TORCHOPT_BODY void run(const T* const* in, T* const* out, const T* coefs, std::int64_t n, double* reduced) {
  using Kernel = typename KernelOf<Rule, Order(TORCHOPT_ORDER)>::type;
  static_assert(Kernel::inputs <= max_inputs && Kernel::outputs <= max_outputs && Kernel::coefs <= max_coefs,
                "enlarge the limits in catalogue.hpp");
  run<Kernel, T>(in, out, coefs, n, reduced, Indices<Kernel::inputs>{}, Indices<Kernel::outputs>{},
                 Indices<Kernel::coefs>{}, Indices<Kernel::reduced>{});
}

// The same function for each instruction set. What is inlined into it is parsed and simplified only once, which is most
// of the compiler's work.
template <class Rule, InstructionSet isa>
struct Compiled;
#define TORCHOPT_COMPILED(isa, name, attribute)                                                              \
  template <class Rule>                                                                                      \
  struct Compiled<Rule, InstructionSet::isa> {                                                               \
    template <class T>                                                                                       \
    attribute static void chunk(const T* const* in, T* const* out, const T* coefs, std::int64_t n, double* reduced) { \
      run<Rule, T>(in, out, coefs, n, reduced);                                                              \
    }                                                                                                        \
  };
TORCHOPT_INSTRUCTION_SETS(TORCHOPT_COMPILED)

template <class Rule, InstructionSet isa>
constexpr CpuKernel kernel() {
  return {shape_of<typename KernelOf<Rule, Order(TORCHOPT_ORDER)>::type>(),
          &Compiled<Rule, isa>::template chunk<float>, &Compiled<Rule, isa>::template chunk<double>};
}

template <InstructionSet isa>
struct Kernels {
#define TORCHOPT_KERNEL(name, rule) kernel<rule, isa>(),
  static constexpr CpuKernel table[rule_count] = {TORCHOPT_RULES(TORCHOPT_KERNEL)};
};

}  // namespace

template <>
const CpuKernel* cpu_kernels<Order(TORCHOPT_ORDER)>(InstructionSet isa) {
#define TORCHOPT_TABLE(isa, name, attribute) Kernels<InstructionSet::isa>::table,
  static const CpuKernel* const tables[] = {TORCHOPT_INSTRUCTION_SETS(TORCHOPT_TABLE)};
  return tables[int(isa)];
}

}  // namespace torchopt

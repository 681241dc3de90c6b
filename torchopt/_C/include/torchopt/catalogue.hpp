// SPDX-License-Identifier: Apache-2.0
// Which kernels exist, and what a driver needs to know to run one.
#pragma once

#include <cstdint>

#include "derivative.hpp"
#include "rules.hpp"

// X(name, functor); the names are those of the functions in rules.py, joined by '+' where one follows another.
#define TORCHOPT_RULES(X)          \
  X("identity", Identity)          \
  X("trace", Trace)                \
  X("adam", Adam)                  \
  X("amsgrad", AmsGrad)            \
  X("yogi", Yogi)                  \
  X("belief", Belief)              \
  X("adamax", Adamax)              \
  X("rms", Rms)                    \
  X("stddev", StdDev)              \
  X("rss", Rss)                    \
  X("adadelta", AdaDelta)          \
  X("lion", Lion)                  \
  X("rms+trace", RmsThenTrace)     \
  X("stddev+trace", StdDevThenTrace)

namespace torchopt {

using RmsThenTrace = Then<Rms, Trace>;
using StdDevThenTrace = Then<StdDev, Trace>;

#define TORCHOPT_COUNT(name, rule) +1
constexpr int rule_count = 0 TORCHOPT_RULES(TORCHOPT_COUNT);
#undef TORCHOPT_COUNT

// The derivatives that are compiled of every rule.
enum class Order : int { forward, vjp, vjp_with_coefs, vjp_of_vjp, jvp };
constexpr int order_count = 5;

template <class Rule, Order order>
struct KernelOf;
template <class Rule>
struct KernelOf<Rule, Order::forward> {
  using type = Step<Rule>;
};
template <class Rule>
struct KernelOf<Rule, Order::vjp> {
  using type = Vjp<Step<Rule>>;
};
template <class Rule>
struct KernelOf<Rule, Order::vjp_with_coefs> {
  using type = Vjp<Step<Rule>, true>;
};
template <class Rule>
struct KernelOf<Rule, Order::vjp_of_vjp> {
  using type = Vjp<Vjp<Step<Rule>>>;
};
template <class Rule>
struct KernelOf<Rule, Order::jvp> {
  using type = Jvp<Step<Rule>>;
};

struct Shape {
  int inputs, outputs, coefs, reduced;
};

template <class Kernel>
constexpr Shape shape_of() {
  return {Kernel::inputs, Kernel::outputs, Kernel::coefs, Kernel::reduced};
}

constexpr int max_inputs = 14, max_outputs = 9, max_coefs = 16;

// What an element is stored as. Arithmetic is in float32, or in float64 where any array of a leaf is float64.
enum class Storage : std::uint8_t { float32, float64, bfloat16, float16 };
constexpr int storage_count = 4;

constexpr std::int64_t size_of(Storage s) {
  return s == Storage::float64 ? 8 : s == Storage::float32 ? 4 : 2;
}

// One array of a leaf. Without data an input is zero everywhere, and an output is not wanted.
struct Array {
  void* data;
  Storage storage;
};

// A tensor of the tree: how many elements, and which row of the coefficients is its own.
struct Leaf {
  std::int64_t size;
  std::int32_t row;
  bool wide;  // whether any of its arrays is float64
};

// One call of a kernel over a whole tree.
struct Job {
  int rule;
  Order order;
  Shape shape;
  const Array* arrays;  // [leaf][inputs, then outputs]
  const Leaf* leaves;
  int leaf_count;
  const double* coefs;  // [row][shape.coefs]
  int row_count;
  double* reduced;      // [row][shape.reduced], written
};

}  // namespace torchopt

// SPDX-License-Identifier: Apache-2.0
// The kernels on the CPU: which are compiled, and how one is run over a tree.
#pragma once

#include "catalogue.hpp"

namespace torchopt {

// Runs a kernel over n elements, all of one type. No pointer is null.
template <class T>
using Chunk = void (*)(const T* const* in, T* const* out, const T* coefs, std::int64_t n, double* reduced);

struct CpuKernel {
  Shape shape;
  Chunk<float> single;
  Chunk<double> wide;
};

// X(identifier, name, attribute of functions that are compiled for it); the best first. The features are those of the levels
// of the x86-64 psABI. A processor with the first three of each level has the others too.
#define TORCHOPT_BASELINE(X) X(baseline, "baseline", )
#if defined(__x86_64__) && defined(__GNUC__) && defined(__OPTIMIZE__)
#define TORCHOPT_V3 "avx2,bmi,bmi2,f16c,fma,lzcnt,movbe"
#define TORCHOPT_V4 TORCHOPT_V3 ",avx512f,avx512bw,avx512cd,avx512dq,avx512vl"
#define TORCHOPT_INSTRUCTION_SETS(X)                                    \
  X(x86_64_v4, "x86-64-v4", __attribute__((target(TORCHOPT_V4))))       \
  X(x86_64_v3, "x86-64-v3", __attribute__((target(TORCHOPT_V3))))       \
  TORCHOPT_BASELINE(X)
#else
#define TORCHOPT_INSTRUCTION_SETS(X) TORCHOPT_BASELINE(X)
#endif

#define TORCHOPT_ENUMERATOR(isa, name, attribute) isa,
enum class InstructionSet : int { TORCHOPT_INSTRUCTION_SETS(TORCHOPT_ENUMERATOR) };
#undef TORCHOPT_ENUMERATOR

// The kernels of all rules.
template <Order order>
const CpuKernel* cpu_kernels(InstructionSet isa);
template <>
const CpuKernel* cpu_kernels<Order::forward>(InstructionSet isa);
template <>
const CpuKernel* cpu_kernels<Order::vjp>(InstructionSet isa);
template <>
const CpuKernel* cpu_kernels<Order::vjp_with_coefs>(InstructionSet isa);
template <>
const CpuKernel* cpu_kernels<Order::vjp_of_vjp>(InstructionSet isa);
template <>
const CpuKernel* cpu_kernels<Order::jvp>(InstructionSet isa);

// The instruction set that this processor's kernels are taken from, and its name.
InstructionSet current_instruction_set();
const char* cpu_instruction_set();

// Takes the kernels of another instruction set; false if this processor or this build has not got it.
bool use_cpu_instruction_set(const char* name);

const CpuKernel& cpu_kernel(int rule, Order order);

// Runs a job on this many threads at most. The result does not depend on their number.
void run_on_cpu(const Job& job, int threads);

}  // namespace torchopt

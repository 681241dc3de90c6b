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

// The name of the instruction set that this processor's kernels are taken from.
const char* cpu_instruction_set();

// Takes the kernels of another instruction set; false if this processor or this build has not got it.
bool use_cpu_instruction_set(const char* name);

const CpuKernel& cpu_kernel(int rule, Order order);

// Runs a job on this many threads at most. The result does not depend on their number.
void run_on_cpu(const Job& job, int threads);

}  // namespace torchopt

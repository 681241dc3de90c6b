// SPDX-License-Identifier: Apache-2.0
// Runs kernels over trees on the CPU. A tree is cut into blocks of elements that stay in the first level of cache
// while columns of another type than that of the arithmetic are converted; threads share the blocks.

#include "torchopt/cpu.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "torchopt/storage.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace torchopt {

namespace {

bool runs_here([[maybe_unused]] InstructionSet isa) {
#ifdef TORCHOPT_V3
  if (isa == InstructionSet::x86_64_v3) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  }
  if (isa == InstructionSet::x86_64_v4) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512cd");
  }
#endif
  return true;
}

constexpr const char* instruction_set_names[] = {
#define TORCHOPT_NAME(isa, name, attribute) name,
    TORCHOPT_INSTRUCTION_SETS(TORCHOPT_NAME)
#undef TORCHOPT_NAME
};

InstructionSet best_set() {
  int isa = 0;
  while (!runs_here(InstructionSet(isa))) {
    ++isa;
  }
  return InstructionSet(isa);
}

// The instruction set whose kernels run.
std::atomic<InstructionSet>& current_set() {
  static std::atomic<InstructionSet> current{best_set()};
  return current;
}

// After a fork the threads of the OpenMP runtime are gone, and a parallel region would wait for them forever.
std::atomic<bool> threads_are_gone{false};

void watch_for_forks() {
#if defined(__unix__) || defined(__APPLE__)
  static const int registered = pthread_atfork(nullptr, nullptr, [] { threads_are_gone = true; });
  (void)registered;
#endif
}

constexpr std::int64_t block_size = 4096;
// Where columns are converted, or are zeros, blocks go through the cache in pieces.
constexpr std::int64_t piece_size = 1024;
// Below this many elements a parallel region costs more than it saves.
constexpr std::int64_t parallel_size = 32768;

template <class S, class T>
void load(const void* from, T* to, std::int64_t n) {
  const S* x = static_cast<const S*>(from);
  for (std::int64_t i = 0; i < n; ++i) {
    to[i] = T(widen(x[i]));
  }
}
template <class S, class T>
void store(const T* from, void* to, std::int64_t n) {
  S* y = static_cast<S*>(to);
  for (std::int64_t i = 0; i < n; ++i) {
    y[i] = Narrow<S, T>::from(from[i]);
  }
}

template <class T>
constexpr Storage native = sizeof(T) == 8 ? Storage::float64 : Storage::float32;

template <class T>
void load(Storage storage, const void* from, T* to, std::int64_t n) {
  switch (storage) {
    case Storage::float32: return load<float>(from, to, n);
    case Storage::float64: return load<double>(from, to, n);
    case Storage::bfloat16: return load<BFloat16>(from, to, n);
    case Storage::float16: return load<Float16>(from, to, n);
  }
}
template <class T>
void store(Storage storage, const T* from, void* to, std::int64_t n) {
  switch (storage) {
    case Storage::float32: return store<float>(from, to, n);
    case Storage::float64: return store<double>(from, to, n);
    case Storage::bfloat16: return store<BFloat16>(from, to, n);
    case Storage::float16: return store<Float16>(from, to, n);
  }
}

// One thread's view of a job: where blocks of columns lie that cannot be used as they are.
template <class T>
class Worker {
 public:
  Worker(const Job& job, Chunk<T> chunk) : job_(job), chunk_(chunk) {}

  // Runs a block; where there are sums, `reduced` receives those of the block.
  void run(const Leaf& leaf, const Array* arrays, std::int64_t begin, std::int64_t n, double* reduced) {
    const int columns = job_.shape.inputs + job_.shape.outputs;
    const bool direct = std::all_of(arrays, arrays + columns,
                                    [](const Array& a) { return a.data != nullptr && a.storage == native<T>; });
    if (direct || n <= piece_size) {
      return run_piece(leaf, arrays, begin, n, reduced);
    }
    double sums[max_coefs];
    for (std::int64_t start = 0; start < n; start += piece_size) {
      run_piece(leaf, arrays, begin + start, std::min(piece_size, n - start), reduced ? sums : nullptr);
      for (int r = 0; reduced && r < job_.shape.reduced; ++r) {
        reduced[r] += sums[r];
      }
    }
  }

 private:
  void run_piece(const Leaf& leaf, const Array* arrays, std::int64_t begin, std::int64_t n, double* reduced) {
    alignas(64) static const T zeros[piece_size] = {};
    const Shape& shape = job_.shape;
    const T* in[max_inputs];
    T* out[max_outputs];
    for (int i = 0; i < shape.inputs; ++i) {
      const Array& a = arrays[i];
      if (a.data == nullptr) {
        in[i] = zeros;
      } else if (a.storage == native<T>) {
        in[i] = static_cast<const T*>(a.data) + begin;
      } else {
        T* converted = scratch(i);
        load(a.storage, static_cast<const char*>(a.data) + begin * size_of(a.storage), converted, n);
        in[i] = converted;
      }
    }
    for (int o = 0; o < shape.outputs; ++o) {
      const Array& a = arrays[shape.inputs + o];
      const bool direct = a.data != nullptr && a.storage == native<T>;
      out[o] = direct ? static_cast<T*>(a.data) + begin : scratch(shape.inputs + o);
    }
    if (leaf.row != row_) {
      row_ = leaf.row;
      for (int c = 0; c < shape.coefs; ++c) {
        coefs_[c] = T(job_.coefs[std::int64_t(row_) * shape.coefs + c]);
      }
    }
    chunk_(in, out, coefs_, n, reduced);
    for (int o = 0; o < shape.outputs; ++o) {
      const Array& a = arrays[shape.inputs + o];
      if (a.data != nullptr && a.storage != native<T>) {
        store(a.storage, out[o], static_cast<char*>(a.data) + begin * size_of(a.storage), n);
      }
    }
  }

  T* scratch(int column) {
    if (!scratch_) {
      scratch_.reset(new T[std::size_t(job_.shape.inputs + job_.shape.outputs) * piece_size]);
    }
    return scratch_.get() + column * piece_size;
  }

  const Job& job_;
  Chunk<T> chunk_;
  std::unique_ptr<T[]> scratch_;
  std::int32_t row_ = -1;
  T coefs_[max_coefs];
};

void run_blocks(const Job& job, const CpuKernel& kernel, const std::vector<std::int64_t>& first_block,
                std::int64_t begin, std::int64_t end, double* partial) {
  Worker<float> single(job, kernel.single);
  Worker<double> wide(job, kernel.wide);
  const int columns = job.shape.inputs + job.shape.outputs;
  auto leaf = std::upper_bound(first_block.begin(), first_block.end(), begin) - first_block.begin() - 1;
  for (std::int64_t block = begin; block < end; ++block) {
    while (block >= first_block[leaf + 1]) {
      ++leaf;
    }
    const Leaf& l = job.leaves[leaf];
    const std::int64_t start = (block - first_block[leaf]) * block_size;
    const std::int64_t n = std::min(block_size, l.size - start);
    double* reduced = partial ? partial + block * job.shape.reduced : nullptr;
    if (l.wide) {
      wide.run(l, job.arrays + leaf * columns, start, n, reduced);
    } else {
      single.run(l, job.arrays + leaf * columns, start, n, reduced);
    }
  }
}

}  // namespace

InstructionSet current_instruction_set() { return current_set().load(std::memory_order_relaxed); }

const char* cpu_instruction_set() { return instruction_set_names[int(current_instruction_set())]; }

bool use_cpu_instruction_set(const char* name) {
  int isa = 0;
  for (const char* other : instruction_set_names) {
    if (std::strcmp(other, name) == 0 && runs_here(InstructionSet(isa))) {
      current_set() = InstructionSet(isa);
      return true;
    }
    ++isa;
  }
  return false;
}

const CpuKernel& cpu_kernel(int rule, Order order) {
  const InstructionSet isa = current_instruction_set();
  switch (order) {
    case Order::forward: return cpu_kernels<Order::forward>(isa)[rule];
    case Order::vjp: return cpu_kernels<Order::vjp>(isa)[rule];
    case Order::vjp_with_coefs: return cpu_kernels<Order::vjp_with_coefs>(isa)[rule];
    case Order::vjp_of_vjp: return cpu_kernels<Order::vjp_of_vjp>(isa)[rule];
    case Order::jvp: break;
  }
  return cpu_kernels<Order::jvp>(isa)[rule];
}

void run_on_cpu(const Job& job, int threads) {
  watch_for_forks();
  const CpuKernel& kernel = cpu_kernel(job.rule, job.order);
  std::vector<std::int64_t> first_block(job.leaf_count + 1, 0);
  std::int64_t elements = 0;
  for (int i = 0; i < job.leaf_count; ++i) {
    first_block[i + 1] = first_block[i] + (job.leaves[i].size + block_size - 1) / block_size;
    elements += job.leaves[i].size;
  }
  const std::int64_t blocks = first_block.back();
  std::vector<double> partial(std::size_t(blocks) * job.shape.reduced);
  double* sums = partial.empty() ? nullptr : partial.data();

#ifdef _OPENMP
  if (threads > 1 && elements >= parallel_size && !threads_are_gone && !omp_in_parallel()) {
#pragma omp parallel num_threads(threads)
    {
      const std::int64_t n = omp_get_num_threads(), i = omp_get_thread_num();
      run_blocks(job, kernel, first_block, blocks * i / n, blocks * (i + 1) / n, sums);
    }
  } else
#endif
  {
    run_blocks(job, kernel, first_block, 0, blocks, sums);
  }

  // Block by block, whichever thread computed it.
  std::fill(job.reduced, job.reduced + std::size_t(job.row_count) * job.shape.reduced, 0.0);
  for (int i = 0; sums && i < job.leaf_count; ++i) {
    double* total = job.reduced + std::size_t(job.leaves[i].row) * job.shape.reduced;
    for (std::int64_t block = first_block[i]; block < first_block[i + 1]; ++block) {
      for (int r = 0; r < job.shape.reduced; ++r) {
        total[r] += sums[block * job.shape.reduced + r];
      }
    }
  }
}

}  // namespace torchopt

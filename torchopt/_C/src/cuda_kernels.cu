// SPDX-License-Identifier: Apache-2.0
// The kernels of one derivative order on CUDA devices. CMake compiles this file once for each: TORCHOPT_ORDER is the
// order.

#include "cuda_table.hpp"
#include "torchopt/storage.hpp"

namespace torchopt {

// Elements that a thread reads and writes at once.
template <class S, int Width>
struct alignas(sizeof(S) * Width) Pack {
  S x[Width];
};

// Half of the longest packs where there are many arrays: registers are better spent on more threads.
template <class Kernel, class T>
constexpr int pack_width = (Kernel::inputs + Kernel::outputs <= 16 ? 16 : 8) / int(sizeof(T));

// The last leaf that does not begin after this block.
__device__ inline int owner_of(const CudaTable& table, std::uint32_t block) {
  int low = 0;
  int high = table.leaf_count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (table.leaves[middle].first_block <= block) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Elements of any storage type and alignment; those past the count are zeros.
template <class S, int Width, class T>
__device__ __forceinline__ void load(const void* data, std::int64_t begin, int count, T* x) {
  const S* from = static_cast<const S*>(data) + begin;
  Pack<S, Width> pack = {};
  if (count == Width && reinterpret_cast<std::uintptr_t>(from) % sizeof pack == 0) {
    pack = *reinterpret_cast<const Pack<S, Width>*>(from);
  } else {
#pragma unroll
    for (int k = 0; k < Width; ++k) {
      if (k < count) {
        pack.x[k] = from[k];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < Width; ++k) {
    x[k] = T(widen(pack.x[k]));
  }
}
template <class S, int Width, class T>
__device__ __forceinline__ void store(void* data, std::int64_t begin, int count, const T* x) {
  S* to = static_cast<S*>(data) + begin;
  Pack<S, Width> pack;
#pragma unroll
  for (int k = 0; k < Width; ++k) {
    pack.x[k] = Narrow<S, T>::from(x[k]);
  }
  if (count == Width && reinterpret_cast<std::uintptr_t>(to) % sizeof pack == 0) {
    *reinterpret_cast<Pack<S, Width>*>(to) = pack;
  } else {
#pragma unroll
    for (int k = 0; k < Width; ++k) {
      if (k < count) {
        to[k] = pack.x[k];
      }
    }
  }
}

template <int Width, class T>
__device__ __forceinline__ void load(Storage storage, const void* data, std::int64_t begin, int count, T* x) {
  switch (storage) {
    case Storage::float32: return load<float, Width>(data, begin, count, x);
    case Storage::float64: return load<double, Width>(data, begin, count, x);
    case Storage::bfloat16: return load<BFloat16, Width>(data, begin, count, x);
    case Storage::float16: return load<Float16, Width>(data, begin, count, x);
  }
}
template <int Width, class T>
__device__ __forceinline__ void store(Storage storage, void* data, std::int64_t begin, int count, const T* x) {
  switch (storage) {
    case Storage::float32: return store<float, Width>(data, begin, count, x);
    case Storage::float64: return store<double, Width>(data, begin, count, x);
    case Storage::bfloat16: return store<BFloat16, Width>(data, begin, count, x);
    case Storage::float16: return store<Float16, Width>(data, begin, count, x);
  }
}

// Adds up the sums of a block's threads, always in the same order.
template <int Count, class T>
__device__ __forceinline__ void add_up(const T* sums, double* result) {
  constexpr int warp = 32, warps = cuda_threads / warp;
  __shared__ double of_warps[Count][warps];
#pragma unroll
  for (int r = 0; r < Count; ++r) {
    double sum = double(sums[r]);
    for (int distance = warp / 2; distance > 0; distance /= 2) {
      sum += __shfl_down_sync(0xffffffffu, sum, distance);
    }
    if (threadIdx.x % warp == 0) {
      of_warps[r][threadIdx.x / warp] = sum;
    }
  }
  __syncthreads();
  if (threadIdx.x < Count) {
    double sum = 0;
    for (int w = 0; w < warps; ++w) {
      sum += of_warps[threadIdx.x][w];
    }
    result[threadIdx.x] = sum;
  }
}

// Runs a kernel over one tile of a leaf. Outputs may be inputs of the same leaf (a step in place): a thread reads what
// it overwrites, and nothing else does.
template <class Kernel, class T, int... I, int... O, int... C, int... R>
__device__ __forceinline__ void run_tile(const CudaTable& table, Sequence<I...>, Sequence<O...>, Sequence<C...>,
                                         Sequence<R...>) {
  constexpr int width = pack_width<Kernel, T>, columns = Kernel::inputs + Kernel::outputs;
  using Elements = Pack<T, width>;

  const int index = owner_of(table, blockIdx.x);
  const CudaLeaf& leaf = table.leaves[index];
  const std::uint32_t tile = blockIdx.x - leaf.first_block;
  const std::int64_t begin = std::int64_t(tile) * table.tile;
  const int n = int(min(std::int64_t(table.tile), leaf.size - begin));
  void* const* data = table.data + index * columns;
  const Storage* storage = table.storage + index * columns;

  T coefs[Kernel::coefs];
  if (table.device_coefs) {
    const double* row = table.device_coefs + std::int64_t(leaf.row) * Kernel::coefs;
    ((coefs[C] = T(row[C])), ...);
  } else {
    const T* row = reinterpret_cast<const T*>(table.coefs) + leaf.row * Kernel::coefs;
    ((coefs[C] = row[C]), ...);
  }
  const auto c = tuple(coefs[C]...);
  const auto in = tuple(static_cast<const T*>(data[I])...);
  const auto out = tuple(static_cast<T*>(data[Kernel::inputs + O])...);
  T sums[Kernel::reduced + 1] = {};

#pragma unroll 1
  for (int i = int(threadIdx.x) * width; i < n; i += cuda_threads * width) {
    const int count = min(width, n - i);
    const bool direct = leaf.direct && count == width;
    Elements x[Kernel::inputs], y[Kernel::outputs];
    if (direct) {
      ((x[I] = get<I>(in) ? *reinterpret_cast<const Elements*>(get<I>(in) + begin + i) : Elements{}), ...);
    } else {
      // In a loop through memory: conversions of every column to every type would fill the instruction cache.
      T staged[Kernel::inputs][width];
#pragma unroll 1
      for (int column = 0; column < Kernel::inputs; ++column) {
        if (data[column]) {
          load<width>(storage[column], data[column], begin + i, count, staged[column]);
        } else {
          for (int k = 0; k < width; ++k) {
            staged[column][k] = T(0);
          }
        }
      }
#pragma unroll
      for (int k = 0; k < width; ++k) {
        ((x[I].x[k] = staged[I][k]), ...);
      }
    }
#pragma unroll
    for (int k = 0; k < width; ++k) {
      const auto result = Kernel::template apply<T>(tuple(x[I].x[k]...), c);
      ((y[O].x[k] = dense<T>(get<O>(result))), ...);
      ((sums[R] += k < count ? dense<T>(get<sizeof...(O) + R>(result)) : T(0)), ...);
    }
    if (direct) {
      ((get<O>(out) ? void(*reinterpret_cast<Elements*>(get<O>(out) + begin + i) = y[O]) : void()), ...);
    } else {
      T staged[Kernel::outputs][width];
#pragma unroll
      for (int k = 0; k < width; ++k) {
        ((staged[O][k] = y[O].x[k]), ...);
      }
#pragma unroll 1
      for (int column = 0; column < Kernel::outputs; ++column) {
        const int o = Kernel::inputs + column;
        if (data[o]) {
          store<width>(storage[o], data[o], begin + i, count, staged[column]);
        }
      }
    }
  }
  if constexpr (Kernel::reduced > 0) {
    add_up<Kernel::reduced>(sums, table.partials + std::int64_t(leaf.first_partial + tile) * Kernel::reduced);
  }
}

// Two blocks at least share a processor, lest it wait for memory; in double precision that would cost registers that
// the kernels need.
template <class Kernel, class T>
__global__ void __launch_bounds__(cuda_threads, sizeof(T) == 4 ? 2 : 1) run(const __grid_constant__ CudaTable table) {
  run_tile<Kernel, T>(table, Indices<Kernel::inputs>{}, Indices<Kernel::outputs>{}, Indices<Kernel::coefs>{},
                      Indices<Kernel::reduced>{});
}

template <class Rule>
CudaKernel kernel() {
  using Kernel = typename KernelOf<Rule, Order(TORCHOPT_ORDER)>::type;
  static_assert(Kernel::inputs <= max_inputs && Kernel::outputs <= max_outputs && Kernel::coefs <= max_coefs,
                "enlarge the limits in catalogue.hpp");
  return {reinterpret_cast<const void*>(&run<Kernel, float>), reinterpret_cast<const void*>(&run<Kernel, double>)};
}

#define TORCHOPT_JOIN_(a, b) a##_##b
#define TORCHOPT_JOIN(a, b) TORCHOPT_JOIN_(a, b)
const CudaKernel* TORCHOPT_JOIN(cuda_kernels, TORCHOPT_ORDER)() {
#define TORCHOPT_KERNEL(name, rule) kernel<rule>(),
  static const CudaKernel kernels[rule_count] = {TORCHOPT_RULES(TORCHOPT_KERNEL)};
  return kernels;
}

}  // namespace torchopt

// SPDX-License-Identifier: Apache-2.0
// Runs kernels over trees on CUDA devices. A tree is cut into tiles, one for each block of threads; as many leaves as
// the parameters of a kernel can describe go into one launch.

#include "torchopt/cuda.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cuda_table.hpp"

namespace torchopt {

const CudaKernel* cuda_kernels_0();
const CudaKernel* cuda_kernels_1();
const CudaKernel* cuda_kernels_2();
const CudaKernel* cuda_kernels_3();
const CudaKernel* cuda_kernels_4();

// Where the partial sums of each row lie, again as a kernel's parameter.
struct CudaSums {
  static constexpr int max_rows = 8000;

  const double* partials;
  double* reduced;  // of the first row
  std::int32_t count;  // sums of a row
  std::uint32_t first[max_rows + 1];
};
static_assert(sizeof(CudaSums) <= CudaTable::limit, "the parameters of a kernel are limited");

// One block for each sum of each row.
__global__ void __launch_bounds__(cuda_threads) add_partials(const __grid_constant__ CudaSums sums) {
  __shared__ double of_threads[cuda_threads];
  const std::uint32_t row = blockIdx.x / sums.count, r = blockIdx.x % sums.count;
  double sum = 0;
  for (std::uint32_t i = sums.first[row] + threadIdx.x; i < sums.first[row + 1]; i += cuda_threads) {
    sum += sums.partials[std::size_t(i) * sums.count + r];
  }
  of_threads[threadIdx.x] = sum;
  for (unsigned half = cuda_threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      of_threads[threadIdx.x] += of_threads[threadIdx.x + half];
    }
  }
  if (threadIdx.x == 0) {
    sums.reduced[blockIdx.x] = of_threads[0];
  }
}

namespace {

// What a failed call returns. The runtime forgets the error, lest another library take it for its own.
const char* message(const char* what, cudaError_t error) {
  thread_local std::string text;
  cudaGetLastError();
  text = std::string(what) + ": " + cudaGetErrorString(error);
  return text.c_str();
}

// Sets a device, and restores the thread's previous one at the end.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    error_ = cudaGetDevice(&previous_);
    if (error_ == cudaSuccess && device != previous_) {
      error_ = cudaSetDevice(device);
      moved_ = error_ == cudaSuccess;
    }
  }
  ~OnDevice() {
    if (moved_) {
      cudaSetDevice(previous_);
    }
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  cudaError_t error() const { return error_; }

 private:
  int previous_ = 0;
  bool moved_ = false;
  cudaError_t error_;
};

// How a job is cut.
struct Plan {
  std::uint32_t tile = 1024;
  std::vector<std::uint32_t> first_partial;  // of each leaf; empty without sums
  std::vector<std::uint32_t> first_of_row;   // partials, with the end of the last row; empty without sums

  explicit Plan(const Job& job) {
    // Small trees are spread over all processors; in big ones each block has more to do before it adds up its sums.
    constexpr std::int64_t enough_blocks = 2048;
    const std::uint32_t largest = job.shape.reduced > 0 ? 8192 : 4096;
    std::int64_t elements = 0;
    for (int i = 0; i < job.leaf_count; ++i) {
      elements += job.leaves[i].size;
    }
    while (tile < largest && elements / tile > enough_blocks) {
      tile *= 2;
    }
    if (job.shape.reduced > 0) {
      sort_partials(job);
    }
  }

  std::uint32_t blocks(const Leaf& leaf) const { return std::uint32_t((leaf.size + tile - 1) / tile); }

 private:
  // The partial sums of a row lie side by side, those of its first leaf first.
  void sort_partials(const Job& job) {
    first_of_row.assign(std::size_t(job.row_count) + 1, 0);
    for (int i = 0; i < job.leaf_count; ++i) {
      first_of_row[job.leaves[i].row + 1] += blocks(job.leaves[i]);
    }
    for (int row = 0; row < job.row_count; ++row) {
      first_of_row[row + 1] += first_of_row[row];
    }
    std::vector<std::uint32_t> next(first_of_row);
    first_partial.resize(job.leaf_count);
    for (int i = 0; i < job.leaf_count; ++i) {
      first_partial[i] = next[job.leaves[i].row];
      next[job.leaves[i].row] += blocks(job.leaves[i]);
    }
  }
};

// Fills tables with the leaves whose arithmetic is in T, and launches a kernel for each table.
template <class T>
class Launcher {
 public:
  Launcher(const Job& job, const Plan& plan, const void* kernel, cudaStream_t stream, const double* device_coefs,
           double* workspace)
      : job_(job), plan_(plan), kernel_(kernel), stream_(stream) {
    table_.device_coefs = device_coefs;
    table_.partials = workspace;
    table_.tile = plan.tile;
    clear();
  }

  cudaError_t run() {
    for (int i = 0; i < job_.leaf_count; ++i) {
      const Leaf& leaf = job_.leaves[i];
      if (leaf.size == 0 || leaf.wide != (sizeof(T) == 8)) {
        continue;
      }
      if (!add(i)) {
        const cudaError_t error = launch();
        if (error != cudaSuccess) {
          return error;
        }
        add(i);
      }
    }
    return launch();
  }

 private:
  static constexpr int max_coefs_in_table = CudaTable::coef_bytes / int(sizeof(T));
  static_assert(max_inputs + max_outputs <= CudaTable::max_arrays && max_coefs <= max_coefs_in_table,
                "a table has room for any leaf");

  void clear() {
    table_.leaf_count = 0;
    blocks_ = 0;
    rows_ = 0;
  }

  // False if there is no room.
  bool add(int i) {
    const Leaf& leaf = job_.leaves[i];
    const int columns = job_.shape.inputs + job_.shape.outputs, index = table_.leaf_count;
    const std::int64_t blocks = blocks_ + plan_.blocks(leaf);
    if (index == CudaTable::max_leaves || (index + 1) * columns > CudaTable::max_arrays || blocks > max_blocks) {
      return false;
    }
    const std::int32_t row = table_.device_coefs ? leaf.row : row_in_table(leaf.row);
    if (row < 0) {
      return false;
    }
    bool direct = true;
    for (int a = 0; a < columns; ++a) {
      const Array& array = job_.arrays[std::size_t(i) * columns + a];
      table_.data[index * columns + a] = array.data;
      table_.storage[index * columns + a] = array.storage;
      direct = direct && (array.data == nullptr ||
                          (size_of(array.storage) == sizeof(T) &&
                           reinterpret_cast<std::uintptr_t>(array.data) % cuda_alignment == 0));
    }
    const std::uint32_t first_partial = plan_.first_partial.empty() ? 0 : plan_.first_partial[i];
    table_.leaves[index] = {leaf.size, std::uint32_t(blocks_), first_partial, row, direct};
    table_.leaf_count = index + 1;
    blocks_ = blocks;
    return true;
  }

  // Where the table has the coefficients of a row, which are added if need be; -1 if there is no room.
  std::int32_t row_in_table(std::int32_t row) {
    // From the last, which most often is the one: neighbours share rows.
    for (int r = rows_ - 1; r >= 0; --r) {
      if (row_of_job_[r] == row) {
        return r;
      }
    }
    const int n = job_.shape.coefs;
    if ((rows_ + 1) * n > max_coefs_in_table) {
      return -1;
    }
    T* coefs = reinterpret_cast<T*>(table_.coefs) + rows_ * n;
    for (int c = 0; c < n; ++c) {
      coefs[c] = T(job_.coefs[std::size_t(row) * n + c]);
    }
    row_of_job_[rows_] = row;
    return rows_++;
  }

  cudaError_t launch() {
    if (blocks_ == 0) {
      return cudaSuccess;
    }
    void* parameters[] = {&table_};
    const cudaError_t error =
        cudaLaunchKernel(kernel_, dim3(unsigned(blocks_)), dim3(cuda_threads), parameters, 0, stream_);
    clear();
    return error;
  }

  static constexpr std::int64_t max_blocks = 0x7fffffff;

  const Job& job_;
  const Plan& plan_;
  const void* kernel_;
  cudaStream_t stream_;
  std::int64_t blocks_;
  int rows_;
  std::int32_t row_of_job_[max_coefs_in_table];
  CudaTable table_;
};

cudaError_t launch_sums(const Job& job, const Plan& plan, cudaStream_t stream, double* reduced,
                        const double* workspace) {
  CudaSums sums;
  sums.partials = workspace;
  sums.count = job.shape.reduced;
  for (int row = 0; row < job.row_count; row += CudaSums::max_rows) {
    const int rows = std::min(CudaSums::max_rows, job.row_count - row);
    std::copy_n(plan.first_of_row.begin() + row, rows + 1, sums.first);
    sums.reduced = reduced + std::size_t(row) * sums.count;
    void* parameters[] = {&sums};
    const cudaError_t error = cudaLaunchKernel(reinterpret_cast<const void*>(&add_partials),
                                               dim3(unsigned(rows * sums.count)), dim3(cuda_threads), parameters, 0,
                                               stream);
    if (error != cudaSuccess) {
      return error;
    }
  }
  return cudaSuccess;
}

const CudaKernel& cuda_kernel(int rule, Order order) {
  static const CudaKernel* const kernels[order_count] = {cuda_kernels_0(), cuda_kernels_1(), cuda_kernels_2(),
                                                         cuda_kernels_3(), cuda_kernels_4()};
  return kernels[int(order)][rule];
}

}  // namespace

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

std::size_t cuda_workspace(const Job& job) {
  return job.shape.reduced > 0 ? std::size_t(Plan(job).first_of_row.back()) * job.shape.reduced : 0;
}

const char* run_on_cuda(const Job& job, int device, void* stream_of_device, const double* device_coefs,
                        double* reduced, double* workspace) {
  const OnDevice on_device(device);
  if (on_device.error() != cudaSuccess) {
    return message("cannot use the CUDA device", on_device.error());
  }
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_of_device);
  const CudaKernel& kernel = cuda_kernel(job.rule, job.order);
  const Plan plan(job);
  bool has_single = false, has_wide = false;
  for (int i = 0; i < job.leaf_count; ++i) {
    (job.leaves[i].wide ? has_wide : has_single) = true;
  }

  cudaError_t error = cudaSuccess;
  if (has_single) {
    error = Launcher<float>(job, plan, kernel.single, stream, device_coefs, workspace).run();
  }
  if (has_wide && error == cudaSuccess) {
    error = Launcher<double>(job, plan, kernel.wide, stream, device_coefs, workspace).run();
  }
  if (job.shape.reduced > 0 && error == cudaSuccess) {
    error = launch_sums(job, plan, stream, reduced, workspace);
  }
  return error == cudaSuccess ? nullptr : message("cannot launch a CUDA kernel", error);
}

}  // namespace torchopt

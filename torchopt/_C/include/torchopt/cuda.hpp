// SPDX-License-Identifier: Apache-2.0
// Runs jobs on CUDA devices. Only kernels are launched: nothing is allocated, copied or waited for, so that a call may
// be captured in a CUDA graph. (A graph keeps the coefficients it was captured with, unless they are on the device.)
#pragma once

#include <cstddef>

#include "catalogue.hpp"

namespace torchopt {

// How many devices there are: none where there is no driver.
int cuda_device_count();

// How many doubles of device memory the sums of a job pass through.
std::size_t cuda_workspace(const Job& job);

// Enqueues a job on a stream of a device. Returns null, or what failed: a text that stays valid until this thread's
// next call.
//   job           its arrays point to device memory of that device, all else to host memory, which is free afterwards;
//                 job.reduced is not used
//   device_coefs  coefficients that lie on the device, as [row][shape.coefs], or null for those of the job
//   reduced       sums, on the device, as [row][shape.reduced]; all are written
//   workspace     cuda_workspace(job) doubles on the device
// Sums are added in an order that depends on the sizes of the leaves only.
const char* run_on_cuda(const Job& job, int device, void* stream, const double* device_coefs, double* reduced,
                        double* workspace);

}  // namespace torchopt

# SPDX-License-Identifier: Apache-2.0
# Enables the language CUDA and offers its runtime as torchopt::cuda, an interface target that is empty when CUDA is
# off or absent. TORCHOPT_HAS_CUDA says which.
#
# The runtime is linked statically: a module that names libcudart.so would load only beside the toolkit it was built
# with. It finds the driver, and the contexts that torch has made, when the first device is asked for, and a machine
# without a driver loads the module all the same.

set(TORCHOPT_CUDA "OFF" CACHE STRING "Build kernels for CUDA devices: OFF, ON (or fail), AUTO (where nvcc is found)")
set_property(CACHE TORCHOPT_CUDA PROPERTY STRINGS OFF ON AUTO)

# 12.1 is the first version whose kernels take 32 KiB of parameters.
set(TORCHOPT_CUDA_MINIMUM 12.1)

add_library(torchopt_cuda INTERFACE)
add_library(torchopt::cuda ALIAS torchopt_cuda)
set(TORCHOPT_HAS_CUDA FALSE)

if(NOT TORCHOPT_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    # Machine code for Ampere and Hopper; what comes later translates the PTX of Hopper.
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
    endif()
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CMAKE_CUDA_EXTENSIONS OFF)
    set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    enable_language(CUDA)
    if(NOT CMAKE_CUDA_COMPILER_VERSION VERSION_LESS TORCHOPT_CUDA_MINIMUM)
      find_package(CUDAToolkit REQUIRED)  # that of the compiler
      target_link_libraries(torchopt_cuda INTERFACE CUDA::cudart_static)
      set(TORCHOPT_HAS_CUDA TRUE)
      message(STATUS "torchopt: CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")
    endif()
  endif()

  if(NOT TORCHOPT_HAS_CUDA)
    if(CMAKE_CUDA_COMPILER)
      set(found "found ${CMAKE_CUDA_COMPILER_VERSION} (${CMAKE_CUDA_COMPILER})")
    else()
      set(found "found no nvcc that works")
    endif()
    if(TORCHOPT_CUDA STREQUAL "ON")
      message(FATAL_ERROR
        "TORCHOPT_CUDA=ON needs the CUDA toolkit >= ${TORCHOPT_CUDA_MINIMUM}, but ${found}. Install one and put its "
        "nvcc on PATH or into the environment variable CUDACXX, or build with TORCHOPT_CUDA=OFF: CUDA tensors are "
        "then computed by torch's own operations.")
    endif()
    message(STATUS "torchopt: ${found}, CUDA tensors will be computed by torch's own operations")
  endif()
endif()

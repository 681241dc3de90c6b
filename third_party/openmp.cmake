# SPDX-License-Identifier: Apache-2.0
# Finds the compiler's OpenMP and offers it as torchopt::openmp, an interface target that is empty
# when OpenMP is off or absent.
#
# At run time the module must share the OpenMP runtime that torch has loaded: two runtimes in one
# process slow each other down, and torch.set_num_threads would not reach ours. Hence no rpath and
# no bundled copy: torchopt/_C/__init__.py imports torch first, and the loader then finds libgomp by
# its soname. A tool that repairs wheels must leave libgomp.so.1 out for the same reason.

add_library(torchopt_openmp INTERFACE)
add_library(torchopt::openmp ALIAS torchopt_openmp)

# 4.5 is the first version with array sections in reductions and taskloop; every supported compiler
# but MSVC has it, and MSVC's 2.0 is enough for plain parallel loops.
set(TORCHOPT_OPENMP_MINIMUM 4.5)
if(MSVC)
  set(TORCHOPT_OPENMP_MINIMUM 2.0)
endif()

if(NOT TORCHOPT_OPENMP STREQUAL "OFF")
  find_package(OpenMP ${TORCHOPT_OPENMP_MINIMUM} COMPONENTS CXX)
  if(OpenMP_CXX_FOUND)
    target_link_libraries(torchopt_openmp INTERFACE OpenMP::OpenMP_CXX)
  elseif(TORCHOPT_OPENMP STREQUAL "ON")
    message(FATAL_ERROR
      "TORCHOPT_OPENMP=ON, but ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION} has no "
      "OpenMP >= ${TORCHOPT_OPENMP_MINIMUM}. Install its runtime, or build with TORCHOPT_OPENMP=AUTO.")
  else()
    message(STATUS "torchopt: no OpenMP >= ${TORCHOPT_OPENMP_MINIMUM}, the kernels will run serially")
  endif()
endif()

// SPDX-License-Identifier: Apache-2.0
// The Python functions of the compiled module torchopt._C.kernels.
//
// No header of torch is included and no library of torch is linked, here or in any file beside this
// one: that is what lets one build load under every torch release.

#include <pybind11/pybind11.h>

#include <string>

#include "engine.hpp"
#include "memory.hpp"
#include "quasi_newton.hpp"
#include "torchopt/cpu.hpp"
#ifdef TORCHOPT_HAS_CUDA
#include "torchopt/cuda.hpp"
#endif

#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;

namespace {

// One set of static objects serves one interpreter; torch itself knows no more than one.
void refuse_subinterpreters() {
  if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
    throw py::import_error("torchopt's compiled module works in the main interpreter only, as torch does");
  }
}

int cuda_devices() {
#ifdef TORCHOPT_HAS_CUDA
  return torchopt::cuda_device_count();
#else
  return 0;
#endif
}

#define TORCHOPT_STRINGIFY_(x) #x
#define TORCHOPT_STRINGIFY(x) TORCHOPT_STRINGIFY_(x)

constexpr const char* compiler_id() {
#if defined(__clang__) && defined(__apple_build_version__)
  return "AppleClang";
#elif defined(__clang__)
  return "Clang";
#elif defined(__GNUC__)
  return "GNU";
#elif defined(_MSC_VER)
  return "MSVC";
#else
  return "unknown";
#endif
}

std::string compiler_version() {
#if defined(__clang__)
  return TORCHOPT_STRINGIFY(__clang_major__) "." TORCHOPT_STRINGIFY(
      __clang_minor__) "." TORCHOPT_STRINGIFY(__clang_patchlevel__);
#elif defined(__GNUC__)
  return TORCHOPT_STRINGIFY(__GNUC__) "." TORCHOPT_STRINGIFY(__GNUC_MINOR__) "." TORCHOPT_STRINGIFY(
      __GNUC_PATCHLEVEL__);
#elif defined(_MSC_FULL_VER)
  return TORCHOPT_STRINGIFY(_MSC_FULL_VER);
#else
  return "unknown";
#endif
}

constexpr long cxx_standard() {
  // MSVC leaves __cplusplus at 199711 unless told otherwise, and says the truth in _MSVC_LANG.
#ifdef _MSVC_LANG
  constexpr long macro = _MSVC_LANG;
#else
  constexpr long macro = __cplusplus;
#endif
  return macro / 100 % 100;
}

py::dict build_info() {
  py::dict info;
  info["version"] = TORCHOPT_VERSION;
  info["build_type"] = TORCHOPT_BUILD_TYPE;
  info["compiler_id"] = compiler_id();
  info["compiler_version"] = compiler_version();
  info["cxx_standard"] = cxx_standard();
  info["pybind11_version"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(
      PYBIND11_VERSION_MINOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MICRO);
#ifdef _OPENMP
  info["openmp"] = true;
  info["openmp_version"] = static_cast<long>(_OPENMP);
  // The value of the runtime, not of the compiler: it follows torch.set_num_threads only if the process has one OpenMP
  // runtime, so that it also shows whether loading went right.
  info["openmp_max_threads"] = omp_get_max_threads();
#else
  info["openmp"] = false;
  info["openmp_version"] = py::none();
  info["openmp_max_threads"] = 1;
#endif
  info["instruction_set"] = torchopt::cpu_instruction_set();
#ifdef TORCHOPT_HAS_CUDA
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(kernels, m) {
  refuse_subinterpreters();
  m.doc() = "The compiled part of torchopt. Import it through torchopt._C only.";
  m.def("build_info", &build_info, "How this module was compiled, as a dictionary.");
  m.def("open", [](const py::object& torch, bool exchange) { torchopt::Torch::get().open(torch, exchange); },
        py::arg("torch"), py::arg("exchange") = true, "Take what the engine needs of the torch module.");
  m.def("run", &torchopt::run, "Run a kernel over the leaves of a tree; see engine.hpp.");
  m.def("quasi_newton_difference", &torchopt::quasi_newton_difference, "Remember a step; see quasi_newton.hpp.");
  m.def("quasi_newton_product", &torchopt::quasi_newton_product, "Apply an inverse Hessian of pairs.");
  m.def("quasi_newton_bfgs", &torchopt::quasi_newton_bfgs, "Update and apply an inverse Hessian.");
  m.def("catalogue", &torchopt::catalogue, "The kernels: for each rule and order the sizes of its arguments.");
  m.def("use_instruction_set", &torchopt::use_cpu_instruction_set,
        "Take the kernels of another instruction set; False if there are none here.");
  m.def("kept_memory", &torchopt::kept_memory, "How many bytes of memory are kept for the next steps.");
  m.def("release_memory", &torchopt::release_memory, "Give the memory that is kept back to the system.");
  m.def("cuda_devices", &cuda_devices, "How many CUDA devices the engine can run on.");
}

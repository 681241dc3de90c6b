// SPDX-License-Identifier: Apache-2.0
// The Python face of the compiled module torchopt._C.kernels.
//
// No header of torch is included and no library of torch is linked, here or in any file beside this
// one: that is what lets one build load under every torch release.

#include <pybind11/pybind11.h>

#include <string>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;

namespace {

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
  // Asked of the runtime, not of the compiler: it follows torch.set_num_threads only when the
  // process has one OpenMP runtime, so it also tells whether the loading went right.
  info["openmp_max_threads"] = omp_get_max_threads();
#else
  info["openmp"] = false;
  info["openmp_version"] = py::none();
  info["openmp_max_threads"] = 1;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(kernels, m) {
  m.doc() = "The compiled part of torchopt. Import it through torchopt._C only.";
  m.def("build_info", &build_info, "How this module was compiled, as a dictionary.");
}

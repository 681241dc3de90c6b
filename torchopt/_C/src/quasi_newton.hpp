// SPDX-License-Identifier: Apache-2.0
// The kernels of torchopt/quasi_newton.hpp as functions of Python.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace torchopt {

namespace py = pybind11;

// A column is a sequence of the leaves of a vector, in the order of torchopt/quasi_newton.hpp: NumPy arrays, or tensors on
// the CPU, contiguous and all of float32 or all of float64. Numbers of the samples are arrays; if there is one sample,
// they may be Python numbers.
//
// Each returns whether it ran; if not, it has changed nothing.
// `size` is the number of rows of a ring.
bool quasi_newton_difference(const py::tuple& columns, std::int64_t size, const py::object& place, bool from_zero,
                             const py::object& inner);
bool quasi_newton_product(const py::tuple& columns, const py::object& weights, const py::object& newest,
                          const py::object& gamma, bool guarded);
bool quasi_newton_bfgs(const py::tuple& columns, const py::object& scale, const py::object& rho);

}  // namespace torchopt

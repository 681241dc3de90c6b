// SPDX-License-Identifier: Apache-2.0
#include "quasi_newton.hpp"

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "columns.hpp"
#include "torchopt/quasi_newton.hpp"

namespace torchopt {

namespace {

void require(bool holds) {
  if (!holds) {
    throw std::invalid_argument("arrays have sizes that do not match, or a place is beyond the ring");
  }
}

// The arrays and tensors of a call, whose memory stays in place as long as this lives.
class Arrays {
 public:
  struct Array {
    void* data = nullptr;
    std::int64_t size = 0;
    Storage storage = Storage::float32;
  };

  Arrays() = default;
  Arrays(const Arrays&) = delete;
  Arrays& operator=(const Arrays&) = delete;
  ~Arrays() {
    for (Py_buffer& buffer : buffers_) {
      PyBuffer_Release(&buffer);
    }
  }

  // An array or a tensor of float32 or float64.
  Array read(PyObject* object) {
    if (PyObject_CheckBuffer(object)) {
      const Py_buffer& buffer = hold(object);
      const bool wide = std::strcmp(buffer.format, "d") == 0;
      if (!wide && std::strcmp(buffer.format, "f") != 0) {
        throw Refusal{"an array is not of dtype float32 or float64"};
      }
      return {buffer.buf, buffer.len / buffer.itemsize, wide ? Storage::float64 : Storage::float32};
    }
    View view;
    read_tensor(object, view);
    if (view.device.type != dlpack::cpu || !view.is_contiguous()) {
      throw Refusal{"a tensor is not contiguous, or not on the CPU"};
    }
    return {view.data, view.size, view.storage};
  }

  // Numbers of the samples: an array, or a Python number, for which `one` has room.
  const double* numbers(PyObject* object, std::int64_t count, double& one) {
    if (PyFloat_Check(object)) {
      one = PyFloat_AS_DOUBLE(object);
      require(count == 1);
      return &one;
    }
    const Array array = read(object);
    if (array.storage != Storage::float64) {
      throw Refusal{"an array of numbers is not of dtype float64"};
    }
    require(array.size == count);
    return static_cast<double*>(array.data);
  }

  // The same for integers; `count` becomes their number.
  const std::int64_t* integers(PyObject* object, std::int64_t& count, std::int64_t& one) {
    if (PyLong_Check(object)) {
      one = PyLong_AsLongLong(object);
      count = 1;
      return &one;
    }
    const Py_buffer& buffer = hold(object);
    if (std::strchr("lq", buffer.format[0]) == nullptr || buffer.itemsize != sizeof(std::int64_t)) {
      throw Refusal{"an array of places is not of dtype int64"};
    }
    count = buffer.len / buffer.itemsize;
    return static_cast<const std::int64_t*>(buffer.buf);
  }

 private:
  const Py_buffer& hold(PyObject* object) {
    Py_buffer buffer;
    if (PyObject_GetBuffer(object, &buffer, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0) {
      PyErr_Clear();
      throw Refusal{"an array is not contiguous"};
    }
    buffers_.push_back(buffer);
    return buffers_.back();
  }

  std::vector<Py_buffer> buffers_;
};

// Columns as the kernels take them. `rows[k]` is the number of rows that column k has for each sample: 1 for vectors, the
// size of a ring for pairs, -1 for a square matrix.
template <class T>
struct Problem {
  std::vector<Vectors<T>> vectors;
  Leaves<T> leaves;
  std::int64_t length = 0;  // of the vector of a sample

  Problem(Arrays& arrays, const py::tuple& columns, const std::vector<std::int64_t>& rows, int vector, std::int64_t samples) {
    std::vector<py::object> sequences;
    for (const py::handle& column : columns) {
      sequences.push_back(py::reinterpret_steal<py::object>(PySequence_Fast(column.ptr(), "a column is no sequence")));
      if (!sequences.back()) {
        throw py::error_already_set();
      }
      require(PySequence_Fast_GET_SIZE(sequences.back().ptr()) == PySequence_Fast_GET_SIZE(sequences[0].ptr()));
    }
    require(sequences.size() == rows.size());
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(sequences[0].ptr());
    for (Py_ssize_t leaf = 0; leaf < count; ++leaf) {
      Vectors<T> found{};
      std::int64_t sizes[Vectors<T>::columns] = {};
      for (std::size_t k = 0; k < sequences.size(); ++k) {
        const Arrays::Array array = arrays.read(item(sequences[k].ptr(), leaf));
        if (array.storage != (sizeof(T) == 8 ? Storage::float64 : Storage::float32)) {
          throw Refusal{"leaves have different dtypes"};
        }
        found.column[k] = static_cast<T*>(array.data);
        sizes[k] = array.size;
      }
      found.n = samples > 0 ? sizes[vector] / samples : 0;
      for (std::size_t k = 0; k < sequences.size(); ++k) {
        require(sizes[k] == samples * found.n * (rows[k] < 0 ? found.n : rows[k]));
      }
      length += found.n;
      vectors.push_back(found);
    }
    leaves = {vectors.data(), std::int64_t(vectors.size()), samples};
  }
};

// Runs a function of a number of the type of the first leaf; false where an array is none that kernels can work on.
template <class F>
bool run_typed(const py::tuple& columns, F&& function) {
  try {
    Arrays arrays;
    const py::sequence first = columns[0];
    const bool single = first.size() > 0 && arrays.read(py::object(first[0]).ptr()).storage == Storage::float32;
    single ? function(arrays, float{}) : function(arrays, double{});
    return true;
  } catch (const Refusal&) {
    return false;
  }
}

}  // namespace

bool quasi_newton_difference(const py::tuple& columns, std::int64_t size, const py::object& place, bool from_zero,
                             const py::object& inner) {
  return run_typed(columns, [&](Arrays& arrays, auto type) {
    using T = decltype(type);
    std::int64_t samples = 0, one = 0;
    const std::int64_t* places = arrays.integers(place.ptr(), samples, one);
    for (std::int64_t b = 0; b < samples; ++b) {
      require(places[b] < size);
    }
    const Arrays::Array sums = arrays.read(inner.ptr());
    require(sums.storage == Storage::float64 && sums.size == 4 * samples);
    const Problem<T> problem(arrays, columns, {1, 1, 1, 1, size, size}, 0, samples);
    quasi_newton<T>(current_instruction_set())
        .difference(problem.leaves, size, places, from_zero, static_cast<double*>(sums.data));
  });
}

bool quasi_newton_product(const py::tuple& columns, const py::object& weights, const py::object& newest,
                          const py::object& gamma, bool guarded) {
  return run_typed(columns, [&](Arrays& arrays, auto type) {
    using T = decltype(type);
    Pairs pairs{};
    std::int64_t samples = 0, one = 0;
    double factor = 1;
    pairs.newest = arrays.integers(newest.ptr(), samples, one);
    const Arrays::Array found = arrays.read(weights.ptr());
    pairs.size = samples > 0 ? found.size / samples : 0;
    pairs.weights = arrays.numbers(weights.ptr(), samples * pairs.size, factor);
    pairs.gamma = arrays.numbers(gamma.ptr(), samples, factor);
    for (std::int64_t b = 0; b < samples; ++b) {
      require(pairs.newest[b] >= 0 && pairs.newest[b] < pairs.size);
    }
    const Problem<T> problem(arrays, columns, {1, pairs.size, pairs.size, 1}, 0, samples);
    std::vector<double> scratch(std::size_t(2 * problem.length + pairs.size));
    quasi_newton<T>(current_instruction_set()).product(problem.leaves, pairs, guarded, scratch.data());
  });
}

bool quasi_newton_bfgs(const py::tuple& columns, const py::object& scale, const py::object& rho) {
  return run_typed(columns, [&](Arrays& arrays, auto type) {
    using T = decltype(type);
    const Arrays::Array found = arrays.read(scale.ptr());
    double one = 0;
    const double* scales = arrays.numbers(scale.ptr(), found.size, one);
    const double* weights = arrays.numbers(rho.ptr(), found.size, one);
    const Problem<T> problem(arrays, columns, {-1, 1, 1, 1, 1}, 1, found.size);
    std::vector<double> scratch(std::size_t(problem.length));
    quasi_newton<T>(current_instruction_set()).bfgs(problem.leaves, scales, weights, scratch.data());
  });
}

}  // namespace torchopt

// SPDX-License-Identifier: Apache-2.0
// Reads the tensors of Python objects, and makes new ones.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dlpack.hpp"
#include "torchopt/catalogue.hpp"

namespace torchopt {

namespace py = pybind11;

// Where a tensor lies and what it is. Valid as long as the tensor is.
struct View {
  void* data = nullptr;
  std::int64_t size = 0;
  int ndim = 0;
  const std::int64_t* shape = nullptr;
  const std::int64_t* strides = nullptr;
  Storage storage = Storage::float32;
  dlpack::Device device{dlpack::cpu, 0};
  std::shared_ptr<std::vector<std::int64_t>> owned;  // shape and strides, where the tensor does not lend its own

  // The first byte of the tensor, and the one behind its last.
  std::pair<char*, char*> extent() const;
  bool same_shape(const View& other) const;
  bool is_contiguous() const;
  // Whether the elements fill their memory without gaps or overlap, in whatever order.
  bool is_dense() const;
  // Whether element i of one lies where element i of the other lies, for all i; both being dense.
  bool same_layout(const View& other) const;
};

// The functions of torch that the engine calls, looked up once by `open`.
class Torch {
 public:
  static Torch& get();

  // Takes what is needed of the torch module. `use_exchange` false does without the exchange interface, as on a torch
  // that has none.
  void open(const py::object& torch, bool use_exchange);
  bool has_exchange() const { return exchange_ != nullptr; }

  // Reads a tensor. Returns a reason if the engine cannot work on it, otherwise nullptr.
  const char* read(PyObject* object, View& view);

  // An uninitialized tensor like another one, of the same layout if that is dense.
  py::object empty_like(PyObject* object, Storage storage) const;
  // The same values in the layout of another tensor of the same shape.
  py::object relayout(PyObject* object, PyObject* like, Storage storage) const;
  // An uninitialized vector of float64 on the device of a tensor.
  py::object empty_doubles(std::int64_t size, PyObject* like) const;
  // Uninitialized contiguous tensors on the CPU, cut from one block of memory. Needs the exchange interface.
  // Takes the views of tensors that they should be like, and leaves their own.
  std::vector<py::object> cut_block(std::vector<View>& views) const;

  void* current_stream(dlpack::Device device) const;

  bool in_inference_mode() const { return inference_mode_().ptr() == Py_True; }
  // Whether a tensor was made in inference mode, and can be written to only there.
  bool is_inference(PyObject* object) const;
  // Tells autograd that the values of these tensors change.
  void count_change(const py::list& tensors) const { increment_version_(tensors); }

 private:
  const char* read_by_attributes(PyObject* object, View& view);

  py::object tensor_type_, parameter_type_, empty_like_, new_empty_, is_neg_, strided_, dtypes_[storage_count],
      current_stream_, is_inference_, inference_mode_, increment_version_;
  const dlpack::Exchange* exchange_ = nullptr;
};

}  // namespace torchopt

// SPDX-License-Identifier: Apache-2.0
// The columns of a call: tensors of Python that are read, checked, and brought to one layout for each leaf.
#pragma once

#include <stdexcept>
#include <vector>

#include "tensors.hpp"

namespace torchopt {

// Why the engine cannot run a call. Nothing was changed.
struct Refusal {
  const char* reason;
};

inline PyObject* item(PyObject* fast_sequence, Py_ssize_t i) { return PySequence_Fast_GET_ITEM(fast_sequence, i); }

// A tensor of the tree in one column; no object means zeros, or not wanted.
struct Cell {
  PyObject* object = nullptr;
  View view;
};

void read_tensor(PyObject* object, View& view);

class Columns {
 public:
  // own_inputs: how many of the inputs are those of the rule itself, not of a derivative.
  Columns(const Shape& shape, int own_inputs) : shape_(shape), own_inputs_(own_inputs) {}

  // The next column, inputs before outputs: a sequence of tensors, or None.
  void add(const py::handle& spec) { columns_.push_back(sequence(spec)); }
  // The next column will be made.
  void add_none() { columns_.emplace_back(); }
  // As a fast sequence with an entry for each leaf; no object for None.
  py::object sequence(const py::handle& spec);

  // Reads all tensors, after the last column was added.
  void read();
  // Requires that no tensor of a column is missing.
  void require_all();

  Py_ssize_t leaf_count() const { return leaf_count_; }
  int own_inputs() const { return own_inputs_; }
  const Shape& shape() const { return shape_; }
  const py::object& column(int k) const { return columns_[std::size_t(k)]; }
  Cell& cell(Py_ssize_t leaf, int k) { return cells_[std::size_t(leaf) * (shape_.inputs + shape_.outputs) + k]; }

  // Any tensor of a leaf, to know its shape. A leaf without any is one of zeros, of which zeros come out: it counts as
  // empty, and None stands for what would come out.
  Cell& first(Py_ssize_t leaf);
  dlpack::Device device();

 private:
  const Cell* find_input(Py_ssize_t leaf, int k, PyObject* object);
  void check_shapes_and_device(Py_ssize_t leaf);
  void check_overlap();
  void settle_layout(Py_ssize_t leaf);
  PyObject* keep(PyObject* object, PyObject* like, Storage storage);

  Shape shape_;
  int own_inputs_;
  Py_ssize_t leaf_count_ = -1;
  std::vector<py::object> columns_, kept_;
  std::vector<Cell> cells_;
};

}  // namespace torchopt

// SPDX-License-Identifier: Apache-2.0
#include "outputs.hpp"

#include <utility>

namespace torchopt {

namespace {

// Leaves up to this size are cut from one block of memory per column: so many pieces of their own would cost more than
// the step. A block lives as long as any leaf of it, which does not matter while leaves are small.
constexpr std::int64_t largest_piece = 32768;  // bytes

Storage storage_of_output(Columns& columns, Py_ssize_t leaf, int like) {
  if (like != widest && columns.cell(leaf, like).object) {
    return columns.cell(leaf, like).view.storage;
  }
  bool any = false;
  Storage result = Storage::float32;
  for (int k = 0; k < columns.own_inputs(); ++k) {
    const Cell& c = columns.cell(leaf, k);
    if (!c.object) {
      continue;
    }
    const Storage s = c.view.storage;
    // As torch promotes: two different types of 16 bits make float32.
    if (!any || s == Storage::float64) {
      result = s;
    } else if (result != s && result != Storage::float64) {
      result = Storage::float32;
    }
    any = true;
  }
  return any ? result : columns.first(leaf).view.storage;
}

}  // namespace

py::list make_column(Columns& columns, int output, int like) {
  Torch& torch = Torch::get();
  const int column = columns.shape().inputs + output;
  std::vector<View> small;
  std::vector<Py_ssize_t> small_leaves;
  py::list list(columns.leaf_count());
  for (Py_ssize_t leaf = 0; leaf < columns.leaf_count(); ++leaf) {
    const Cell& model = columns.first(leaf);
    Cell& made = columns.cell(leaf, column);
    if (!model.object) {
      list[leaf] = py::none();
      continue;
    }
    made.view = model.view;
    made.view.storage = storage_of_output(columns, leaf, like);
    if (!torch.has_exchange() || model.view.device.type != dlpack::cpu || !model.view.is_contiguous()) {
      list[leaf] = torch.empty_like(model.object, made.view.storage);
      made.object = PyList_GET_ITEM(list.ptr(), leaf);
      read_tensor(made.object, made.view);
    } else if (model.view.size * size_of(made.view.storage) > largest_piece) {
      std::vector<View> alone{made.view};
      list[leaf] = torch.cut_block(alone)[0];
      made.view = alone[0];
    } else {
      small.push_back(made.view);
      small_leaves.push_back(leaf);
    }
  }
  if (!small.empty()) {
    std::vector<py::object> pieces = torch.cut_block(small);
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      columns.cell(small_leaves[i], column).view = small[i];
      list[small_leaves[i]] = std::move(pieces[i]);
    }
  }
  for (Py_ssize_t leaf = 0; leaf < columns.leaf_count(); ++leaf) {
    PyObject* object = PyList_GET_ITEM(list.ptr(), leaf);
    columns.cell(leaf, column).object = object == Py_None ? nullptr : object;
  }
  return list;
}

}  // namespace torchopt

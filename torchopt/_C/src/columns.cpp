// SPDX-License-Identifier: Apache-2.0
#include "columns.hpp"

#include <algorithm>

namespace torchopt {

void read_tensor(PyObject* object, View& view) {
  if (const char* reason = Torch::get().read(object, view)) {
    throw Refusal{reason};
  }
}

py::object Columns::sequence(const py::handle& spec) {
  if (spec.is_none()) {
    return {};
  }
  PyObject* fast = PySequence_Fast(spec.ptr(), "a column is no sequence");
  if (fast == nullptr) {
    throw py::error_already_set();
  }
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(fast);
  auto result = py::reinterpret_steal<py::object>(fast);
  if (leaf_count_ >= 0 && n != leaf_count_) {
    throw std::invalid_argument("columns differ in length");
  }
  leaf_count_ = n;
  return result;
}

void Columns::read() {
  const auto width = std::size_t(shape_.inputs + shape_.outputs);
  cells_.resize(width * leaf_count_);
  for (std::size_t k = 0; k < width; ++k) {
    if (!columns_[k]) {
      continue;
    }
    for (Py_ssize_t leaf = 0; leaf < leaf_count_; ++leaf) {
      Cell& c = cell(leaf, int(k));
      PyObject* object = item(columns_[k].ptr(), leaf);
      if (object == Py_None) {
        continue;
      }
      if (const Cell* same = find_input(leaf, int(k), object)) {
        c = *same;
        continue;
      }
      read_tensor(object, c.view);
      c.object = object;
    }
  }
  for (Py_ssize_t leaf = 0; leaf < leaf_count_; ++leaf) {
    check_shapes_and_device(leaf);
  }
  check_overlap();
  for (Py_ssize_t leaf = 0; leaf < leaf_count_; ++leaf) {
    settle_layout(leaf);
  }
}

void Columns::require_all() {
  for (Py_ssize_t leaf = 0; leaf < leaf_count_; ++leaf) {
    for (int k = 0; k < shape_.inputs + shape_.outputs; ++k) {
      if (columns_[std::size_t(k)] && !cell(leaf, k).object) {
        throw Refusal{"a tensor is missing"};
      }
    }
  }
}

// The input of a leaf that is this very object, which an output in place often is.
const Cell* Columns::find_input(Py_ssize_t leaf, int k, PyObject* object) {
  for (int i = 0; k >= shape_.inputs && i < shape_.inputs; ++i) {
    if (cell(leaf, i).object == object) {
      return &cell(leaf, i);
    }
  }
  return nullptr;
}

Cell& Columns::first(Py_ssize_t leaf) {
  int k = 0;
  while (k + 1 < shape_.inputs + shape_.outputs && !cell(leaf, k).object) {
    ++k;
  }
  return cell(leaf, k);
}

dlpack::Device Columns::device() {
  for (Py_ssize_t leaf = 0; leaf < leaf_count_; ++leaf) {
    if (first(leaf).object) {
      return first(leaf).view.device;
    }
  }
  return {dlpack::cpu, 0};
}

void Columns::check_shapes_and_device(Py_ssize_t leaf) {
  const View& like = first(leaf).view;
  const dlpack::Device where = device();
  for (int k = 0; k < shape_.inputs + shape_.outputs; ++k) {
    const Cell& c = cell(leaf, k);
    if (!c.object) {
      continue;
    }
    if (!c.view.same_shape(like)) {
      throw Refusal{"tensors of one leaf differ in shape"};
    }
    if (c.view.device.type != where.type || c.view.device.id != where.id) {
      throw Refusal{"tensors lie on several devices"};
    }
  }
}

// What is written to must not share memory with anything else: threads would race for it, and what is read would depend
// on the order. A tensor may be read and written at the same place of the same leaf, though.
void Columns::check_overlap() {
  struct Range {
    char *begin, *end;
    int times_written;
  };
  std::vector<Range> ranges;
  bool any_written = false;
  for (Py_ssize_t leaf = 0; leaf < leaf_count_; ++leaf) {
    const auto own = Py_ssize_t(ranges.size());
    for (int k = 0; k < shape_.inputs + shape_.outputs; ++k) {
      const Cell& c = cell(leaf, k);
      if (!c.object || c.view.size == 0) {
        continue;
      }
      const int written = k >= shape_.inputs;
      const auto extent = c.view.extent();
      const auto same = std::find_if(ranges.begin() + own, ranges.end(), [&](const Range& r) {
        return r.begin == extent.first && r.end == extent.second;
      });
      if (same == ranges.end()) {
        ranges.push_back({extent.first, extent.second, written});
      } else {
        same->times_written += written;
      }
      any_written = any_written || written;
    }
  }
  if (!any_written) {
    return;
  }
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  char *read_until = nullptr, *written_until = nullptr;
  for (const Range& r : ranges) {
    if (r.times_written > 1 || written_until > r.begin || (r.times_written > 0 && read_until > r.begin)) {
      throw Refusal{"a tensor that is written to shares memory with another one"};
    }
    read_until = std::max(read_until, r.end);
    written_until = r.times_written > 0 ? std::max(written_until, r.end) : written_until;
  }
}

// Brings all tensors of a leaf to one layout. What is written to sets it; inputs that differ are copied.
void Columns::settle_layout(Py_ssize_t leaf) {
  const int width = shape_.inputs + shape_.outputs;
  bool uniform = true;
  for (int k = 0; k < width && uniform; ++k) {
    uniform = !cell(leaf, k).object || cell(leaf, k).view.is_contiguous();
  }
  if (uniform) {
    return;
  }
  const Cell* model = nullptr;
  for (int k = shape_.inputs; k < width; ++k) {
    const Cell& c = cell(leaf, k);
    if (!c.object) {
      continue;
    }
    if (!c.view.is_dense() || (model && !c.view.same_layout(model->view))) {
      throw Refusal{"tensors that are written to are expanded, sliced, or laid out in different ways"};
    }
    model = &c;
  }
  // Otherwise the parameter does, or a moment: gradients come in any layout.
  for (int k = own_inputs_ - 1; k >= 0 && !model; --k) {
    if (cell(leaf, k).object && cell(leaf, k).view.is_dense()) {
      model = &cell(leaf, k);
    }
  }
  Cell contiguous;
  if (!model) {
    // No dense tensor at all; a copy of the first one is contiguous, and serves as the model.
    const Cell& c = first(leaf);
    contiguous.object = keep(c.object, nullptr, c.view.storage);
    read_tensor(contiguous.object, contiguous.view);
    model = &contiguous;
  }
  for (int k = 0; k < shape_.inputs; ++k) {
    Cell& c = cell(leaf, k);
    if (c.object && !(c.view.is_dense() && c.view.same_layout(model->view))) {
      c.object = keep(c.object, model->object, c.view.storage);
      read_tensor(c.object, c.view);
    }
  }
}

PyObject* Columns::keep(PyObject* object, PyObject* like, Storage storage) {
  kept_.push_back(like ? Torch::get().relayout(object, like, storage)
                       : py::object(py::handle(object).attr("detach")().attr("clone")().attr("contiguous")()));
  return kept_.back().ptr();
}

}  // namespace torchopt

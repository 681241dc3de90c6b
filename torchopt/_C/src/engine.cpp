// SPDX-License-Identifier: Apache-2.0
#include "engine.hpp"

#include <algorithm>
#include <stdexcept>
#include <tuple>

#include "torchopt/cpu.hpp"
#ifdef TORCHOPT_HAS_CUDA
#include "torchopt/cuda.hpp"
#endif

namespace torchopt {

namespace {

constexpr const char* rule_names[rule_count] = {
#define TORCHOPT_NAME(name, rule) name,
    TORCHOPT_RULES(TORCHOPT_NAME)
#undef TORCHOPT_NAME
};

// Leaves up to this size are cut from one block of memory per column: so many pieces of their own would cost more than
// the step. A block lives as long as any leaf of it, which does not matter while leaves are small.
constexpr std::int64_t largest_piece = 32768;  // bytes

struct Refusal {
  const char* reason;
};

PyObject* item(PyObject* fast_sequence, Py_ssize_t i) { return PySequence_Fast_GET_ITEM(fast_sequence, i); }

// A tensor of the tree in one column; no object means zeros, or not wanted.
struct Cell {
  PyObject* object = nullptr;
  View view;
};

class Call {
 public:
  Call(int rule, Order order, const py::sequence& inputs, const py::sequence& outputs)
      : torch_(Torch::get()),
        rule_(rule),
        order_(order),
        shape_(cpu_kernel(rule, order).shape),
        own_inputs_(cpu_kernel(rule, Order::forward).shape.inputs) {
    if (int(inputs.size()) != shape_.inputs || int(outputs.size()) != shape_.outputs) {
      throw std::invalid_argument("the kernel has another number of inputs or outputs");
    }
    for (int i = 0; i < shape_.inputs; ++i) {
      columns_.push_back(column(inputs[i]));
    }
    for (int o = 0; o < shape_.outputs; ++o) {
      const py::object spec = outputs[o];
      const bool is_number = PyLong_Check(spec.ptr());
      make_like_.push_back(is_number ? spec.cast<int>() : not_made);
      columns_.push_back(is_number ? py::object() : column(spec));
    }
  }

  void read() {
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
        if (const char* reason = torch_.read(object, c.view)) {
          throw Refusal{reason};
        }
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

  void make_outputs() {
    made_.resize(shape_.outputs);
    for (int o = 0; o < shape_.outputs; ++o) {
      if (make_like_[o] != not_made) {
        make_column(o);
      }
    }
  }

  py::object run(const py::object& coefs, const py::object& rows, int threads) {
    std::vector<Array> arrays;
    std::vector<Leaf> leaves;
    arrays.reserve(cells_.size());
    leaves.reserve(std::size_t(leaf_count_));
    const py::object row_of = rows.is_none() ? py::object() : column(rows);
    std::int32_t row_count = 1;
    for (Py_ssize_t leaf = 0; leaf < leaf_count_; ++leaf) {
      bool wide = false;
      for (int k = 0; k < shape_.inputs + shape_.outputs; ++k) {
        const Cell& c = cell(leaf, k);
        arrays.push_back({c.object ? c.view.data : nullptr, c.view.storage});
        wide = wide || (c.object && c.view.storage == Storage::float64);
      }
      const std::int32_t row = row_of ? py::handle(item(row_of.ptr(), leaf)).cast<std::int32_t>() : 0;
      row_count = std::max(row_count, row + 1);
      if (row < 0) {
        throw std::invalid_argument("a row is negative");
      }
      leaves.push_back({first(leaf).view.size, row, wide});
    }
    const auto sums = std::int64_t(row_count) * shape_.reduced;
    Job job{rule_,           order_, shape_, arrays.data(), leaves.data(), int(leaf_count_),
            nullptr, row_count, nullptr};
    py::object reduced = py::none();
    if (leaf_count_ > 0 && device().type == dlpack::cuda) {
      reduced = run_on_device(job, coefs, sums);
    } else {
      const std::vector<double> numbers = host_coefs(coefs, row_count);
      std::vector<double> totals(std::size_t(sums) + 1);
      job.coefs = numbers.data();
      job.reduced = totals.data();
      {
        py::gil_scoped_release release;
        run_on_cpu(job, threads);
      }
      if (sums > 0) {
        py::list list(sums);
        for (std::int64_t i = 0; i < sums; ++i) {
          list[std::size_t(i)] = totals[std::size_t(i)];
        }
        reduced = std::move(list);
      }
    }
    py::tuple results(shape_.outputs);
    for (int o = 0; o < shape_.outputs; ++o) {
      py::object& made = made_[o];
      results[o] = made ? made : columns_[shape_.inputs + o] ? columns_[shape_.inputs + o] : py::none();
    }
    return py::make_tuple(results, reduced);
  }

 private:
  static constexpr int not_made = -2, widest = -1;

  py::object column(const py::handle& spec) {
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

  Cell& cell(Py_ssize_t leaf, int k) { return cells_[std::size_t(leaf) * (shape_.inputs + shape_.outputs) + k]; }

  // The input of a leaf that is this very object, which an output in place often is.
  const Cell* find_input(Py_ssize_t leaf, int k, PyObject* object) {
    for (int i = 0; k >= shape_.inputs && i < shape_.inputs; ++i) {
      if (cell(leaf, i).object == object) {
        return &cell(leaf, i);
      }
    }
    return nullptr;
  }

  // Any tensor of a leaf, to know its shape. A leaf without any is one of zeros, of which zeros come out: it counts as
  // empty, and None stands for what would come out.
  Cell& first(Py_ssize_t leaf) {
    int k = 0;
    while (k + 1 < shape_.inputs + shape_.outputs && !cell(leaf, k).object) {
      ++k;
    }
    return cell(leaf, k);
  }

  dlpack::Device device() {
    for (Py_ssize_t leaf = 0; leaf < leaf_count_; ++leaf) {
      if (first(leaf).object) {
        return first(leaf).view.device;
      }
    }
    return {dlpack::cpu, 0};
  }

  void check_shapes_and_device(Py_ssize_t leaf) {
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
  void check_overlap() {
    struct Range {
      char *begin, *end;
      Py_ssize_t leaf;
      bool written;
    };
    std::vector<Range> ranges;
    bool any_written = false;
    for (Py_ssize_t leaf = 0; leaf < leaf_count_; ++leaf) {
      for (int k = 0; k < shape_.inputs + shape_.outputs; ++k) {
        const Cell& c = cell(leaf, k);
        if (c.object && c.view.size > 0) {
          const auto [first_byte, last_byte] = c.view.extent();
          ranges.push_back({first_byte, last_byte, leaf, k >= shape_.inputs});
          any_written = any_written || k >= shape_.inputs;
        }
      }
    }
    if (!any_written) {
      return;
    }
    std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
      return std::tie(a.begin, a.end, a.leaf) < std::tie(b.begin, b.end, b.leaf);
    });
    char *read_until = nullptr, *written_until = nullptr;
    for (std::size_t i = 0; i < ranges.size();) {
      Range r = ranges[i];
      int times_written = 0;
      for (; i < ranges.size() && ranges[i].begin == r.begin && ranges[i].end == r.end && ranges[i].leaf == r.leaf;
           ++i) {
        times_written += ranges[i].written;
      }
      if (times_written > 1 || written_until > r.begin || (times_written > 0 && read_until > r.begin)) {
        throw Refusal{"a tensor that is written to shares memory with another one"};
      }
      read_until = std::max(read_until, r.end);
      written_until = times_written > 0 ? std::max(written_until, r.end) : written_until;
    }
  }

  // Brings all tensors of a leaf to one layout. What is written to sets it; inputs that differ are copied.
  void settle_layout(Py_ssize_t leaf) {
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
      read_again(contiguous);
      model = &contiguous;
    }
    for (int k = 0; k < shape_.inputs; ++k) {
      Cell& c = cell(leaf, k);
      if (c.object && !(c.view.is_dense() && c.view.same_layout(model->view))) {
        c.object = keep(c.object, model->object, c.view.storage);
        read_again(c);
      }
    }
  }

  PyObject* keep(PyObject* object, PyObject* like, Storage storage) {
    kept_.push_back(like ? torch_.relayout(object, like, storage)
                         : py::object(py::handle(object).attr("detach")().attr("clone")().attr("contiguous")()));
    return kept_.back().ptr();
  }

  void read_again(Cell& c) {
    if (const char* reason = torch_.read(c.object, c.view)) {
      throw Refusal{reason};
    }
  }

  Storage storage_of_output(Py_ssize_t leaf, int like) {
    if (like != widest && cell(leaf, like).object) {
      return cell(leaf, like).view.storage;
    }
    bool any = false;
    Storage result = Storage::float32;
    for (int k = 0; k < own_inputs_; ++k) {
      const Cell& c = cell(leaf, k);
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
    return any ? result : first(leaf).view.storage;
  }

  void make_column(int o) {
    const int like = make_like_[o];
    std::vector<View> small;
    std::vector<Py_ssize_t> small_leaves;
    py::list list(leaf_count_);
    for (Py_ssize_t leaf = 0; leaf < leaf_count_; ++leaf) {
      const Cell& model = first(leaf);
      Cell& made = cell(leaf, shape_.inputs + o);
      if (!model.object) {
        list[leaf] = py::none();
        continue;
      }
      made.view = model.view;
      made.view.storage = storage_of_output(leaf, like);
      if (!torch_.has_exchange() || model.view.device.type != dlpack::cpu || !model.view.is_contiguous()) {
        list[leaf] = torch_.empty_like(model.object, made.view.storage);
        made.object = PyList_GET_ITEM(list.ptr(), leaf);
        read_again(made);
      } else if (model.view.size * size_of(made.view.storage) > largest_piece) {
        std::vector<View> alone{made.view};
        list[leaf] = torch_.cut_block(alone)[0];
        made.view = alone[0];
      } else {
        small.push_back(made.view);
        small_leaves.push_back(leaf);
      }
    }
    if (!small.empty()) {
      std::vector<py::object> pieces = torch_.cut_block(small);
      for (std::size_t i = 0; i < pieces.size(); ++i) {
        cell(small_leaves[i], shape_.inputs + o).view = small[i];
        list[small_leaves[i]] = std::move(pieces[i]);
      }
    }
    for (Py_ssize_t leaf = 0; leaf < leaf_count_; ++leaf) {
      PyObject* object = PyList_GET_ITEM(list.ptr(), leaf);
      cell(leaf, shape_.inputs + o).object = object == Py_None ? nullptr : object;
    }
    made_[o] = std::move(list);
  }

  std::vector<double> host_coefs(const py::object& coefs, std::int32_t row_count) {
    std::vector<double> numbers;
    const auto wanted = std::size_t(row_count) * shape_.coefs;
    if (PyTuple_Check(coefs.ptr()) || PyList_Check(coefs.ptr())) {
      const Py_ssize_t n = PySequence_Fast_GET_SIZE(coefs.ptr());
      numbers.reserve(std::size_t(n));
      for (Py_ssize_t i = 0; i < n; ++i) {
        const double x = PyFloat_AsDouble(item(coefs.ptr(), i));
        if (x == -1.0 && PyErr_Occurred()) {
          throw py::error_already_set();
        }
        numbers.push_back(x);
      }
    } else {
      const View view = coef_view(coefs);
      if (view.device.type != dlpack::cpu) {
        throw Refusal{"coefficients lie on another device than the leaves"};
      }
      const double* data = static_cast<const double*>(view.data);
      numbers.assign(data, data + view.size);
    }
    if (numbers.size() != wanted) {
      throw std::invalid_argument("the kernel has another number of coefficients");
    }
    return numbers;
  }

  View coef_view(const py::object& coefs) {
    View view;
    if (const char* reason = torch_.read(coefs.ptr(), view)) {
      throw Refusal{reason};
    }
    if (view.storage != Storage::float64 || !view.is_contiguous()) {
      throw std::invalid_argument("coefficients must be contiguous and of dtype float64");
    }
    return view;
  }

  py::object run_on_device([[maybe_unused]] Job& job, [[maybe_unused]] const py::object& coefs,
                           [[maybe_unused]] std::int64_t sums) {
#ifdef TORCHOPT_HAS_CUDA
    const dlpack::Device where = device();
    std::vector<double> numbers;
    const double* device_coefs = nullptr;
    if (PyTuple_Check(coefs.ptr()) || PyList_Check(coefs.ptr())) {
      numbers = host_coefs(coefs, job.row_count);
      job.coefs = numbers.data();
    } else {
      const View view = coef_view(coefs);
      if (view.device.type != where.type || view.device.id != where.id) {
        throw Refusal{"coefficients lie on another device than the leaves"};
      }
      if (view.size != std::int64_t(job.row_count) * shape_.coefs) {
        throw std::invalid_argument("the kernel has another number of coefficients");
      }
      device_coefs = static_cast<const double*>(view.data);
    }
    PyObject* like = first(0).object;
    py::object reduced = py::none(), workspace;
    double *reduced_data = nullptr, *workspace_data = nullptr;
    if (sums > 0) {
      reduced = torch_.empty_doubles(sums, like);
      reduced_data = static_cast<double*>(coef_view(reduced).data);
    }
    if (const std::size_t n = cuda_workspace(job)) {
      workspace = torch_.empty_doubles(std::int64_t(n), like);
      workspace_data = static_cast<double*>(coef_view(workspace).data);
    }
    void* stream = torch_.current_stream(where);
    const char* failure = nullptr;
    {
      py::gil_scoped_release release;
      failure = run_on_cuda(job, where.id, stream, device_coefs, reduced_data, workspace_data);
    }
    if (failure) {
      throw std::runtime_error(failure);
    }
    return reduced;
#else
    throw Refusal{"the tensors are on CUDA, and this build of torchopt has no CUDA kernels"};
#endif
  }

  Torch& torch_;
  int rule_;
  Order order_;
  Shape shape_;
  int own_inputs_;
  Py_ssize_t leaf_count_ = -1;
  std::vector<py::object> columns_, made_, kept_;
  std::vector<int> make_like_;
  std::vector<Cell> cells_;
};

}  // namespace

py::object run(int rule, int order, const py::sequence& inputs, const py::sequence& outputs, const py::object& coefs,
               const py::object& rows, int threads) {
  if (rule < 0 || rule >= rule_count || order < 0 || order >= order_count) {
    throw std::invalid_argument("there is no such kernel");
  }
  try {
    Call call(rule, Order(order), inputs, outputs);
    call.read();
    call.make_outputs();
    return call.run(coefs, rows, threads);
  } catch (const Refusal& refusal) {
    return py::str(refusal.reason);
  }
}

py::dict catalogue() {
  py::dict rules;
  for (int rule = 0; rule < rule_count; ++rule) {
    py::list orders;
    for (int order = 0; order < order_count; ++order) {
      const Shape s = cpu_kernel(rule, Order(order)).shape;
      orders.append(py::make_tuple(s.inputs, s.outputs, s.coefs, s.reduced));
    }
    rules[rule_names[rule]] = orders;
  }
  return rules;
}

}  // namespace torchopt

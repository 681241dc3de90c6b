// SPDX-License-Identifier: Apache-2.0
#include "engine.hpp"

#include <algorithm>
#include <stdexcept>

#include "columns.hpp"
#include "outputs.hpp"
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

class Call {
 public:
  Call(int rule, Order order, const py::sequence& inputs, const py::sequence& outputs, bool in_place)
      : rule_(rule),
        order_(order),
        in_place_(in_place),
        shape_(cpu_kernel(rule, order).shape),
        columns_(shape_, cpu_kernel(rule, Order::forward).shape.inputs),
        made_(std::size_t(shape_.outputs)) {
    if (int(inputs.size()) != shape_.inputs || int(outputs.size()) != shape_.outputs) {
      throw std::invalid_argument("the kernel has another number of inputs or outputs");
    }
    if (in_place_) {
      check_lists(inputs);
    }
    for (int i = 0; i < shape_.inputs; ++i) {
      columns_.add(inputs[i]);
    }
    std::vector<int> like(std::size_t(shape_.outputs), not_made);
    for (int o = 0; o < shape_.outputs; ++o) {
      const py::object spec = outputs[o];
      if (PyLong_Check(spec.ptr())) {
        like[o] = spec.cast<int>();
        columns_.add_none();
      } else {
        columns_.add(spec);
      }
    }
    columns_.read();
    if (in_place_) {
      columns_.require_all();
    }
    for (int o = 0; o < shape_.outputs; ++o) {
      if (like[o] != not_made) {
        made_[o] = make_column(columns_, o, like[o]);
      }
    }
  }

  py::object run(const py::object& coefs, const py::object& rows, int threads) {
    const Py_ssize_t n = columns_.leaf_count();
    const int width = shape_.inputs + shape_.outputs;
    std::vector<Array> arrays;
    std::vector<Leaf> leaves;
    arrays.reserve(std::size_t(n) * width);
    leaves.reserve(std::size_t(n));
    const py::object row_of = rows.is_none() ? py::object() : columns_.sequence(rows);
    std::int32_t row_count = 1;
    for (Py_ssize_t leaf = 0; leaf < n; ++leaf) {
      bool wide = false;
      for (int k = 0; k < width; ++k) {
        const Cell& c = columns_.cell(leaf, k);
        arrays.push_back({c.object ? c.view.data : nullptr, c.view.storage});
        wide = wide || (c.object && c.view.storage == Storage::float64);
      }
      const std::int32_t row = row_of ? py::handle(item(row_of.ptr(), leaf)).cast<std::int32_t>() : 0;
      row_count = std::max(row_count, row + 1);
      if (row < 0) {
        throw std::invalid_argument("a row is negative");
      }
      leaves.push_back({columns_.first(leaf).view.size, row, wide});
    }
    const auto sums = std::int64_t(row_count) * shape_.reduced;
    Job job{rule_,           order_, shape_, arrays.data(), leaves.data(), int(n),
            nullptr, row_count, nullptr};
    py::object reduced = py::none();
    if (in_place_) {
      announce_changes();
    }
    if (n > 0 && columns_.device().type == dlpack::cuda) {
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
      results[o] = made ? made : columns_.column(shape_.inputs + o) ? columns_.column(shape_.inputs + o) : py::none();
    }
    return py::make_tuple(results, reduced);
  }

 private:
  static constexpr int not_made = -2;

  // Whoever takes a step in place need not check that moments have the structure of the gradients.
  static void check_lists(const py::sequence& inputs) {
    Py_ssize_t n = -1;
    for (const py::handle column : inputs) {
      if (column.is_none()) {
        continue;
      }
      if (!PyList_CheckExact(column.ptr()) || (n >= 0 && PyList_GET_SIZE(column.ptr()) != n)) {
        throw Refusal{"columns are no lists of one length"};
      }
      n = PyList_GET_SIZE(column.ptr());
    }
  }

  // Refuses what cannot be written to, before the kernel writes.
  void announce_changes() {
    const bool all_writable = torch_.in_inference_mode();
    py::list changed;
    for (int o = 0; o < shape_.outputs; ++o) {
      for (Py_ssize_t leaf = 0; leaf < columns_.leaf_count() && !made_[o]; ++leaf) {
        PyObject* object = columns_.cell(leaf, shape_.inputs + o).object;
        if (object && !all_writable && torch_.is_inference(object)) {
          throw Refusal{"inference tensors cannot be written to"};
        }
        if (object) {
          changed.append(py::handle(object));
        }
      }
    }
    torch_.count_change(changed);
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
    read_tensor(coefs.ptr(), view);
    if (view.storage != Storage::float64 || !view.is_contiguous()) {
      throw std::invalid_argument("coefficients must be contiguous and of dtype float64");
    }
    return view;
  }

  py::object run_on_device([[maybe_unused]] Job& job, [[maybe_unused]] const py::object& coefs,
                           [[maybe_unused]] std::int64_t sums) {
#ifdef TORCHOPT_HAS_CUDA
    const dlpack::Device where = columns_.device();
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
    PyObject* like = columns_.first(0).object;
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

  Torch& torch_ = Torch::get();
  int rule_;
  Order order_;
  bool in_place_;
  Shape shape_;
  Columns columns_;
  std::vector<py::object> made_;
};

}  // namespace

py::object run(int rule, int order, const py::sequence& inputs, const py::sequence& outputs, const py::object& coefs,
               const py::object& rows, int threads, bool in_place) {
  if (rule < 0 || rule >= rule_count || order < 0 || order >= order_count) {
    throw std::invalid_argument("there is no such kernel");
  }
  try {
    return Call(rule, Order(order), inputs, outputs, in_place).run(coefs, rows, threads);
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

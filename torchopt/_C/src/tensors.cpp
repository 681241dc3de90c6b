// SPDX-License-Identifier: Apache-2.0
#include "tensors.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "memory.hpp"

namespace torchopt {

namespace {

constexpr const char* no_storage =
    "a tensor has no memory of its own to read (it is fake, meta, sparse, or wrapped by a transform)";
constexpr const char* other_dtype = "a tensor is not of dtype float32, float64, bfloat16 or float16";
constexpr const char* other_device = "a tensor is neither on the CPU nor on a CUDA device";
constexpr const char* other_type = "a tensor is of a subclass of torch.Tensor";
constexpr const char* negative_view = "a tensor is a lazily negated view";

bool storage_of(dlpack::DataType dtype, Storage& storage) {
  if (dtype.lanes != 1) {
    return false;
  }
  if (dtype.code == dlpack::floating && dtype.bits == 32) {
    storage = Storage::float32;
  } else if (dtype.code == dlpack::floating && dtype.bits == 64) {
    storage = Storage::float64;
  } else if (dtype.code == dlpack::floating && dtype.bits == 16) {
    storage = Storage::float16;
  } else if (dtype.code == dlpack::brain_floating && dtype.bits == 16) {
    storage = Storage::bfloat16;
  } else {
    return false;
  }
  return true;
}

dlpack::DataType dtype_of(Storage storage) {
  return {storage == Storage::bfloat16 ? dlpack::brain_floating : dlpack::floating,
          std::uint8_t(8 * size_of(storage)), 1};
}

// A block that several tensors share; the last of them gives it back.
struct Block {
  std::atomic<std::int64_t> users;
  std::size_t size;
  void* memory;

  void release(std::int64_t n) {
    if (users.fetch_sub(n) == n) {
      give_memory(memory, size);
      delete this;
    }
  }
};

struct Piece {
  dlpack::ManagedTensor managed;
  Block* block;
  std::vector<std::int64_t> shape_and_strides;

  static void remove(dlpack::ManagedTensor* managed) {
    Piece* piece = static_cast<Piece*>(managed->context);
    piece->block->release(1);
    delete piece;
  }
};

}  // namespace

std::pair<char*, char*> View::extent() const {
  std::int64_t last = 0;
  for (int d = 0; d < ndim; ++d) {
    last += (shape[d] - 1) * strides[d];
  }
  char* begin = static_cast<char*>(data);
  return {begin, begin + (last + 1) * size_of(storage)};
}

bool View::same_shape(const View& other) const {
  return ndim == other.ndim && std::equal(shape, shape + ndim, other.shape);
}

bool View::is_contiguous() const {
  std::int64_t expected = 1;
  for (int d = ndim - 1; d >= 0; --d) {
    if (shape[d] != 1 && strides[d] != expected) {
      return size == 0;
    }
    expected *= shape[d];
  }
  return true;
}

bool View::is_dense() const {
  std::vector<std::pair<std::int64_t, std::int64_t>> dims;  // stride, extent
  for (int d = 0; d < ndim; ++d) {
    if (shape[d] != 1) {
      dims.emplace_back(strides[d], shape[d]);
    }
  }
  std::sort(dims.begin(), dims.end());
  std::int64_t expected = 1;
  for (const auto& [stride, extent] : dims) {
    if (stride != expected) {
      return size == 0;
    }
    expected *= extent;
  }
  return true;
}

bool View::same_layout(const View& other) const {
  for (int d = 0; d < ndim; ++d) {
    if (shape[d] != 1 && strides[d] != other.strides[d]) {
      return size == 0;
    }
  }
  return true;
}

Torch& Torch::get() {
  // Never destroyed: Python objects must not be released after the interpreter is gone.
  static Torch* torch = new Torch;
  return *torch;
}

void Torch::open(const py::object& torch, bool use_exchange) {
  tensor_type_ = torch.attr("Tensor");
  parameter_type_ = torch.attr("nn").attr("Parameter");
  empty_like_ = torch.attr("empty_like");
  new_empty_ = tensor_type_.attr("new_empty");
  is_neg_ = tensor_type_.attr("is_neg");
  strided_ = torch.attr("strided");
  current_stream_ = torch.attr("cuda").attr("current_stream");
  is_inference_ = tensor_type_.attr("is_inference");
  inference_mode_ = torch.attr("is_inference_mode_enabled");
  increment_version_ = torch.attr("autograd").attr("graph").attr("increment_version");
  dtypes_[int(Storage::float32)] = torch.attr("float32");
  dtypes_[int(Storage::float64)] = torch.attr("float64");
  dtypes_[int(Storage::bfloat16)] = torch.attr("bfloat16");
  dtypes_[int(Storage::float16)] = torch.attr("float16");
  exchange_ = nullptr;
  if (use_exchange && py::hasattr(tensor_type_, "__dlpack_c_exchange_api__")) {
    const py::object capsule = tensor_type_.attr("__dlpack_c_exchange_api__");
    const auto* exchange =
        static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (exchange == nullptr) {
      throw py::error_already_set();
    }
    // Walk to the version whose layout this file describes.
    const dlpack::Header* header = &exchange->header;
    while (header != nullptr && header->version.major != 1) {
      header = header->previous;
    }
    exchange = reinterpret_cast<const dlpack::Exchange*>(header);
    if (exchange != nullptr && exchange->borrow_from_object != nullptr) {
      exchange_ = exchange;
    }
  }
}

const char* Torch::read(PyObject* object, View& view) {
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  if (type != tensor_type_.ptr() && type != parameter_type_.ptr()) {
    return other_type;
  }
  if (exchange_ == nullptr) {
    return read_by_attributes(object, view);
  }
  dlpack::Tensor t;
  if (exchange_->borrow_from_object(object, &t) != 0) {
    PyErr_Clear();
    return no_storage;
  }
  // The imaginary part of a conjugate, say, has the sign of its elements in a flag of which DLPack knows nothing.
  PyObject* negative = PyObject_CallOneArg(is_neg_.ptr(), object);
  if (negative != Py_False) {
    PyErr_Clear();
    Py_XDECREF(negative);
    return negative_view;
  }
  Py_DECREF(negative);
  if (!storage_of(t.dtype, view.storage)) {
    return other_dtype;
  }
  if (t.device.type != dlpack::cpu && t.device.type != dlpack::cuda) {
    return other_device;
  }
  view.data = static_cast<char*>(t.data) + t.byte_offset;
  view.ndim = t.ndim;
  view.shape = t.shape;
  view.strides = t.strides;
  view.device = t.device;
  view.size = 1;
  for (int d = 0; d < t.ndim; ++d) {
    view.size *= t.shape[d];
  }
  if (t.strides == nullptr && t.ndim > 0) {
    auto owned = std::make_shared<std::vector<std::int64_t>>(t.ndim);
    std::int64_t stride = 1;
    for (int d = t.ndim - 1; d >= 0; --d) {
      (*owned)[d] = stride;
      stride *= t.shape[d];
    }
    view.strides = owned->data();
    view.owned = std::move(owned);
  }
  return view.size > 0 && t.data == nullptr ? no_storage : nullptr;
}

const char* Torch::read_by_attributes(PyObject* object, View& view) {
  const py::handle x(object);
  try {
    if (!py::object(x.attr("layout")).is(strided_)) {
      return no_storage;
    }
    const py::object dtype = x.attr("dtype");
    int s = 0;
    while (s < storage_count && !dtype.is(dtypes_[s])) {
      ++s;
    }
    if (s == storage_count) {
      return other_dtype;
    }
    view.storage = Storage(s);
    const py::object device = x.attr("device");
    const auto kind = device.attr("type").cast<std::string>();
    if (kind != "cpu" && kind != "cuda") {
      return kind == "meta" ? no_storage : other_device;
    }
    view.device.type = kind == "cpu" ? dlpack::cpu : dlpack::cuda;
    view.device.id = kind == "cpu" ? 0 : device.attr("index").cast<std::int32_t>();
    if (x.attr("is_neg")().cast<bool>()) {
      return negative_view;
    }
    const py::tuple shape = x.attr("shape"), strides = x.attr("stride")();
    view.ndim = int(shape.size());
    view.owned = std::make_shared<std::vector<std::int64_t>>();
    for (const py::tuple* numbers : {&shape, &strides}) {
      for (const py::handle n : *numbers) {
        view.owned->push_back(n.cast<std::int64_t>());
      }
    }
    view.shape = view.owned->data();
    view.strides = view.shape + view.ndim;
    view.size = 1;
    for (int d = 0; d < view.ndim; ++d) {
      view.size *= view.shape[d];
    }
    view.data = reinterpret_cast<void*>(x.attr("data_ptr")().cast<std::uintptr_t>());
    return view.size > 0 && view.data == nullptr ? no_storage : nullptr;
  } catch (py::error_already_set&) {
    return no_storage;
  }
}

py::object Torch::empty_like(PyObject* object, Storage storage) const {
  return empty_like_(py::handle(object), py::arg("dtype") = dtypes_[int(storage)]);
}

py::object Torch::relayout(PyObject* object, PyObject* like, Storage storage) const {
  py::object copy = empty_like(like, storage);
  copy.attr("copy_")(py::handle(object).attr("detach")());
  return copy;
}

py::object Torch::empty_doubles(std::int64_t size, PyObject* like) const {
  return new_empty_(py::handle(like), size, py::arg("dtype") = dtypes_[int(Storage::float64)]);
}

std::vector<py::object> Torch::cut_block(std::vector<View>& views) const {
  constexpr std::int64_t alignment = 64;
  std::int64_t total = 0;
  std::vector<std::int64_t> offsets;
  for (const View& view : views) {
    offsets.push_back(total);
    // No address twice, of empty tensors neither: torch.save takes tensors at one address for views of the same data.
    const std::int64_t bytes = std::max<std::int64_t>(view.size * size_of(view.storage), 1);
    total += (bytes + alignment - 1) / alignment * alignment;
  }
  const auto count = std::int64_t(views.size());
  char* base = static_cast<char*>(take_memory(std::size_t(total)));
  Block* block = new Block{{count}, std::size_t(total), base};

  std::vector<py::object> tensors;
  for (std::size_t i = 0; i < views.size(); ++i) {
    View& view = views[i];
    view.data = base + offsets[i];
    auto piece = std::make_unique<Piece>();
    piece->block = block;
    piece->shape_and_strides.assign(view.shape, view.shape + view.ndim);
    piece->shape_and_strides.resize(2 * view.ndim);
    std::int64_t stride = 1;
    for (int d = view.ndim - 1; d >= 0; --d) {
      piece->shape_and_strides[view.ndim + d] = stride;
      stride *= view.shape[d];
    }
    dlpack::ManagedTensor& m = piece->managed;
    m.version = {1, 0};
    m.context = piece.get();
    m.deleter = &Piece::remove;
    m.flags = 0;
    m.tensor = {view.data, {dlpack::cpu, 0}, view.ndim, dtype_of(view.storage),
                piece->shape_and_strides.data(), piece->shape_and_strides.data() + view.ndim, 0};
    void* object = nullptr;
    if (exchange_->to_object(&piece.release()->managed, &object) != 0) {
      // The pieces that were not handed over, this one included where torch did not take it.
      block->release(count - std::int64_t(i) - 1);
      throw py::error_already_set();
    }
    tensors.push_back(py::reinterpret_steal<py::object>(static_cast<PyObject*>(object)));
  }
  return tensors;
}

bool Torch::is_inference(PyObject* object) const {
  const auto answer = py::reinterpret_steal<py::object>(PyObject_CallOneArg(is_inference_.ptr(), object));
  if (!answer) {
    throw py::error_already_set();
  }
  return answer.ptr() == Py_True;
}

void* Torch::current_stream(dlpack::Device device) const {
  if (exchange_ != nullptr) {
    void* stream = nullptr;
    if (exchange_->current_stream(device.type, device.id, &stream) != 0) {
      throw py::error_already_set();
    }
    return stream;
  }
  return reinterpret_cast<void*>(current_stream_(device.id).attr("cuda_stream").cast<std::uintptr_t>());
}

}  // namespace torchopt

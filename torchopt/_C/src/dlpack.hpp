// SPDX-License-Identifier: Apache-2.0
// The part of DLPack's C interface (version 1.3) through which tensors are read and made. Its layout is fixed by that
// standard, so that no header of torch is needed.
#pragma once

#include <cstdint>

namespace torchopt::dlpack {

extern "C" {

struct Device {
  std::int32_t type, id;
};
constexpr std::int32_t cpu = 1, cuda = 2;

struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};
constexpr std::uint8_t floating = 2, brain_floating = 4;

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; may be null, for a contiguous tensor
  std::uint64_t byte_offset;
};

struct Version {
  std::uint32_t major, minor;
};

struct ManagedTensor {
  Version version;
  void* context;
  void (*deleter)(ManagedTensor*);
  std::uint64_t flags;
  Tensor tensor;
};

struct Header {
  Version version;
  Header* previous;
};

// The functions that a tensor library offers. Those that return int set a Python exception and return -1 on failure.
struct Exchange {
  Header header;
  int (*allocate)(Tensor* prototype, ManagedTensor** out, void* context,
                  void (*set_error)(void* context, const char* kind, const char* message));
  int (*own_from_object)(void* object, ManagedTensor** out);
  int (*to_object)(ManagedTensor* tensor, void** out);
  int (*borrow_from_object)(void* object, Tensor* out);
  int (*current_stream)(std::int32_t device_type, std::int32_t device_id, void** out);
};

}  // extern "C"

}  // namespace torchopt::dlpack

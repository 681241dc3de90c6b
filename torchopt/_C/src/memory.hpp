// SPDX-License-Identifier: Apache-2.0
// Memory for new tensors on the CPU. Large blocks that are given back are kept for the next step: the pages of a block
// fresh from the system are cleared one by one when first written, which takes several times as long as a step.
#pragma once

#include <cstddef>

namespace torchopt {

// At least `size` bytes, aligned to a cache line; never null.
void* take_memory(std::size_t size);

// The same size as it was taken with.
void give_memory(void* memory, std::size_t size);

// How many bytes are kept, and give all of them back to the system.
std::size_t kept_memory();
void release_memory();

}  // namespace torchopt

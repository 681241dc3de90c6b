// SPDX-License-Identifier: Apache-2.0
#include "memory.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace torchopt {

namespace {

constexpr std::size_t line = 64, page = std::size_t(2) << 20;
// Smaller blocks are left to the C library, which keeps them too. It gives the end of the heap back to the system when
// some 128 KiB of it are free, so that for larger blocks it cannot be relied on.
constexpr std::size_t large = std::size_t(16) << 10;
// What is kept is bounded by twice what tensors of the engine hold at the time, but may be this much at any time.
constexpr std::size_t always_kept = std::size_t(256) << 20;

void* from_system(std::size_t size) {
  void* memory = ::operator new(size, std::align_val_t(size >= 2 * page ? page : line));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (size >= 2 * page) {
    madvise(memory, size / page * page, MADV_HUGEPAGE);  // a wish: failure changes nothing
  }
#endif
  return memory;
}

void to_system(void* memory, std::size_t size) {
  ::operator delete(memory, std::align_val_t(size >= 2 * page ? page : line));
}

class Pool {
 public:
  void* take(std::size_t size) {
    live_ += size;
    {
      // Never waits: after a fork nobody might be left to unlock.
      std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
      if (lock.owns_lock()) {
        const auto found = blocks_.find(size);
        if (found != blocks_.end()) {
          void* memory = found->second;
          blocks_.erase(found);
          kept_ -= size;
          return memory;
        }
      }
    }
    return from_system(size);
  }

  void give(void* memory, std::size_t size) {
    live_ -= size;
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) {
      to_system(memory, size);
      return;
    }
    blocks_.emplace(size, memory);
    kept_ += size;
    trim(std::max(always_kept, 2 * live_.load()));
  }

  std::size_t kept() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return kept_;
  }

  void release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    trim(0);
  }

 private:
  void trim(std::size_t bound) {
    while (kept_ > bound) {
      const auto smallest = blocks_.begin();
      kept_ -= smallest->first;
      to_system(smallest->second, smallest->first);
      blocks_.erase(smallest);
    }
  }

  std::mutex mutex_;
  std::multimap<std::size_t, void*> blocks_;
  std::size_t kept_ = 0;
  std::atomic<std::size_t> live_{0};  // counted whether or not the lock was free
};

Pool& pool() {
  // Never destroyed: tensors may outlive the static objects of this module.
  static Pool* const instance = new Pool;
  return *instance;
}

}  // namespace

void* take_memory(std::size_t size) {
  size = std::max(size, line);
  return size >= large ? pool().take(size) : from_system(size);
}

void give_memory(void* memory, std::size_t size) {
  size = std::max(size, line);
  if (size >= large) {
    pool().give(memory, size);
  } else {
    to_system(memory, size);
  }
}

std::size_t kept_memory() { return pool().kept(); }

void release_memory() { pool().release(); }

}  // namespace torchopt

// Memory for weights that a product unpacks, or lays out anew, a few rows at a time: one piece a thread, kept.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

namespace hasten {
namespace {

struct FreeTile {
  void operator()(void* p) const { std::free(p); }
};

// Memory of this thread until it asks again; null where there is none.
inline void* tile_memory(int64_t bytes) {
  static thread_local std::unique_ptr<void, FreeTile> memory;
  static thread_local int64_t size = 0;
  if (bytes > size) {
    memory.reset(std::aligned_alloc(64, size_t((bytes + 63) / 64 * 64)));
    size = memory ? bytes : 0;
  }
  return memory.get();
}

}  // namespace
}  // namespace hasten

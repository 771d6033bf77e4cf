// Large memory in huge pages (2 MiB), where the system gives them to who asks: a page fault and an entry of the
// processor's table of addresses then stand for 512 times as much. Elsewhere nothing happens.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace hasten {

// Memory that is filled already is moved there now, which takes the time to copy it (Linux 6.1).
inline void ask_huge_pages(void* memory, size_t bytes, bool filled) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
  if (begin >= end) return;
  void* whole = reinterpret_cast<void*>(begin);
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, which older headers lack
  if (madvise(whole, end - begin, MADV_HUGEPAGE) == 0 && filled) madvise(whole, end - begin, kCollapse);
#else
  (void)memory, (void)bytes, (void)filled;
#endif
}

}  // namespace hasten

#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <new>

namespace creto::metering {

/// Allocates large arrays in large pages where the machine has them: memory that is touched at random would otherwise
/// miss the page table more often than the cache. Small ones begin at a cache line.
template <class T>
class LargePages {
  static constexpr std::size_t page_bytes = std::size_t{2} << 20;

 public:
  using value_type = T;
  LargePages() = default;
  template <class U>
  explicit(false) LargePages(const LargePages<U>&) {}

  T* allocate(std::size_t count) {
    const std::size_t bytes = count * sizeof(T);
    void* memory = ::operator new(bytes, alignment(bytes));
    if (bytes >= page_bytes) ::madvise(memory, bytes / page_bytes * page_bytes, MADV_HUGEPAGE);  // advice only
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, std::size_t count) { ::operator delete(memory, alignment(count * sizeof(T))); }
  friend bool operator==(const LargePages&, const LargePages&) { return true; }

 private:
  static std::align_val_t alignment(std::size_t bytes) {
    return std::align_val_t(bytes >= page_bytes ? page_bytes : std::max<std::size_t>(alignof(T), 64));
  }
};

}  // namespace creto::metering

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "creto/common/assert.h"
#include "tables/large_pages.h"

namespace creto::metering {

/// An array that only grows: its elements stay where they are and are read without a lock. Memory comes in chunks of
/// `per_chunk` elements.
///
/// Readers may use index i once they have learnt of it by something that was published after `make(i)`.
template <class T, std::size_t per_chunk>
class Chunks {
  static_assert((per_chunk & (per_chunk - 1)) == 0);
  static constexpr std::size_t chunks_max = 1 << 14;

 public:
  static constexpr std::size_t size_max = chunks_max * per_chunk;

  Chunks() : chunks_(std::make_unique<std::atomic<T*>[]>(chunks_max)) {}
  ~Chunks() {
    for (std::size_t i = size_; i-- > 0;) (*this)[i].~T();
    for (std::size_t i = 0; i < chunks_max && chunks_[i].load() != nullptr; ++i) release(chunks_[i].load());
  }
  Chunks(const Chunks&) = delete;
  Chunks& operator=(const Chunks&) = delete;

  T& operator[](std::size_t index) const {
    return chunks_[index / per_chunk].load(std::memory_order_acquire)[index % per_chunk];
  }

  /// The next element; its index is the size before. Requires: one caller at a time.
  template <class... Args>
  T& make(Args&&... args) {
    CRETO_ASSERT(size_ < size_max);
    std::atomic<T*>& chunk = chunks_[size_ / per_chunk];
    if (chunk.load(std::memory_order_relaxed) == nullptr) chunk.store(reserve(), std::memory_order_release);
    T& made =
        *std::construct_at(&chunk.load(std::memory_order_relaxed)[size_ % per_chunk], std::forward<Args>(args)...);
    ++size_;
    return made;
  }

  /// Requires: no `make` meanwhile.
  std::size_t size() const { return size_; }

 private:
  static T* reserve() { return LargePages<T>().allocate(per_chunk); }
  static void release(T* chunk) { LargePages<T>().deallocate(chunk, per_chunk); }

  std::unique_ptr<std::atomic<T*>[]> chunks_;
  std::size_t size_ = 0;
};

}  // namespace creto::metering

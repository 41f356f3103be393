#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>

#include "creto/common/assert.h"

namespace creto::authz {

/// Records of whole words from one thread to one other, in order, without a lock or an allocation.
///
/// Invariant 1: what was committed is read once. Invariant 2: a record lies in one piece.
class DecisionRing {
 public:
  /// Room for `bytes`, rounded up to a power of two; a record may have half of it.
  explicit DecisionRing(std::size_t bytes)
      : size_(std::bit_ceil(bytes < 4'096 ? std::size_t{4'096} : bytes)),
        words_(std::make_unique<std::uint64_t[]>(size_ / 8)) {}

  std::size_t capacity() const { return size_; }
  std::size_t record_bytes_max() const { return size_ / 2; }

  // --- the writing thread

  /// Place for a record of `bytes`, a multiple of 8; null where there is none now. The first four bytes must become
  /// its size. Requires: bytes <= record_bytes_max().
  std::byte* reserve(std::size_t bytes) {
    CRETO_ASSERT(bytes % 8 == 0 && bytes > 0 && bytes <= record_bytes_max());
    const std::uint64_t head = head_.load(std::memory_order_relaxed);
    const std::size_t at = head & (size_ - 1);
    // What does not fit before the end begins anew at the start.
    const std::size_t skip = size_ - at < bytes ? size_ - at : 0;
    if (head + skip + bytes - freed_ > size_) {
      freed_ = tail_.load(std::memory_order_acquire);
      if (head + skip + bytes - freed_ > size_) return nullptr;
    }
    if (skip > 0) words_[at / 8] = skip | skipped;
    reserved_ = head + skip + bytes;
    return reinterpret_cast<std::byte*>(words_.get()) + ((head + skip) & (size_ - 1));
  }
  void commit() {
    head_.store(reserved_, std::memory_order_release);
    // The reader's core has had these lines last: fetched now, they are here when the next record is written.
    const auto* next = reinterpret_cast<const std::byte*>(words_.get());
    for (std::size_t ahead = 0; ahead < prefetched; ahead += 64)
      __builtin_prefetch(next + ((reserved_ + ahead) & (size_ - 1)), 1);
  }
  /// Whether so much waits to be read that the reader should be woken.
  bool half_full() {
    const std::uint64_t head = head_.load(std::memory_order_relaxed);
    if (head - freed_ < size_ / 2) return false;
    freed_ = tail_.load(std::memory_order_acquire);
    return head - freed_ >= size_ / 2;
  }

  // --- the reading thread

  /// The oldest record that was not read; empty where there is none. Valid until `release`.
  std::span<std::byte> next() {
    while (true) {
      if (read_ == seen_) {
        // Only now: each look takes the line away from who writes it.
        seen_ = head_.load(std::memory_order_acquire);
        if (read_ == seen_) return {};
      }
      const std::size_t at = read_ & (size_ - 1);
      const std::uint64_t first = words_[at / 8];
      const auto bytes = static_cast<std::uint32_t>(first);
      if ((first & skipped) == 0) {
        read_ += bytes;
        return {reinterpret_cast<std::byte*>(words_.get()) + at, bytes};
      }
      read_ += bytes;
    }
  }
  bool empty() const { return tail_.load(std::memory_order_relaxed) == head_.load(std::memory_order_acquire); }
  /// Everything that `next` returned is done with.
  void release() { tail_.store(read_, std::memory_order_release); }
  /// Nothing of what `next` returned since the last `release` is: it comes again.
  void rewind() { read_ = tail_.load(std::memory_order_relaxed); }

  // --- both

  /// Its thread has ended: it can go once it is empty.
  void abandon() { abandoned_.store(true, std::memory_order_release); }
  bool abandoned() const { return abandoned_.load(std::memory_order_acquire); }

 private:
  static constexpr std::size_t prefetched = 512;
  static constexpr std::uint64_t skipped = std::uint64_t{1} << 63;

  const std::size_t size_;
  const std::unique_ptr<std::uint64_t[]> words_;
  std::atomic<bool> abandoned_{false};
  alignas(64) std::atomic<std::uint64_t> head_{0};
  std::uint64_t reserved_ = 0;  ///< the writer's
  std::uint64_t freed_ = 0;     ///< the writer's last look at `tail_`
  alignas(64) std::atomic<std::uint64_t> tail_{0};
  std::uint64_t read_ = 0;  ///< the reader's
  std::uint64_t seen_ = 0;  ///< the reader's last look at `head_`
};

}  // namespace creto::authz

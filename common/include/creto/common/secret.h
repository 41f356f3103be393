#pragma once

#include <cstddef>
#include <cstring>
#include <string_view>
#include <utility>

#include "creto/common/bytes.h"

namespace creto {

/// Overwrites memory in a way the compiler may not drop.
void wipe(void* data, std::size_t size);

/// Bytes that must not outlive their use: wiped on destruction and move, not printable, not comparable, not copyable
/// except by `clone()`, so that each copy is a decision.
class Secret {
 public:
  Secret() = default;
  explicit Secret(std::size_t size) : bytes_(size) {}
  /// Takes over `bytes`; the buffer itself is wiped with the secret.
  explicit Secret(Bytes&& bytes) : bytes_(std::move(bytes)) {}
  static Secret copy_of(BytesView bytes) { return Secret(Bytes(bytes.begin(), bytes.end())); }
  static Secret copy_of(std::string_view text) { return copy_of(as_bytes(text)); }

  Secret(Secret&& other) noexcept : bytes_(std::move(other.bytes_)) { other.bytes_.clear(); }
  Secret& operator=(Secret&& other) noexcept {
    if (this != &other) {
      wipe(bytes_.data(), bytes_.size());
      bytes_ = std::move(other.bytes_);
      other.bytes_.clear();
    }
    return *this;
  }
  Secret(const Secret&) = delete;
  Secret& operator=(const Secret&) = delete;
  ~Secret() { wipe(bytes_.data(), bytes_.size()); }

  Secret clone() const { return copy_of(reveal()); }

  std::size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }
  /// The one way to read it; easy to find in a review.
  BytesView reveal() const { return bytes_; }
  std::string_view reveal_text() const { return as_text(bytes_); }
  std::span<std::uint8_t> writable() { return bytes_; }

 private:
  Bytes bytes_;
};

}  // namespace creto

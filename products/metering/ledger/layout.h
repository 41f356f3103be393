#pragma once

#include <bit>
#include <cstring>
#include <string_view>

#include "creto/common/bytes.h"

/// The ledger's files are little endian, fields one after the other without padding.
namespace creto::metering::layout {

static_assert(std::endian::native == std::endian::little);

template <class T>
  requires std::is_trivially_copyable_v<T>
void put(Bytes& out, const T& value) {
  const std::size_t at = out.size();
  out.resize(at + sizeof(T));
  std::memcpy(out.data() + at, &value, sizeof(T));
}
inline void put_bytes(Bytes& out, BytesView bytes) { out.insert(out.end(), bytes.begin(), bytes.end()); }
/// The length in 32 bits, then the bytes.
inline void put_sized(Bytes& out, BytesView bytes) {
  put(out, static_cast<std::uint32_t>(bytes.size()));
  put_bytes(out, bytes);
}
inline void put_sized(Bytes& out, std::string_view text) { put_sized(out, as_bytes(text)); }

/// Reads what `put` wrote. Past the end it gives zeros and remembers that it failed.
class Reader {
 public:
  explicit Reader(BytesView bytes) : rest_(bytes) {}

  template <class T>
    requires std::is_trivially_copyable_v<T>
  T get() {
    T value{};
    if (rest_.size() < sizeof(T)) {
      fail();
    } else {
      std::memcpy(&value, rest_.data(), sizeof(T));
      rest_ = rest_.subspan(sizeof(T));
    }
    return value;
  }
  BytesView bytes(std::size_t size) {
    if (rest_.size() < size) {
      fail();
      return {};
    }
    const BytesView taken = rest_.first(size);
    rest_ = rest_.subspan(size);
    return taken;
  }
  BytesView sized() { return bytes(get<std::uint32_t>()); }
  std::string_view text() { return as_text(sized()); }
  /// A count of things that take at least `each` bytes: never more than there can be.
  std::size_t count(std::size_t each) {
    const auto n = get<std::uint32_t>();
    if (n > rest_.size() / each) fail();
    return ok_ ? n : 0;
  }
  bool ok() const { return ok_; }
  bool done() const { return ok_ && rest_.empty(); }
  std::size_t left() const { return rest_.size(); }

 private:
  void fail() {
    ok_ = false;
    rest_ = {};
  }
  BytesView rest_;
  bool ok_ = true;
};

}  // namespace creto::metering::layout

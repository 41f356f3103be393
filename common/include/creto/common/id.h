#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "creto/common/bytes.h"
#include "creto/common/time.h"

namespace creto {

namespace detail {
ByteArray<16> fresh_uuid7(Instant now);
std::string format_id(std::string_view prefix, const ByteArray<16>& uuid);
Result<ByteArray<16>> parse_id(std::string_view prefix, std::string_view text);
}  // namespace detail

/// A UUIDv7 (RFC 9562) of one kind of thing: 16 bytes, sorts by creation, no conversion between kinds.
/// `Tag` has `static constexpr std::string_view prefix`, so a sandbox id reads `sb-0193…`.
template <class Tag>
class Id {
 public:
  static Id fresh(Instant now) { return Id(detail::fresh_uuid7(now)); }
  static Result<Id> parse(std::string_view text) {
    auto uuid = detail::parse_id(Tag::prefix, text);
    if (!uuid) return std::move(uuid).error();
    return Id(*uuid);
  }
  static Id from_bytes(const ByteArray<16>& bytes) { return Id(bytes); }

  std::string to_string() const { return detail::format_id(Tag::prefix, bytes_); }
  const ByteArray<16>& bytes() const { return bytes_; }
  friend auto operator<=>(const Id&, const Id&) = default;

 private:
  explicit Id(const ByteArray<16>& bytes) : bytes_(bytes) {}
  ByteArray<16> bytes_;
};

#define CRETO_ID(Name, text)                         \
  struct Name##Tag {                                 \
    static constexpr std::string_view prefix = text; \
  };                                                 \
  using Name = Id<Name##Tag>

CRETO_ID(SandboxId, "sb");
CRETO_ID(RequestId, "req");
CRETO_ID(EventId, "evt");
CRETO_ID(SubscriptionId, "sub");
CRETO_ID(MessageId, "msg");
CRETO_ID(InvoiceId, "inv");
CRETO_ID(DelegationId, "del");
CRETO_ID(TopicSubscriptionId, "tsub");
CRETO_ID(MemoryId, "mem");
CRETO_ID(ObjectId, "obj");
CRETO_ID(ActionId, "act");
CRETO_ID(ReservationId, "res");

/// The name of a policy set entry. Any text of 1 to 256 printable characters.
using PolicyId = std::string;

}  // namespace creto

template <class Tag>
struct std::hash<creto::Id<Tag>> {
  std::size_t operator()(const creto::Id<Tag>& id) const noexcept {
    std::uint64_t low = 0;
    for (int i = 8; i < 16; ++i) low = low << 8 | id.bytes()[static_cast<std::size_t>(i)];
    return low;
  }
};

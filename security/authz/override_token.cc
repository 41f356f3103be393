#include "override_token.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "creto/common/assert.h"
#include "creto/crypto/hash.h"

namespace creto::authz {
namespace {

constexpr std::string_view prefix = "crov1.";
constexpr std::size_t mac_size = 32;
constexpr std::size_t token_bytes_max = 16 << 10;

Error refused() {
  return Error(Product::platform, ErrorKind::permission_denied, "the override token is not valid for this action");
}

/// Appends to a buffer on the stack and moves to the heap only where that is too small.
class Buffer {
 public:
  void raw(BytesView bytes) {
    if (heap_.empty() && size_ + bytes.size() <= stack_.size()) {
      std::copy(bytes.begin(), bytes.end(), stack_.begin() + static_cast<std::ptrdiff_t>(size_));
      size_ += bytes.size();
      return;
    }
    if (heap_.empty()) heap_.assign(stack_.begin(), stack_.begin() + static_cast<std::ptrdiff_t>(size_));
    heap_.insert(heap_.end(), bytes.begin(), bytes.end());
  }
  void number(std::uint64_t value, std::size_t bytes) {
    std::array<std::uint8_t, 8> big_endian{};
    for (std::size_t i = 0; i < bytes; ++i) big_endian[i] = static_cast<std::uint8_t>(value >> 8 * (bytes - 1 - i));
    raw(BytesView(big_endian).first(bytes));
  }
  /// With its length before it, so that two neighbours cannot be cut differently.
  void text(std::string_view text) {
    number(text.size(), 4);
    raw(as_bytes(text));
  }
  BytesView view() const { return heap_.empty() ? BytesView(stack_).first(size_) : BytesView(heap_); }

 private:
  std::array<std::uint8_t, 768> stack_;
  std::size_t size_ = 0;
  Bytes heap_;
};

class Reader {
 public:
  explicit Reader(BytesView bytes) : rest_(bytes) {}
  bool number(std::size_t bytes, std::uint64_t& value) {
    if (rest_.size() < bytes) return false;
    value = 0;
    for (std::size_t i = 0; i < bytes; ++i) value = value << 8 | rest_[i];
    rest_ = rest_.subspan(bytes);
    return true;
  }
  bool text(std::string& value) {
    std::uint64_t size = 0;
    if (!number(2, size) || rest_.size() < size) return false;
    value = as_text(rest_.first(size));
    rest_ = rest_.subspan(size);
    return true;
  }
  bool bytes(std::span<std::uint8_t> out) {
    if (rest_.size() < out.size()) return false;
    std::copy_n(rest_.begin(), out.size(), out.begin());
    rest_ = rest_.subspan(out.size());
    return true;
  }
  bool at_end() const { return rest_.empty(); }

 private:
  BytesView rest_;
};

Result<OverrideToken> parse_body(BytesView body) {
  Reader in(body);
  ByteArray<16> uuid{};
  std::uint64_t expiry = 0;
  std::uint64_t count = 0;
  if (!in.bytes(uuid) || !in.number(8, expiry) || !in.number(1, count)) return refused();
  OverrideToken token{RequestId::from_bytes(uuid), from_unix_ns(static_cast<std::int64_t>(expiry)), {}};
  token.lifts.resize(count);
  for (auto& lift : token.lifts) {
    if (!in.text(lift.forbid) || !in.text(lift.oversight_policy)) return refused();
  }
  if (!in.at_end()) return refused();
  return token;
}

Result<Bytes> decode(std::string_view token) {
  if (!token.starts_with(prefix) || token.size() > token_bytes_max) return refused();
  auto bytes = from_base64url(token.substr(prefix.size()));
  if (!bytes || bytes->size() <= mac_size) return refused();
  return bytes;
}

}  // namespace

OverrideTokens::OverrideTokens(const Secret& key)
    : key_(crypto::blake3_derive("creto 2026-11 override token", key.reveal())) {
  CRETO_ASSERT(key.size() == 32);
}

Result<std::string> OverrideTokens::issue(std::string_view org, const OverrideGrant& grant) const {
  const auto bad = [](std::string what) { return Error(Product::platform, ErrorKind::invalid_input, std::move(what)); };
  if (grant.lifts.size() > 16) return bad("an override lifts at most 16 policies");
  Buffer body;
  body.raw(grant.request.bytes());
  body.number(static_cast<std::uint64_t>(unix_ns(grant.expires_at)), 8);
  body.number(grant.lifts.size(), 1);
  for (const auto& lift : grant.lifts) {
    for (const std::string* name : {&lift.forbid, &lift.oversight_policy}) {
      if (name->empty() || name->size() > 256) return bad("the name of a policy has 1 to 256 bytes");
      body.number(name->size(), 2);
      body.raw(as_bytes(*name));
    }
  }
  Bytes bytes = to_bytes(body.view());
  const Hash256 tag = mac(org, grant.agent, grant.action, grant.resource, grant.arguments_hash, body.view());
  bytes.insert(bytes.end(), tag.begin(), tag.end());
  return std::string(prefix) + base64url(bytes);
}

Result<OverrideToken> OverrideTokens::verify(std::string_view org, const CheckRequest& request) const {
  const Bytes bytes = CRETO_TRY(decode(request.override_token));
  const BytesView body = BytesView(bytes).first(bytes.size() - mac_size);
  const Hash256 expected = mac(org, request.principal, request.action, request.resource, request.arguments_hash, body);
  if (!equal_constant_time(expected, BytesView(bytes).last(mac_size))) return refused();
  return parse_body(body);
}

Hash256 OverrideTokens::mac(std::string_view org, const Identity& agent, std::string_view action,
                            const EntityUid& resource, const Hash256& arguments_hash, BytesView body) const {
  Buffer input;
  input.text(org);
  input.text(agent.text());
  input.text(action);
  input.text(resource.type);
  input.text(resource.id);
  input.raw(arguments_hash);
  input.raw(body);
  ByteArray<32> key{};
  std::copy_n(key_.reveal().begin(), key.size(), key.begin());
  const Hash256 tag = crypto::blake3_keyed(key, input.view());
  wipe(key.data(), key.size());
  return tag;
}

Result<OverrideToken> read_override_token(std::string_view token) {
  const Bytes bytes = CRETO_TRY(decode(token));
  return parse_body(BytesView(bytes).first(bytes.size() - mac_size));
}

}  // namespace creto::authz

#include "creto/common/identity.h"

#include <fmt/format.h>

#include <algorithm>

#include "creto/common/assert.h"

namespace creto {
namespace {

constexpr std::string_view agent_prefix = "agent:nhi:ed25519:";
constexpr std::string_view human_prefix = "human:";
constexpr std::string_view service_prefix = "service:";

Error malformed(std::string_view text, std::string_view rule) {
  return Error(Product::platform, ErrorKind::invalid_input, fmt::format("identity `{}`: {}", text.substr(0, 80), rule));
}

}  // namespace

Result<Identity> Identity::parse(std::string_view text) {
  if (text.starts_with(agent_prefix)) {
    const Result<Bytes> key = from_base58(text.substr(agent_prefix.size()));
    if (!key || key->size() != 32) return malformed(text, "must end in the base58 of a 32-byte Ed25519 key");
    // The text is the identity, so a key has exactly one spelling.
    if (base58(*key) != text.substr(agent_prefix.size())) return malformed(text, "is not in canonical base58");
    return Identity(Kind::agent, std::string(text));
  }
  if (text.starts_with(human_prefix)) {
    auto identity = human(text.substr(human_prefix.size()));
    if (identity && identity->text() != text) return malformed(text, "an email must be in lower case");
    return identity;
  }
  if (text.starts_with(service_prefix)) return service(text.substr(service_prefix.size()));
  return malformed(text, "must begin with `agent:nhi:ed25519:`, `human:` or `service:`");
}

Identity Identity::agent(const ByteArray<32>& ed25519_public_key) {
  return Identity(Kind::agent, std::string(agent_prefix) + base58(ed25519_public_key));
}

Result<Identity> Identity::human(std::string_view email) {
  const auto at = email.find('@');
  if (email.size() < 3 || email.size() > 254 || at == 0 || at == std::string_view::npos || at + 1 == email.size() ||
      email.find('@', at + 1) != std::string_view::npos)
    return malformed(email, "an email has 3 to 254 characters and one `@` inside");
  std::string lower(email);
  for (char& c : lower) {
    if (c <= ' ' || c >= 127 || c == '"' || c == '\\' || c == ',' || c == ';')
      return malformed(email, "an email is printable ASCII without quotes, commas or spaces");
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return Identity(Kind::human, std::string(human_prefix) + lower);
}

Result<Identity> Identity::service(std::string_view name) {
  const auto allowed = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; };
  if (name.empty() || name.size() > 63 || !std::ranges::all_of(name, allowed))
    return malformed(name, "a service name is 1 to 63 of a-z, 0-9 and `-`");
  return Identity(Kind::service, std::string(service_prefix) + std::string(name));
}

std::string_view Identity::name() const {
  const std::string_view prefix = kind_ == Kind::agent   ? agent_prefix
                                  : kind_ == Kind::human ? human_prefix
                                                         : service_prefix;
  return std::string_view(text_).substr(prefix.size());
}

ByteArray<32> Identity::pinned_key() const {
  CRETO_ASSERT(is_agent());
  const Result<Bytes> key = from_base58(name());
  CRETO_ASSERT(key && key->size() == 32);
  ByteArray<32> result;
  std::copy(key->begin(), key->end(), result.begin());
  return result;
}

}  // namespace creto

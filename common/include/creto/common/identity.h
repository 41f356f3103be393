#pragma once

#include <compare>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/bytes.h"

namespace creto {

/// Who acts. The text is the identity (001 §6.1): it is what is compared, stored and signed.
///
///   agent:nhi:ed25519:<base58 of the first Ed25519 public key>
///   human:<email>
///   service:<name>
class Identity {
 public:
  enum class Kind { agent, human, service };

  static Result<Identity> parse(std::string_view text);
  static Identity agent(const ByteArray<32>& ed25519_public_key);
  static Result<Identity> human(std::string_view email);   ///< lower-cased; 3 to 254 characters with one '@'
  static Result<Identity> service(std::string_view name);  ///< [a-z0-9-]{1,63}

  Kind kind() const { return kind_; }
  bool is_agent() const { return kind_ == Kind::agent; }
  bool is_human() const { return kind_ == Kind::human; }
  const std::string& text() const { return text_; }
  /// The part after the kind: base58 key, email or service name.
  std::string_view name() const;
  /// Only an agent's text holds a key. Requires: is_agent().
  ByteArray<32> pinned_key() const;

  friend bool operator==(const Identity& a, const Identity& b) { return a.text_ == b.text_; }
  friend auto operator<=>(const Identity& a, const Identity& b) { return a.text_ <=> b.text_; }

 private:
  Identity(Kind kind, std::string text) : kind_(kind), text_(std::move(text)) {}
  Kind kind_;
  std::string text_;
};

/// Root principal first (a human or service), the acting identity last; never empty in a request that was
/// authenticated. The signed delegations behind it belong to nhi; this is the view the rest works with (000 §6.1).
using DelegationChain = std::vector<Identity>;

/// Deepest chain that is accepted, root included (003 §6.5).
inline constexpr std::size_t delegation_chain_max_depth = 10;

}  // namespace creto

template <>
struct std::hash<creto::Identity> {
  std::size_t operator()(const creto::Identity& identity) const noexcept {
    return std::hash<std::string>()(identity.text());
  }
};

#include "delegation.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "creto/common/json.h"

namespace creto::nhi {
namespace {

/// "a.b_c.d", "a.*" or "*".
bool well_formed(std::string_view permission) {
  if (permission == "*") return true;
  if (permission.empty() || permission.size() > 128) return false;
  if (permission.ends_with(".*")) permission.remove_suffix(2);
  bool part = false;
  for (char c : permission) {
    if (c == '.') {
      if (!part) return false;
      part = false;
    } else if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-') {
      part = true;
    } else {
      return false;
    }
  }
  return part;
}

}  // namespace

bool covers(std::string_view permission, std::string_view action) {
  if (permission == "*" || permission == action) return true;
  if (!permission.ends_with(".*")) return false;
  std::string_view stem = permission.substr(0, permission.size() - 1);
  return action.size() > stem.size() && action.starts_with(stem);
}

Result<> check_permissions(const std::vector<std::string>& permissions) {
  if (permissions.empty() || permissions.size() > 64)
    return refuse(ErrorKind::invalid_input, "`permissions` must be 1 to 64");
  for (const std::string& permission : permissions)
    if (!well_formed(permission))
      return refuse(ErrorKind::invalid_input,
                    fmt::format("`permissions`: `{}` is not of the form a.b, a.* or *", permission.substr(0, 128)));
  if (!std::ranges::is_sorted(permissions) || std::ranges::adjacent_find(permissions) != permissions.end())
    return refuse(ErrorKind::invalid_input, "`permissions` must be sorted and without repetition");
  return {};
}

Result<std::string> Delegation::signed_bytes() const {
  Json json = {{"schema_version", 1},
               {"id", id.to_string()},
               {"org", org},
               {"delegator", delegator.text()},
               {"delegatee", delegatee.text()},
               {"parent", parent ? Json(parent->to_string()) : Json(nullptr)},
               {"permissions", permissions},
               {"created_at", std::to_string(unix_ns(created_at))},
               {"expires_at", std::to_string(unix_ns(expires_at))},
               {"key_id", key_id}};
  std::string canonical = CRETO_TRY(canonical_json(json));
  return "creto.delegation\n" + canonical;
}

Result<> check_narrows(const Delegation& parent, const Delegation& child) {
  for (const std::string& permission : child.permissions)
    if (std::ranges::none_of(parent.permissions, [&](const std::string& wide) { return covers(wide, permission); }))
      return refuse(ErrorKind::permission_denied,
                    fmt::format("`{}` is not among the permissions of `{}`", permission, child.delegator.text()));
  if (child.expires_at > parent.expires_at)
    return refuse(ErrorKind::permission_denied,
                  fmt::format("the delegation would outlive its parent, which ends {}", to_rfc3339(parent.expires_at)));
  return {};
}

Result<> check_structure(const Identity& root, std::span<const Delegation> delegations, Instant now) {
  if (delegations.size() + 1 > delegation_chain_max_depth)
    return refuse(ErrorKind::permission_denied, fmt::format("the chain is deeper than {}", delegation_chain_max_depth));
  if (root.is_agent()) return refuse(ErrorKind::permission_denied, "a chain begins with a human or a service");
  std::set<std::string> seen = {root.text()};
  const Identity* holder = &root;
  const Delegation* parent = nullptr;
  for (const Delegation& link : delegations) {
    if (link.delegator != *holder)
      return refuse(ErrorKind::permission_denied,
                    fmt::format("`{}` delegates in place of `{}`", link.delegator.text(), holder->text()));
    if (link.parent != (parent ? std::optional(parent->id) : std::nullopt))
      return refuse(ErrorKind::permission_denied,
                    fmt::format("delegation `{}` names another parent", link.id.to_string()));
    if (!seen.insert(link.delegatee.text()).second)
      return refuse(ErrorKind::permission_denied, fmt::format("`{}` is in the chain twice", link.delegatee.text()));
    CRETO_TRY(check_permissions(link.permissions));
    if (parent) CRETO_TRY(check_narrows(*parent, link));
    if (link.revoked)
      return refuse(ErrorKind::permission_denied, fmt::format("delegation `{}` is revoked", link.id.to_string()));
    if (link.expires_at <= now)
      return refuse(ErrorKind::expired,
                    fmt::format("delegation `{}` ended {}", link.id.to_string(), to_rfc3339(link.expires_at)));
    holder = &link.delegatee;
    parent = &link;
  }
  return {};
}

DelegationChain Chain::identities() const {
  DelegationChain chain = {root.identity};
  for (const Delegation& link : delegations) chain.push_back(link.delegatee);
  return chain;
}

bool Chain::permits(std::string_view action) const {
  if (delegations.empty()) return true;
  return std::ranges::any_of(delegations.back().permissions,
                             [&](const std::string& permission) { return covers(permission, action); });
}

std::string prekey_signed_bytes(const Identity& identity, PrekeyUse use, std::uint32_t id, BytesView key) {
  std::string_view name = use == PrekeyUse::identity_dh     ? "identity_dh"
                          : use == PrekeyUse::signed_prekey ? "signed_prekey"
                                                            : "kem";
  return fmt::format("creto.prekey\n{}\n{}\n{}\n{}", identity.text(), name, id, base64(key));
}

}  // namespace creto::nhi

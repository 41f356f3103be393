#include "secret_codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "creto/common/json.h"
#include "creto/common/names.h"

namespace creto::vault {
namespace {

constexpr auto type_names = std::to_array<Named<SecretType>>({{SecretType::generic, "generic"},
                                                              {SecretType::api_key, "api_key"},
                                                              {SecretType::password, "password"},
                                                              {SecretType::certificate, "certificate"},
                                                              {SecretType::private_key, "private_key"},
                                                              {SecretType::token, "token"},
                                                              {SecretType::connection_string, "connection_string"}});
constexpr auto status_names = std::to_array<Named<DelegationStatus>>({{DelegationStatus::active, "active"},
                                                                      {DelegationStatus::expired, "expired"},
                                                                      {DelegationStatus::revoked, "revoked"},
                                                                      {DelegationStatus::exhausted, "exhausted"}});

Error invalid(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

bool is_path(std::string_view path) {
  if (path.empty() || path.size() > 256) return false;
  while (true) {
    const auto part = path.substr(0, path.find('/'));
    if (part.empty() || part == "." || part == "..") return false;
    if (!std::ranges::all_of(part,
                             [](char c) { return is_letter(c) || is_digit(c) || c == '.' || c == '_' || c == '-'; })) {
      return false;
    }
    if (part.size() == path.size()) return true;
    path.remove_prefix(part.size() + 1);
  }
}

bool is_name(std::string_view name) {
  if (name.empty() || name.size() > 128 || is_digit(name[0])) return false;
  return std::ranges::all_of(name, [](char c) { return is_letter(c) || is_digit(c) || c == '_'; });
}

Json metadata_document(const SecretMetadata& metadata) {
  Json labels = Json::object();
  for (const auto& [key, value] : metadata.labels) labels[key] = value;
  return Json{{"type", to_string(metadata.type)}, {"description", metadata.description}, {"labels", std::move(labels)}};
}

Result<SecretMetadata> read_metadata(const Json& document, const std::string& path) {
  JsonReader reader(document, path);
  SecretMetadata metadata;
  const auto type = reader.text("type");
  metadata.description = reader.text("description");
  for (const auto& [key, value] : reader.object("labels").items()) {
    if (value.is_string()) {
      metadata.labels[key] = value.get<std::string>();
    } else {
      reader.refuse("labels", "must hold text");
    }
  }
  CRETO_TRY(reader.finish());
  metadata.type = CRETO_TRY(secret_type_from_string(type));
  return metadata;
}

}  // namespace

Result<SecretRef> SecretRef::parse(std::string_view text) {
  const auto slash = text.rfind('/');
  if (slash == std::string_view::npos) return invalid("a secret is named `path/NAME`");
  SecretRef ref{std::string(text.substr(0, slash)), std::string(text.substr(slash + 1))};
  CRETO_TRY(check(ref));
  return ref;
}

std::string_view to_string(SecretType type) { return name_of(type_names, type); }
Result<SecretType> secret_type_from_string(std::string_view text) {
  return value_of(type_names, text, "type", Product::platform);
}
std::string_view to_string(DelegationStatus status) { return name_of(status_names, status); }

Result<> check(const SecretRef& ref) {
  if (!is_path(ref.path)) {
    return invalid("`path` must be 1 to 256 characters of [A-Za-z0-9._/-] without empty, `.` or `..` parts");
  }
  if (!is_name(ref.name)) return invalid("`name` must match [A-Za-z_][A-Za-z0-9_]{0,127}");
  return {};
}

Result<> check(const SecretMetadata& metadata) {
  if (metadata.description.size() > 1024 || !is_valid_utf8(metadata.description)) {
    return invalid("`description` must be at most 1024 bytes of UTF-8");
  }
  if (metadata.labels.size() > 64) return invalid("`labels` has more than 64 entries");
  for (const auto& [key, value] : metadata.labels) {
    if (key.empty() || key.size() > 256 || value.size() > 256 || !is_valid_utf8(key) || !is_valid_utf8(value)) {
      return invalid("`labels` must hold keys of 1 to 256 bytes and values of at most 256 bytes, in UTF-8");
    }
  }
  return {};
}

Result<> check_value(const Secret& value) {
  if (value.empty()) return invalid("`value` is empty");
  if (value.size() > 64 * 1024) return Error(Product::platform, ErrorKind::too_large, "`value` is over 64 KiB");
  return {};
}

Result<std::string> to_json(const SecretMetadata& metadata) { return canonical_json(metadata_document(metadata)); }

Result<SecretMetadata> metadata_from_json(std::string_view text) {
  const auto document = CRETO_TRY(parse_json(text));
  return read_metadata(document, "metadata");
}

Result<std::string> to_json(const SecretInfo& info) {
  Json document{{"path", info.ref.path},
                {"name", info.ref.name},
                {"owner", info.owner.text()},
                {"version", std::to_string(info.version)},
                {"metadata", metadata_document(info.metadata)},
                {"created_at", std::to_string(unix_ns(info.created_at))}};
  if (info.expires_at) document["expires_at"] = std::to_string(unix_ns(*info.expires_at));
  return canonical_json(document);
}

Result<SecretInfo> info_from_json(std::string_view text) {
  const auto document = CRETO_TRY(parse_json(text));
  JsonReader reader(document, "secret");
  SecretRef ref{reader.text("path"), reader.text("name")};
  const auto owner = reader.text("owner");
  const auto version = reader.integer("version");
  if (version < 0) reader.refuse("version", "must not be negative");
  const auto created_at = reader.integer("created_at");
  std::optional<Instant> expires_at;
  if (document.contains("expires_at")) expires_at = from_unix_ns(reader.integer("expires_at"));
  auto metadata = CRETO_TRY(read_metadata(reader.object("metadata"), "secret.metadata"));
  CRETO_TRY(reader.finish());
  auto identity = CRETO_TRY(Identity::parse(owner));
  return SecretInfo{std::move(ref),      std::move(identity),      static_cast<std::uint64_t>(version),
                    std::move(metadata), from_unix_ns(created_at), expires_at};
}

}  // namespace creto::vault

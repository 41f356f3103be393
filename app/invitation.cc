#include "invitation.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "creto/common/bytes.h"
#include "creto/common/json.h"

namespace creto::app {
namespace {

constexpr std::size_t text_bytes_max = 16 << 10;
constexpr std::size_t secret_bytes = 32;

bool is_endpoint(std::string_view text) {
  return text.size() <= 300 && text.contains(':') && std::ranges::all_of(text, [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  std::string_view(".-_:[]").contains(c);
         });
}

}  // namespace

bool is_org_name(std::string_view text) {
  return !text.empty() && text.size() <= 128 && std::ranges::all_of(text, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("._-").contains(c);
  });
}

std::string to_text(const Invitation& invitation) {
  const Json json = {{"schema_version", 1},
                     {"org", invitation.org},
                     {"human", invitation.human.text()},
                     {"server", invitation.server},
                     {"authority", invitation.authority},
                     {"secret", base64(invitation.secret.reveal())},
                     {"expires_at", to_rfc3339(invitation.expires_at)}};
  return json.dump(2) + "\n";
}

Result<Invitation> parse_invitation(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text, {.bytes_max = text_bytes_max}));
  JsonReader reader(json, "invitation");
  const std::int64_t version = reader.integer("schema_version");
  const std::string org = reader.text("org"), human = reader.text("human"), server = reader.text("server");
  const std::string authority = reader.text("authority"), secret = reader.text("secret");
  const std::string expires_at = reader.text("expires_at");
  if (version != 1) reader.refuse("schema_version", "must be 1");
  // Both go into a settings file.
  if (!is_org_name(org)) reader.refuse("org", org_name_rule);
  if (!is_endpoint(server)) reader.refuse("server", "must be host:port");
  const auto who = Identity::parse(human);
  if (!who || who->kind() != Identity::Kind::human) reader.refuse("human", "must be a human's identity");
  const auto bytes = from_base64(secret);
  if (!bytes || bytes->size() != secret_bytes) reader.refuse("secret", "must be 32 bytes in base64");
  const auto ends = from_rfc3339(expires_at);
  if (!ends) reader.refuse("expires_at", "must be a time as RFC 3339 writes it");
  CRETO_TRY(reader.finish());
  return Invitation{org, *who, server, authority, Secret::copy_of(BytesView(*bytes)), *ends};
}

}  // namespace creto::app

#include "token.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "creto/common/json.h"
#include "creto/crypto/random.h"
#include "delegation.h"

namespace creto::nhi {
namespace {

constexpr std::string_view prefix = "creto1.";

std::string to_sign(std::string_view payload) { return fmt::format("creto.token\n{}", payload); }

}  // namespace

Result<std::string> make_token(const crypto::SigningKey& key, const Identity& identity, std::string_view org,
                               Instant now, Nanos valid_for) {
  if (valid_for <= Nanos(0) || valid_for > token_valid_for_max)
    return refuse(ErrorKind::invalid_input, "`valid_for` must be over 0 and at most 24 hours");
  Json payload = {{"iss", identity.text()},
                  {"org", org},
                  {"iat", std::to_string(unix_ns(now))},
                  {"exp", std::to_string(unix_ns(now + valid_for))},
                  {"jti", hex(crypto::random_bytes(16))}};
  std::string text = CRETO_TRY(canonical_json(payload));
  Signature signature = CRETO_TRY(key.sign(as_bytes(to_sign(text)), as_bytes(token_context)));
  return fmt::format("{}{}.{}", prefix, base64url(as_bytes(text)), base64url(signature.value));
}

Result<ParsedToken> parse_token(std::string_view token) {
  auto bad = [](std::string_view why) {
    return refuse(ErrorKind::unauthenticated, fmt::format("the token is not valid: {}", why));
  };
  if (token.size() > token_bytes_max) return bad("too long");
  if (!token.starts_with(prefix)) return bad("not one of ours");
  token.remove_prefix(prefix.size());
  std::size_t dot = token.find('.');
  if (dot == token.npos) return bad("no signature");
  auto payload = from_base64url(token.substr(0, dot));
  auto signature = from_base64url(token.substr(dot + 1));
  if (!payload || !signature) return bad("not base64url");
  auto json = parse_json(as_text(*payload), {.bytes_max = 4096, .depth_max = 2});
  if (!json || !json->is_object()) return bad("not a JSON object");
  JsonReader reader(*json, "token");
  std::string issuer = reader.text("iss"), org = reader.text("org"), id = reader.text("jti");
  std::int64_t issued_at = reader.integer("iat"), expires_at = reader.integer("exp");
  if (!reader.finish()) return bad("a field is missing or of the wrong type");
  auto identity = Identity::parse(issuer);
  if (!identity) return bad("`iss` is not an identity");
  return ParsedToken{std::move(org),
                     *std::move(identity),
                     std::move(id),
                     from_unix_ns(issued_at),
                     from_unix_ns(expires_at),
                     to_sign(as_text(*payload)),
                     Signature{"hybrid-ed25519-ml-dsa-65", *std::move(signature)}};
}

Result<> check_token_time(const ParsedToken& token, Instant now, Nanos skew) {
  if (token.expires_at <= now)
    return refuse(ErrorKind::expired, fmt::format("the token expired {}", to_rfc3339(token.expires_at)))
        .with_number(401);
  if (token.issued_at > now + skew) return refuse(ErrorKind::unauthenticated, "the token is from the future");
  // Written so that absurd numbers cannot overflow.
  if (token.expires_at < token.issued_at || unix_ns(token.issued_at) < 0 ||
      token.expires_at - token.issued_at > token_valid_for_max)
    return refuse(ErrorKind::unauthenticated, "the token is valid for longer than 24 hours");
  return {};
}

}  // namespace creto::nhi

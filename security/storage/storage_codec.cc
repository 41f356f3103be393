#include "storage_codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <nlohmann/json.hpp>

#include "creto/common/json.h"
#include "creto/crypto/hash.h"
#include "creto/io/http_server.h"

namespace creto::storage {
namespace {

struct Class {
  std::string_view name;
  std::uint64_t size_max;
};
constexpr std::uint64_t mib = 1u << 20;
constexpr std::array classes{Class{"agent_data", 50 * mib},       Class{"sandbox_state", 1024 * mib},
                             Class{"message_payload", 100 * mib}, Class{"artifact", 1024 * mib},
                             Class{"sensitive", 50 * mib},        Class{"compliance", 10 * mib}};

constexpr std::size_t target_bytes_max = 4096;

Error invalid(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }
Error forged() {
  return Error(Product::platform, ErrorKind::permission_denied, "the presigned URL was changed or is none of ours");
}

bool is_printable(std::string_view text) {
  return is_valid_utf8(text) &&
         std::ranges::none_of(text, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; });
}

/// '/' stays readable in a path.
std::string encode_path(std::string_view path) {
  std::string out;
  while (true) {
    const auto slash = path.find('/');
    out += http::percent_encode(path.substr(0, slash));
    if (slash == std::string_view::npos) return out;
    out += '/';
    path.remove_prefix(slash + 1);
  }
}

std::string signature_of(std::string_view unsigned_target, BytesView key) {
  return base64url(crypto::hmac_sha256(key, as_bytes(fmt::format("creto presigned url v1\n{}", unsigned_target))));
}

template <class T>
bool read_number(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

}  // namespace

std::string_view to_string(Classification classification) {
  return classes[static_cast<std::size_t>(classification)].name;
}

Result<Classification> classification_from_string(std::string_view text) {
  const auto found = std::ranges::find(classes, text, &Class::name);
  if (found == classes.end()) return invalid(fmt::format("`{}` is not a classification", text.substr(0, 64)));
  return static_cast<Classification>(found - classes.begin());
}

std::uint64_t size_limit_of(Classification classification) {
  return classes[static_cast<std::size_t>(classification)].size_max;
}

Result<> check_bucket(std::string_view bucket) {
  const auto good = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  if (bucket.empty() || bucket.size() > 63 || !good(bucket[0]) ||
      !std::ranges::all_of(bucket, [&](char c) { return good(c) || c == '.' || c == '-'; })) {
    return invalid("`bucket` must match [a-z0-9][a-z0-9.-]{0,62}");
  }
  return {};
}

Result<> check_key(std::string_view key) {
  if (key.empty() || key.size() > 512 || !is_printable(key))
    return invalid("`key` must be 1 to 512 bytes of printable UTF-8");
  // Keys never become file names; refused all the same, so that no client can be led astray by one.
  if (key.starts_with('/') || key.find("//") != std::string_view::npos || key.find("..") != std::string_view::npos) {
    return invalid("`key` must not begin with '/', nor hold '//' or '..'");
  }
  return {};
}

Result<> check_content_type(std::string_view type) {
  const auto good = [](char c) { return c > 0x20 && c < 0x7F; };
  if (type.size() > 255 || type.find('/') == std::string_view::npos ||
      !std::ranges::all_of(type, [&](char c) { return good(c) || c == ' '; })) {
    return invalid("`content_type` must look like text/plain");
  }
  return {};
}

Result<> check_metadata(const std::map<std::string, std::string>& metadata) {
  if (metadata.size() > 64) return invalid("`metadata` has more than 64 entries");
  std::size_t bytes = 0;
  for (const auto& [key, value] : metadata) {
    if (key.empty() || !is_printable(key) || !is_valid_utf8(value))
      return invalid("`metadata` must hold printable keys and UTF-8");
    bytes += key.size() + value.size();
  }
  if (bytes > 8192) return invalid("`metadata` is over 8 KiB");
  return {};
}

std::string sign_target(const Grant& grant, BytesView key) {
  auto target = fmt::format("{}{}/{}?org={}&as={}&expires={}", presigned_path, encode_path(grant.ref.bucket),
                            encode_path(grant.ref.key), http::percent_encode(grant.org),
                            http::percent_encode(grant.as.text()), grant.expires_s);
  if (const auto* put = std::get_if<PresignedPut>(&grant.operation)) {
    target += fmt::format("&op=put&class={}&max={}&type={}", to_string(put->classification), put->size_max,
                          http::percent_encode(put->content_type));
  } else {
    target += "&op=get&version=" + grant.ref.version;
  }
  return target + "&signature=" + signature_of(target, key);
}

Result<Grant> verify_target(std::string_view target, BytesView key) {
  if (target.size() > target_bytes_max || !target.starts_with(presigned_path)) return forged();
  const auto at = target.rfind("&signature=");
  if (at == std::string_view::npos) return forged();
  const auto signed_part = target.substr(0, at);
  const auto given = target.substr(at + std::string_view("&signature=").size());
  if (!equal_constant_time(as_bytes(given), as_bytes(signature_of(signed_part, key)))) return forged();
  // From here on these are our own words; what does not parse was made by another version.
  http::Request request;
  request.target = std::string(signed_part);
  const auto value = [&](std::string_view name) { return request.query(name).value_or(""); };
  auto path = request.path().substr(presigned_path.size());
  const auto slash = path.find('/');
  if (slash == std::string_view::npos) return invalid("the presigned URL names no object");
  StorageRef ref;
  ref.bucket = CRETO_TRY(http::percent_decode(path.substr(0, slash), false));
  ref.key = CRETO_TRY(http::percent_decode(path.substr(slash + 1), false));
  auto as = CRETO_TRY(Identity::parse(value("as")));
  Grant grant{value("org"), std::move(as), std::move(ref), PresignedGet{}, 0};
  if (!read_number(value("expires"), grant.expires_s)) return invalid("the presigned URL has no expiry");
  if (value("op") == "put") {
    PresignedPut put;
    put.content_type = value("type");
    put.classification = CRETO_TRY(classification_from_string(value("class")));
    if (!read_number(value("max"), put.size_max)) return invalid("the presigned URL has no size");
    grant.operation = std::move(put);
  } else if (value("op") == "get") {
    grant.ref.version = value("version");
  } else {
    return invalid("the presigned URL permits nothing that is known");
  }
  return grant;
}

}  // namespace creto::storage

#include <fmt/format.h>

#include <algorithm>

#include "creto/io/http_server.h"

namespace creto::http {
namespace {

int digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

std::string_view Request::header(std::string_view name) const {
  for (const auto& [key, value] : headers)
    if (key == name) return value;
  return {};
}

Result<std::vector<std::pair<std::string, std::string>>> Request::query_parameters() const {
  std::vector<std::pair<std::string, std::string>> parameters;
  std::size_t mark = target.find('?');
  if (mark == std::string::npos) return parameters;
  std::string_view rest = std::string_view(target).substr(mark + 1);
  while (!rest.empty()) {
    std::string_view one = rest.substr(0, rest.find('&'));
    rest.remove_prefix(std::min(rest.size(), one.size() + 1));
    if (one.empty()) continue;
    std::size_t equals = one.find('=');
    std::string name = CRETO_TRY(percent_decode(one.substr(0, equals), true));
    std::string value =
        CRETO_TRY(percent_decode(equals == one.npos ? std::string_view() : one.substr(equals + 1), true));
    parameters.emplace_back(std::move(name), std::move(value));
  }
  return parameters;
}

std::optional<std::string> Request::query(std::string_view name) const {
  if (auto parameters = query_parameters())
    for (auto& [key, value] : *parameters)
      if (key == name) return std::move(value);
  return std::nullopt;
}

Result<std::string> percent_decode(std::string_view text, bool plus_is_space) {
  std::string decoded;
  decoded.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '+' && plus_is_space) {
      decoded += ' ';
    } else if (text[i] != '%') {
      decoded += text[i];
    } else {
      int high = i + 1 < text.size() ? digit(text[i + 1]) : -1;
      int low = i + 2 < text.size() ? digit(text[i + 2]) : -1;
      if (high < 0 || low < 0)
        return Error(Product::platform, ErrorKind::invalid_input, "a `%` is not followed by two hex digits");
      decoded += static_cast<char>(high * 16 + low);
      i += 2;
    }
  }
  return decoded;
}

std::string percent_encode(std::string_view text) {
  std::string encoded;
  for (char c : text) {
    bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' ||
                 c == '_' || c == '~';
    if (plain) {
      encoded += c;
    } else {
      encoded += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return encoded;
}

}  // namespace creto::http

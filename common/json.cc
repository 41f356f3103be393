#include "creto/common/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <unordered_set>

namespace creto {
namespace {

Error invalid(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

/// Builds the value and refuses, while reading, what `JsonLimits` and I-JSON (RFC 7493) forbid.
class LimitedBuilder final : public nlohmann::json_sax<Json> {
 public:
  LimitedBuilder(Json& root, std::size_t depth_max)
      : depth_max_(depth_max), builder_(root, /*allow_exceptions=*/false) {}

  std::optional<Error> problem;

  bool null() override { return builder_.null(); }
  bool boolean(bool v) override { return builder_.boolean(v); }
  bool number_integer(number_integer_t v) override { return builder_.number_integer(v); }
  bool number_unsigned(number_unsigned_t v) override { return builder_.number_unsigned(v); }
  bool number_float(number_float_t v, const string_t& s) override { return builder_.number_float(v, s); }
  bool string(string_t& v) override { return builder_.string(v); }
  bool binary(binary_t& v) override { return builder_.binary(v); }
  bool start_object(std::size_t n) override {
    keys_.emplace_back();
    return deeper() && builder_.start_object(n);
  }
  bool key(string_t& k) override {
    if (!keys_.back().insert(k).second) {
      problem = invalid(fmt::format("json: duplicate key `{}`", k.substr(0, 64)));
      return false;
    }
    return builder_.key(k);
  }
  bool end_object() override {
    keys_.pop_back();
    --depth_;
    return builder_.end_object();
  }
  bool start_array(std::size_t n) override { return deeper() && builder_.start_array(n); }
  bool end_array() override {
    --depth_;
    return builder_.end_array();
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    position_ = position;
    return false;
  }
  std::size_t position() const { return position_; }

 private:
  bool deeper() {
    if (++depth_ <= depth_max_) return true;
    problem =
        Error(Product::platform, ErrorKind::too_large, fmt::format("json: nested deeper than {} levels", depth_max_));
    return false;
  }

  std::size_t depth_max_;
  std::size_t depth_ = 0;
  std::size_t position_ = 0;
  std::vector<std::unordered_set<std::string>> keys_;
  nlohmann::detail::json_sax_dom_parser<Json> builder_;
};

/// RFC 8785 §3.2.2.3: ECMAScript's Number::toString of a double.
std::string ecmascript_number(double value) {
  if (value == 0) return "0";
  std::array<char, 32> buffer;
  const auto end =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), std::fabs(value), std::chars_format::scientific).ptr;
  std::string_view text(buffer.data(), static_cast<std::size_t>(end - buffer.data()));
  const auto e = text.find('e');
  std::string digits(text.substr(0, e));
  std::erase(digits, '.');
  int exponent = 0;
  const auto exponent_text = text.substr(text[e + 1] == '+' ? e + 2 : e + 1);
  std::from_chars(exponent_text.data(), exponent_text.data() + exponent_text.size(), exponent);

  const auto k = static_cast<int>(digits.size());
  const int n = exponent + 1;
  std::string result;
  if (k <= n && n <= 21) {
    result = digits + std::string(static_cast<std::size_t>(n - k), '0');
  } else if (0 < n && n <= 21) {
    result = digits.substr(0, static_cast<std::size_t>(n)) + "." + digits.substr(static_cast<std::size_t>(n));
  } else if (-6 < n && n <= 0) {
    result = "0." + std::string(static_cast<std::size_t>(-n), '0') + digits;
  } else {
    result = digits.substr(0, 1) + (k > 1 ? "." + digits.substr(1) : "") +
             fmt::format("e{}{}", n - 1 >= 0 ? "+" : "-", std::abs(n - 1));
  }
  return value < 0 ? "-" + result : result;
}

void write_string(const std::string& text, std::string& out) {
  out += '"';
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20)
          out += fmt::format("\\u{:04x}", static_cast<int>(c));
        else
          out += c;
    }
  }
  out += '"';
}

/// UTF-16 code unit order (RFC 8785 §3.2.3). It differs from byte order only where a character beyond the basic plane
/// (lead byte F0..F4, surrogates D800..DFFF) meets one in E000..FFFF (lead bytes EE, EF).
bool utf16_less(const std::string& a, const std::string& b) {
  const auto [x, y] = std::ranges::mismatch(a, b);
  if (x == a.end() || y == b.end()) return x == a.end() && y != b.end();
  const auto rank = [](char c) {
    const int byte = static_cast<unsigned char>(c);
    return byte >= 0xF0 ? byte - 0xF0 + 0xEE : byte >= 0xEE ? byte - 0xEE + 0xF3 : byte;
  };
  return rank(*x) < rank(*y);
}

Result<> write_canonical(const Json& value, std::string& out) {
  switch (value.type()) {
    case Json::value_t::null:
      out += "null";
      return {};
    case Json::value_t::boolean:
      out += value.get<bool>() ? "true" : "false";
      return {};
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned: {
      const auto digits = value.is_number_unsigned() ? fmt::format("{}", value.get<std::uint64_t>())
                                                     : fmt::format("{}", value.get<std::int64_t>());
      // A large double is written like an integer, and read as one again.
      const bool held = std::fabs(value.get<double>()) < 1LL << 53 || ecmascript_number(value.get<double>()) == digits;
      if (!held) return invalid("canonical json: integers that a double does not hold must be strings");
      out += digits;
      return {};
    }
    case Json::value_t::number_float: {
      const double number = value.get<double>();
      if (!std::isfinite(number)) return invalid("canonical json: a number must be finite");
      out += ecmascript_number(number);
      return {};
    }
    case Json::value_t::string: {
      const auto& text = value.get_ref<const std::string&>();
      if (!is_valid_utf8(text)) return invalid("canonical json: a string must be valid UTF-8");
      write_string(text, out);
      return {};
    }
    case Json::value_t::array: {
      out += '[';
      for (std::size_t i = 0; i < value.size(); ++i) {
        if (i > 0) out += ',';
        CRETO_TRY(write_canonical(value[i], out));
      }
      out += ']';
      return {};
    }
    case Json::value_t::object: {
      std::vector<const std::string*> keys;
      for (const auto& [key, member] : value.items()) keys.push_back(&value.find(key).key());
      std::ranges::sort(keys, [](const auto* a, const auto* b) { return utf16_less(*a, *b); });
      out += '{';
      for (std::size_t i = 0; i < keys.size(); ++i) {
        if (i > 0) out += ',';
        if (!is_valid_utf8(*keys[i])) return invalid("canonical json: a key must be valid UTF-8");
        write_string(*keys[i], out);
        out += ':';
        CRETO_TRY(write_canonical(value.at(*keys[i]), out));
      }
      out += '}';
      return {};
    }
    case Json::value_t::binary:
    case Json::value_t::discarded:
      break;
  }
  return invalid("canonical json: value has no JSON form");
}

}  // namespace

Result<Json> parse_json(std::string_view text, JsonLimits limits) {
  if (text.size() > limits.bytes_max)
    return Error(Product::platform, ErrorKind::too_large,
                 fmt::format("json: {} bytes are over the limit of {}", text.size(), limits.bytes_max));
  if (!is_valid_utf8(text)) return invalid("json: is not valid UTF-8");
  Json root;
  LimitedBuilder builder(root, limits.depth_max);
  if (Json::sax_parse(text, &builder)) return root;
  if (builder.problem) return *std::move(builder.problem);
  const std::string_view before = text.substr(0, std::min(builder.position(), text.size()));
  const auto line = std::ranges::count(before, '\n') + 1;
  const auto column = before.size() - (before.rfind('\n') == std::string_view::npos ? 0 : before.rfind('\n') + 1);
  return invalid(fmt::format("json: syntax error at line {}, column {}", line, std::max<std::size_t>(column, 1)));
}

Result<std::string> canonical_json(const Json& value) {
  std::string out;
  CRETO_TRY(write_canonical(value, out));
  return out;
}

Result<std::string> texts_to_json(const std::map<std::string, std::string>& texts) {
  return canonical_json(Json(texts));
}

Result<std::map<std::string, std::string>> texts_from_json(std::string_view text) {
  const Json document = CRETO_TRY(parse_json(text));
  if (!document.is_object()) return invalid("json: must be an object");
  std::map<std::string, std::string> texts;
  for (const auto& [key, value] : document.items()) {
    if (!value.is_string()) return invalid(fmt::format("json: `{}` must be a text", key.substr(0, 64)));
    texts[key] = value.get<std::string>();
  }
  return texts;
}

struct JsonReader::Rep {
  const Json& object;
  std::string path;
  std::set<std::string, std::less<>> read;
  std::optional<Error> problem;
  Json empty_array = Json::array();
  Json empty_object = Json::object();
  Json null = nullptr;
};

JsonReader::JsonReader(const Json& object, std::string path)
    : rep_(new Rep{.object = object, .path = std::move(path), .read = {}, .problem = std::nullopt}) {
  if (!object.is_object()) rep_->problem = invalid(fmt::format("{}: must be an object", rep_->path));
}
JsonReader::~JsonReader() = default;

void JsonReader::refuse(std::string_view key, std::string_view rule) {
  if (!rep_->problem) rep_->problem = invalid(fmt::format("{}.{}: {}", rep_->path, key, rule));
}

const Json& JsonReader::any(std::string_view key) {
  rep_->read.emplace(key);
  if (!rep_->object.is_object()) return rep_->null;
  const auto it = rep_->object.find(std::string(key));
  return it == rep_->object.end() ? rep_->null : *it;
}

std::string JsonReader::text(std::string_view key) {
  const Json& member = any(key);
  if (member.is_string()) return member.get<std::string>();
  refuse(key, member.is_null() ? "is required" : "must be a string");
  return {};
}

std::string JsonReader::text_or(std::string_view key, std::string_view otherwise) {
  return any(key).is_null() ? std::string(otherwise) : text(key);
}

std::int64_t JsonReader::integer(std::string_view key) {
  const Json& member = any(key);
  if (member.is_number_integer()) {
    if (member.is_number_unsigned() && member.get<std::uint64_t>() > INT64_MAX) {
      refuse(key, "must fit into 64 bits");
      return 0;
    }
    return member.get<std::int64_t>();
  }
  if (member.is_string()) {
    const auto& digits = member.get_ref<const std::string&>();
    std::int64_t value = 0;
    const auto [end, problem] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (problem == std::errc() && end == digits.data() + digits.size()) return value;
  }
  refuse(key, member.is_null() ? "is required" : "must be an integer");
  return 0;
}

std::int64_t JsonReader::integer_or(std::string_view key, std::int64_t otherwise) {
  return any(key).is_null() ? otherwise : integer(key);
}

bool JsonReader::boolean_or(std::string_view key, bool otherwise) {
  const Json& member = any(key);
  if (member.is_null()) return otherwise;
  if (member.is_boolean()) return member.get<bool>();
  refuse(key, "must be true or false");
  return otherwise;
}

const Json& JsonReader::array(std::string_view key) {
  const Json& member = any(key);
  if (member.is_array()) return member;
  if (!member.is_null()) refuse(key, "must be an array");
  return rep_->empty_array;
}

const Json& JsonReader::object(std::string_view key) {
  const Json& member = any(key);
  if (member.is_object()) return member;
  if (!member.is_null()) refuse(key, "must be an object");
  return rep_->empty_object;
}

Result<> JsonReader::finish() {
  if (!rep_->problem) {
    for (const auto& [key, member] : rep_->object.items())
      if (!rep_->read.contains(key)) return invalid(fmt::format("{}.{}: unknown field", rep_->path, key.substr(0, 64)));
    return {};
  }
  return *std::move(rep_->problem);
}

}  // namespace creto

// For every other source file, which finds it declared in cmake/pch.h.
template class nlohmann::basic_json<>;

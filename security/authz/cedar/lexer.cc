#include "cedar/lexer.h"

#include <fmt/format.h>

#include <array>

#include "cedar/text.h"
#include "creto/common/bytes.h"

namespace creto::authz::cedar {
namespace {

bool space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v'; }
bool letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool digit(char c) { return c >= '0' && c <= '9'; }

class Lexer {
 public:
  explicit Lexer(std::string_view text) : text_(text) {}

  Result<std::vector<Token>> run() {
    std::vector<Token> tokens;
    while (true) {
      skip_blank();
      const Position where = where_;
      if (at_ == text_.size()) {
        tokens.push_back({TokenKind::end, {}, where});
        return tokens;
      }
      const char c = text_[at_];
      const std::size_t begin = at_;
      if (letter(c)) {
        while (at_ < text_.size() && (letter(text_[at_]) || digit(text_[at_]))) advance();
        tokens.push_back({TokenKind::identifier, text_.substr(begin, at_ - begin), where});
      } else if (digit(c)) {
        while (at_ < text_.size() && digit(text_[at_])) advance();
        tokens.push_back({TokenKind::integer, text_.substr(begin, at_ - begin), where});
      } else if (c == '"') {
        advance();
        while (at_ < text_.size() && text_[at_] != '"') {
          if (text_[at_] == '\\') advance();
          if (at_ < text_.size()) advance();
        }
        if (at_ == text_.size()) return error_at(where, "string is not closed: expected `\"`");
        tokens.push_back({TokenKind::string, text_.substr(begin + 1, at_ - begin - 1), where});
        advance();
      } else {
        static constexpr std::array<std::string_view, 31> symbols = {
            "::", "==", "!=", "<=", ">=", "&&", "||", "(", ")", "[", "]", "{", "}", ",", ";", ":",
            ".",  "@",  "<",  ">",  "!",  "+",  "-",  "*", "?", "=", "/", "%", "&", "|", "#"};
        std::string_view symbol;
        for (const auto candidate : symbols) {
          if (text_.substr(at_).starts_with(candidate)) {
            symbol = text_.substr(at_, candidate.size());
            break;
          }
        }
        if (symbol.empty()) {
          const auto printable = c > 0x20 && c < 0x7f;
          return error_at(where, printable ? fmt::format("`{}` begins nothing in Cedar", c)
                                           : "this character begins nothing in Cedar (only strings may hold it)");
        }
        for (std::size_t i = 0; i < symbol.size(); ++i) advance();
        tokens.push_back({TokenKind::symbol, symbol, where});
      }
    }
  }

 private:
  void advance() {
    const auto c = static_cast<unsigned char>(text_[at_++]);
    if (c == '\n') {
      ++where_.line;
      where_.column = 1;
    } else if (at_ == text_.size() || (static_cast<unsigned char>(text_[at_]) & 0xc0) != 0x80) {
      ++where_.column;  // counted at the last byte of a code point
    }
  }

  void skip_blank() {
    while (at_ < text_.size()) {
      if (space(text_[at_])) {
        advance();
      } else if (text_.substr(at_).starts_with("//")) {
        while (at_ < text_.size() && text_[at_] != '\n') advance();
      } else {
        return;
      }
    }
  }

  std::string_view text_;
  std::size_t at_ = 0;
  Position where_;
};

int hex_digit(char c) {
  if (digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

/// Reads the escape at the front of `rest` (after its backslash) and appends what it means. Rust's escapes, as in
/// Cedar.
Result<> take_escape(const Token& token, std::string_view& rest, std::string& out) {
  const auto bad = [&](std::string_view why) {
    return error_at(token.where, fmt::format("bad escape in string: {}", why));
  };
  const char c = rest[0];
  rest.remove_prefix(1);
  switch (c) {
    case 'n':
      out += '\n';
      return {};
    case 'r':
      out += '\r';
      return {};
    case 't':
      out += '\t';
      return {};
    case '0':
      out += '\0';
      return {};
    case '\\':
      out += '\\';
      return {};
    case '"':
      out += '"';
      return {};
    case '\'':
      out += '\'';
      return {};
    case '\n':  // a backslash at the end of the line continues the string on the next
      while (!rest.empty() && (rest[0] == ' ' || rest[0] == '\t' || rest[0] == '\n' || rest[0] == '\r')) {
        rest.remove_prefix(1);
      }
      return {};
    case 'x': {
      const int high = rest.size() > 0 ? hex_digit(rest[0]) : -1;
      const int low = rest.size() > 1 ? hex_digit(rest[1]) : -1;
      if (high < 0 || low < 0) return bad("`\\x` takes two hexadecimal digits");
      if (high > 7) return bad("`\\x` goes to 7f; use `\\u{…}`");
      out += static_cast<char>(high << 4 | low);
      rest.remove_prefix(2);
      return {};
    }
    case 'u': {
      if (rest.empty() || rest[0] != '{') return bad("`\\u` takes `{`, 1 to 6 hexadecimal digits and `}`");
      rest.remove_prefix(1);
      char32_t value = 0;
      int digits = 0;
      while (!rest.empty() && rest[0] != '}') {
        if (rest[0] == '_' && digits > 0) {
          rest.remove_prefix(1);
          continue;
        }
        const int nibble = hex_digit(rest[0]);
        if (nibble < 0 || ++digits > 6) return bad("`\\u` takes `{`, 1 to 6 hexadecimal digits and `}`");
        value = value << 4 | static_cast<char32_t>(nibble);
        rest.remove_prefix(1);
      }
      if (rest.empty() || digits == 0) return bad("`\\u` takes `{`, 1 to 6 hexadecimal digits and `}`");
      rest.remove_prefix(1);
      if (value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff)) return bad("`\\u` names no character");
      append_utf8(out, value);
      return {};
    }
    default:
      return bad(fmt::format("`\\{}` is none", c >= 0x20 && c < 0x7f ? std::string(1, c) : "?"));
  }
}

}  // namespace

Error error_at(Position where, std::string what) {
  return Error(Product::platform, ErrorKind::invalid_input,
               fmt::format("line {}, column {}: {}", where.line, where.column, what));
}

Result<std::vector<Token>> lex(std::string_view text) {
  if (!is_valid_utf8(text)) return Error(Product::platform, ErrorKind::invalid_input, "the text is not valid UTF-8");
  return Lexer(text).run();
}

Result<std::string> unescape_string(const Token& token) {
  std::string out;
  std::string_view rest = token.text;
  while (!rest.empty()) {
    const char c = rest[0];
    rest.remove_prefix(1);
    if (c == '\\') {
      CRETO_TRY(take_escape(token, rest, out));
    } else if (c == '\r' && !rest.starts_with('\n')) {
      return error_at(token.where, "a bare carriage return in a string: write `\\r`");
    } else {
      out += c;
    }
  }
  return out;
}

Result<Pattern> unescape_pattern(const Token& token) {
  Pattern pattern(1);
  std::string_view rest = token.text;
  while (!rest.empty()) {
    const char c = rest[0];
    rest.remove_prefix(1);
    if (c == '*') {
      pattern.emplace_back();
    } else if (c == '\\' && rest.starts_with('*')) {
      pattern.back() += '*';
      rest.remove_prefix(1);
    } else if (c == '\\') {
      CRETO_TRY(take_escape(token, rest, pattern.back()));
    } else if (c == '\r' && !rest.starts_with('\n')) {
      return error_at(token.where, "a bare carriage return in a string: write `\\r`");
    } else {
      pattern.back() += c;
    }
  }
  return pattern;
}

}  // namespace creto::authz::cedar

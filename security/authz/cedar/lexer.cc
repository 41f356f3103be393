#include "cedar/lexer.h"

#include <fmt/format.h>

#include <algorithm>
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

  Lexed run() {
    Lexed lexed;
    while (true) {
      skip_blank(lexed);
      const Position where = where_;
      if (at_ == text_.size()) {
        lexed.tokens.push_back({TokenKind::end, {}, where});
        return lexed;
      }
      const char c = text_[at_];
      const std::size_t begin = at_;
      if (letter(c)) {
        while (at_ < text_.size() && (letter(text_[at_]) || digit(text_[at_]))) advance();
        lexed.tokens.push_back({TokenKind::identifier, text_.substr(begin, at_ - begin), where});
      } else if (digit(c)) {
        while (at_ < text_.size() && digit(text_[at_])) advance();
        lexed.tokens.push_back({TokenKind::integer, text_.substr(begin, at_ - begin), where});
      } else if (c == '"') {
        lexed.tokens.push_back(string());
      } else {
        lexed.tokens.push_back(symbol());
      }
    }
  }

 private:
  Token string() {
    const Position where = where_;
    const std::size_t begin = at_ + 1;
    std::size_t end = begin;
    while (end < text_.size() && text_[end] != '"') end += text_[end] == '\\' ? 2 : 1;
    const bool closed = end < text_.size();
    // Without an end it is taken to end with its line, so that what follows can still be read.
    if (!closed) end = std::min(text_.find('\n', begin), text_.size());
    while (at_ < end) advance();
    if (closed) advance();
    return {closed ? TokenKind::string : TokenKind::unclosed, text_.substr(begin, end - begin), where};
  }

  Token symbol() {
    static constexpr std::array<std::string_view, 31> symbols = {
        "::", "==", "!=", "<=", ">=", "&&", "||", "(", ")", "[", "]", "{", "}", ",", ";", ":",
        ".",  "@",  "<",  ">",  "!",  "+",  "-",  "*", "?", "=", "/", "%", "&", "|", "#"};
    const Position where = where_;
    const std::size_t begin = at_;
    for (const auto candidate : symbols) {
      if (!text_.substr(at_).starts_with(candidate)) continue;
      for (std::size_t i = 0; i < candidate.size(); ++i) advance();
      return {TokenKind::symbol, text_.substr(begin, candidate.size()), where};
    }
    do {
      advance();
    } while (at_ < text_.size() && (static_cast<unsigned char>(text_[at_]) & 0xc0) == 0x80);
    return {TokenKind::invalid, text_.substr(begin, at_ - begin), where};
  }

  void advance() {
    const auto c = static_cast<unsigned char>(text_[at_++]);
    if (c == '\n') {
      ++where_.line;
      where_.column = 1;
    } else if (at_ == text_.size() || (static_cast<unsigned char>(text_[at_]) & 0xc0) != 0x80) {
      ++where_.column;  // counted at the last byte of a code point
    }
  }

  void skip_blank(Lexed& lexed) {
    while (at_ < text_.size()) {
      if (space(text_[at_])) {
        advance();
      } else if (text_.substr(at_).starts_with("//")) {
        const Position where = where_;
        const std::size_t begin = at_;
        while (at_ < text_.size() && text_[at_] != '\n') advance();
        lexed.comments.push_back({text_.substr(begin, at_ - begin), where, lexed.tokens.size()});
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

Result<Lexed> lex(std::string_view text) {
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

Error TokenReader::unexpected(std::string_view expected) const {
  const Token& token = peek();
  switch (token.kind) {
    case TokenKind::unclosed:
      return error_at(token.where, "string is not closed: expected `\"`");
    case TokenKind::invalid: {
      if (token.text.starts_with("\xef\xbb\xbf"))
        return error_at(token.where, "a byte order mark begins nothing in Cedar: save the text without it");
      const bool printable = token.text[0] > 0x20 && token.text[0] < 0x7f;
      return error_at(token.where, printable ? fmt::format("`{}` begins nothing in Cedar", token.text)
                                             : "this character begins nothing in Cedar (only strings may hold it)");
    }
    case TokenKind::end:
      return error_at(token.where, fmt::format("found the end of the text, expected {}", expected));
    case TokenKind::string:
      return error_at(token.where, fmt::format("found a string, expected {}", expected));
    default:
      return error_at(token.where, fmt::format("found `{}`, expected {}", token.text.substr(0, 60), expected));
  }
}

Result<> TokenReader::expect(std::string_view symbol, std::string_view expected) {
  if (take_symbol(symbol)) return {};
  return unexpected(expected.empty() ? fmt::format("`{}`", symbol) : std::string(expected));
}

Result<std::string> TokenReader::identifier(std::string_view expected) {
  if (peek().kind != TokenKind::identifier) return unexpected(expected);
  if (is_reserved(peek().text)) {
    return error_at(peek().where, fmt::format("`{}` is a reserved word, expected {}", peek().text, expected));
  }
  return std::string(next().text);
}

Result<std::string> TokenReader::path(std::string_view expected) {
  std::string path = CRETO_TRY(identifier(expected));
  while (take_symbol("::")) {
    const std::string part = CRETO_TRY(identifier("a name after `::`"));
    path += "::" + part;
  }
  return path;
}

Result<std::string> TokenReader::string(std::string_view expected) {
  if (peek().kind != TokenKind::string) return unexpected(expected);
  return unescape_string(next());
}

Result<> TokenReader::annotations(std::map<std::string, std::string, std::less<>>& into) {
  while (take_symbol("@")) {
    const Token& key = peek();
    if (key.kind != TokenKind::identifier) return unexpected("the name of an annotation");
    next();  // any word may name one, reserved or not
    std::string value;
    if (take_symbol("(")) {
      value = CRETO_TRY(string("a string"));
      CRETO_TRY(expect(")"));
    }
    if (!into.emplace(std::string(key.text), std::move(value)).second) {
      return error_at(key.where, fmt::format("annotation `@{}` stands twice", key.text));
    }
  }
  return {};
}

}  // namespace creto::authz::cedar

#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "cedar/ast.h"
#include "creto/common/result.h"

namespace creto::authz::cedar {

enum class TokenKind : std::uint8_t {
  identifier,
  integer,
  string,
  symbol,
  end,
  invalid,   ///< a character that begins nothing
  unclosed,  ///< a string without an end; holds the rest of its line
};

/// Borrows the text that was lexed.
struct Token {
  TokenKind kind = TokenKind::end;
  std::string_view text;  ///< a string's is what stands between the quotes, escapes untouched
  Position where;
};

/// A comment from its `//` to the end of its line.
struct Comment {
  std::string_view text;
  Position where;
  std::size_t before = 0;  ///< the index of the token it stands before
};

struct Lexed {
  std::vector<Token> tokens;  ///< the last is `end`
  std::vector<Comment> comments;
};

/// Never stops early: what is no token becomes an `invalid` or `unclosed` one, for the parser to report in its place.
/// Errors: invalid_input for invalid UTF-8.
Result<Lexed> lex(std::string_view text);

/// Errors: the text of the escape that is none.
Result<std::string> unescape_string(const Token& token);
/// As a string, but `*` is a wildcard and `\*` an asterisk.
Result<Pattern> unescape_pattern(const Token& token);

/// The error all stages of the parser give: "line 3, column 14: `what`".
Error error_at(Position where, std::string what);

/// A place in a row of tokens that only moves on. Borrows the tokens.
class TokenReader {
 public:
  explicit TokenReader(const std::vector<Token>& tokens) : tokens_(tokens) {}

  const Token& peek(std::size_t ahead = 0) const {
    const std::size_t last = tokens_.size() - 1;
    return tokens_[at_ + ahead < last ? at_ + ahead : last];
  }
  const Token& next() {
    const Token& token = peek();
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  std::size_t at() const { return at_; }
  bool at_end() const { return peek().kind == TokenKind::end; }
  bool is_symbol(std::string_view text, std::size_t ahead = 0) const {
    return peek(ahead).kind == TokenKind::symbol && peek(ahead).text == text;
  }
  bool is_word(std::string_view text, std::size_t ahead = 0) const {
    return peek(ahead).kind == TokenKind::identifier && peek(ahead).text == text;
  }
  bool take_symbol(std::string_view text) { return is_symbol(text) && (next(), true); }
  bool take_word(std::string_view text) { return is_word(text) && (next(), true); }

  /// "found `]`, expected `expected`", at the current token; for what is no token, why not.
  Error unexpected(std::string_view expected) const;
  Result<> expect(std::string_view symbol, std::string_view expected = {});
  /// A name that is no reserved word.
  Result<std::string> identifier(std::string_view expected);
  /// Names joined by `::`.
  Result<std::string> path(std::string_view expected);
  /// A string, its escapes undone.
  Result<std::string> string(std::string_view expected);
  /// `@key` or `@key("value")`, as many as there are. Errors: a key that stands twice.
  Result<> annotations(std::map<std::string, std::string, std::less<>>& into);

  /// `item` as often as there are up to `close`, which is taken; commas between, and one may end the list.
  template <class Item>
  Result<> list(std::string_view close, std::string_view what, Item item) {
    while (!take_symbol(close)) {
      CRETO_TRY(item());
      if (take_symbol(",")) continue;
      CRETO_TRY(expect(close, "`,` or `" + std::string(close) + "` after " + std::string(what)));
      return {};
    }
    return {};
  }

 private:
  const std::vector<Token>& tokens_;
  std::size_t at_ = 0;
};

}  // namespace creto::authz::cedar

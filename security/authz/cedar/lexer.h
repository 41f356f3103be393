#pragma once

#include <string_view>
#include <vector>

#include "cedar/ast.h"
#include "creto/common/result.h"

namespace creto::authz::cedar {

enum class TokenKind : std::uint8_t { identifier, integer, string, symbol, end };

/// Borrows the text that was lexed.
struct Token {
  TokenKind kind = TokenKind::end;
  std::string_view text;  ///< a string's is what stands between the quotes, escapes untouched
  Position where;
};

/// Always ends with an `end` token. Errors: invalid_input with the position: a character that begins nothing, an
/// unclosed string, invalid UTF-8.
Result<std::vector<Token>> lex(std::string_view text);

/// The error all stages of the parser give: "line 3, column 14: `what`".
Error error_at(Position where, std::string what);

/// Errors: the text of the escape that is none.
Result<std::string> unescape_string(const Token& token);
/// As a string, but `*` is a wildcard and `\*` an asterisk.
Result<Pattern> unescape_pattern(const Token& token);

}  // namespace creto::authz::cedar

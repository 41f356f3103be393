#pragma once

#include <string>
#include <vector>

#include "cedar/ast.h"
#include "creto/common/result.h"

namespace creto::authz::cedar {

/// Something wrong in a text that somebody wrote: where, what, and what would help.
struct Problem {
  Position where;  ///< line 0: the text has no lines (JSON); `what` then begins with the path of the member
  std::string what;
  std::string hint = {};  ///< "did you mean `name`?"; may be empty

  friend auto operator<=>(const Problem&, const Problem&) = default;
};

/// "line 3, column 14: found `]`, expected an expression; did you mean …?"
std::string to_string(const Problem& problem);

/// The error "line 3, column 14: …" taken apart again; one without a place has line 0.
Problem problem_of(const Error& error);

/// All of them, one a line, as an invalid_input. Requires: there is one.
Error to_error(const std::vector<Problem>& problems);

/// What came of reading a text to its end: every problem in the order of the text, and the value, which is whole where
/// there is none.
template <class T>
struct Parsed {
  T value;
  std::vector<Problem> problems;

  bool ok() const { return problems.empty(); }
  /// Errors: invalid_input with all problems.
  Result<T> result() && {
    if (!ok()) return to_error(problems);
    return std::move(value);
  }
};

/// The candidate that somebody who wrote `word` may have meant; null where none is near.
const std::string* closest(std::string_view word, const std::vector<std::string>& candidates);
/// "did you mean `name`?", or nothing.
std::string did_you_mean(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace creto::authz::cedar

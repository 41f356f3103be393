#pragma once

namespace creto::detail {
[[noreturn]] void assertion_failed(const char* expression, const char* file, int line);
}

/// States what is true unless we have a bug; always on. What comes from outside is never asserted: it is an Error.
#define CRETO_ASSERT(expression) \
  ((expression) ? static_cast<void>(0) : ::creto::detail::assertion_failed(#expression, __FILE__, __LINE__))

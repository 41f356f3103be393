#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "creto/io/sql.h"

namespace creto::io {

namespace detail {
/// The stored first result, none where the operation has to run.
Result<std::optional<std::string>> recall(sql::Tx& tx, const Context& ctx, std::string_view operation);
Result<> remember(sql::Tx& tx, const Context& ctx, std::string_view operation, Nanos window, std::string_view result);
}  // namespace detail

/// Makes an operation safe to repeat (C7): key, change and result commit together.
///
/// The key is (ctx.org, ctx.caller, `operation`, ctx.idempotency_key). The first call runs `fn() -> Result<T>` and
/// keeps `encode(T) -> std::string` for `window`; a repeat with the same ctx.request_hash gets
/// `decode(std::string_view) -> Result<T>` of it and changes nothing. A failed `fn` is not remembered. Without a key
/// `fn` simply runs. Two at once: one runs, the other gets its result.
///
/// Errors: conflict where the key was used with other content; else what `fn` or `decode` returns.
template <class F, class Encode, class Decode>
auto once(sql::Tx& tx, const Context& ctx, std::string_view operation, Nanos window, F&& fn, Encode&& encode,
          Decode&& decode) -> std::invoke_result_t<F&> {
  if (ctx.idempotency_key.empty()) return fn();
  auto earlier = detail::recall(tx, ctx, operation);
  if (!earlier) return std::move(earlier).error();
  if (*earlier) return decode(std::string_view(**earlier));
  auto result = fn();
  if (!result) return result;
  if (auto kept = detail::remember(tx, ctx, operation, window, encode(*result)); !kept) return std::move(kept).error();
  return result;
}

/// For operations without a result.
template <class F>
Result<> once(sql::Tx& tx, const Context& ctx, std::string_view operation, Nanos window, F&& fn) {
  if (ctx.idempotency_key.empty()) return fn();
  auto earlier = detail::recall(tx, ctx, operation);
  if (!earlier) return std::move(earlier).error();
  if (*earlier) return {};
  if (auto result = fn(); !result) return result;
  return detail::remember(tx, ctx, operation, window, {});
}

/// Removes remembered results whose window has passed; returns how many. For a periodic task.
Result<std::int64_t> forget_expired(sql::Database& db);

}  // namespace creto::io

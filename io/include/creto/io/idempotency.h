#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "creto/io/sql.h"

namespace creto::io {

/// The first result that `once` has kept, as encoded; none where the operation has to run. Errors: as of `once`.
Result<std::optional<std::string>> earlier(sql::Tx& tx, const Context& ctx, std::string_view operation);

namespace detail {
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
  auto first = earlier(tx, ctx, operation);
  if (!first) return std::move(first).error();
  if (*first) return decode(std::string_view(**first));
  auto result = fn();
  if (!result) return result;
  if (auto kept = detail::remember(tx, ctx, operation, window, encode(*result)); !kept) return std::move(kept).error();
  return result;
}

/// For operations without a result.
template <class F>
Result<> once(sql::Tx& tx, const Context& ctx, std::string_view operation, Nanos window, F&& fn) {
  if (ctx.idempotency_key.empty()) return fn();
  auto first = earlier(tx, ctx, operation);
  if (!first) return std::move(first).error();
  if (*first) return {};
  if (auto result = fn(); !result) return result;
  return detail::remember(tx, ctx, operation, window, {});
}

/// For an operation whose change is made elsewhere, by something that is itself safe to repeat: `begin` ties the key to
/// the content before, `finish` keeps the result after. A crash between them leaves the key tied, and a repeat with the
/// same content runs again. `abandon` frees the key, where it is known that nothing happened. Without a key all three
/// do nothing. Results must not be empty.
///
/// `begin` returns the first result, none where the operation has to run. Errors: as of `once`.
Result<std::optional<std::string>> begin(sql::Tx& tx, const Context& ctx, std::string_view operation, Nanos window);
Result<> finish(sql::Tx& tx, const Context& ctx, std::string_view operation, std::string_view result);
Result<> abandon(sql::Tx& tx, const Context& ctx, std::string_view operation);

/// Removes remembered results whose window has passed; returns how many. For a periodic task.
Result<std::int64_t> forget_expired(sql::Database& db);

}  // namespace creto::io

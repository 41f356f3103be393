#include "creto/io/idempotency.h"

#include <fmt/format.h>

#include "creto/common/assert.h"

namespace creto::io {
namespace {

constexpr std::size_t key_length_max = 256;

}  // namespace

Result<std::optional<std::string>> earlier(sql::Tx& tx, const Context& ctx, std::string_view operation) {
  if (ctx.idempotency_key.empty()) return std::nullopt;
  if (ctx.idempotency_key.size() > key_length_max) {
    return Error(Product::platform, ErrorKind::invalid_input,
                 fmt::format("idempotency key must have at most {} characters", key_length_max));
  }
  const auto rows =
      CRETO_TRY(tx.query("SELECT request_hash, result, expires_at FROM idempotency "
                         "WHERE org = $1 AND caller = $2 AND operation = $3 AND key = $4",
                         {ctx.org, ctx.caller_text(), operation, ctx.idempotency_key}));
  if (rows.empty() || rows.front().instant(2) <= tx.now()) return std::optional<std::string>();
  const Bytes& hash = rows.front().bytes(0);
  if (!std::equal(hash.begin(), hash.end(), ctx.request_hash.begin(), ctx.request_hash.end())) {
    return Error(Product::platform, ErrorKind::conflict,
                 fmt::format("idempotency key `{}` was used before with other content", ctx.idempotency_key));
  }
  return std::optional<std::string>(rows.front().text(1));
}

namespace detail {

Result<> remember(sql::Tx& tx, const Context& ctx, std::string_view operation, Nanos window, std::string_view result) {
  const auto kept = CRETO_TRY(
      tx.exec("INSERT INTO idempotency (org, caller, operation, key, request_hash, result, expires_at) "
              "VALUES ($1, $2, $3, $4, $5, $6, $7) "
              "ON CONFLICT (org, caller, operation, key) DO UPDATE SET "
              "request_hash = excluded.request_hash, result = excluded.result, expires_at = excluded.expires_at "
              "WHERE idempotency.expires_at <= $8",
              {ctx.org, ctx.caller_text(), operation, ctx.idempotency_key, ctx.request_hash, result, tx.now() + window,
               tx.now()}));
  if (kept == 0) {
    // Another call with this key committed while ours ran (only where isolation is below serializable).
    return Error(Product::platform, ErrorKind::unavailable, "the same request is being processed; repeat it")
        .with_retry_after(std::chrono::milliseconds(100));
  }
  return {};
}

}  // namespace detail

Result<std::optional<std::string>> begin(sql::Tx& tx, const Context& ctx, std::string_view operation, Nanos window) {
  if (ctx.idempotency_key.empty()) return std::nullopt;
  auto first = CRETO_TRY(earlier(tx, ctx, operation));
  if (!first) CRETO_TRY(detail::remember(tx, ctx, operation, window, {}));
  if (first && first->empty()) first.reset();
  return first;
}

Result<> finish(sql::Tx& tx, const Context& ctx, std::string_view operation, std::string_view result) {
  CRETO_ASSERT(!result.empty());
  if (ctx.idempotency_key.empty()) return {};
  CRETO_TRY(tx.exec("UPDATE idempotency SET result = $5 WHERE org = $1 AND caller = $2 AND operation = $3 AND key = $4",
                    {ctx.org, ctx.caller_text(), operation, ctx.idempotency_key, result}));
  return {};
}

Result<> abandon(sql::Tx& tx, const Context& ctx, std::string_view operation) {
  if (ctx.idempotency_key.empty()) return {};
  CRETO_TRY(
      tx.exec("DELETE FROM idempotency WHERE org = $1 AND caller = $2 AND operation = $3 AND key = $4 "
              "AND result = ''",
              {ctx.org, ctx.caller_text(), operation, ctx.idempotency_key}));
  return {};
}

Result<std::int64_t> forget_expired(sql::Database& db) {
  return sql::write(db, Context(), [](sql::Tx& tx) -> Result<std::int64_t> {
    return tx.exec("DELETE FROM idempotency WHERE expires_at <= $1", {tx.now()});
  });
}

}  // namespace creto::io

#pragma once

#include "creto/io/sql.h"
#include "creto/oversight/oversight.h"

/// The tables of oversight. Functions of a transaction: the service decides what commits together.
namespace creto::oversight::store {

Result<> prepare(sql::Database& database);

Result<> put_policy(sql::Tx& tx, const Context& ctx, const Policy& policy);
Result<std::optional<Policy>> find_policy(sql::Tx& tx, const Context& ctx, const PolicyId& id);
Result<std::vector<Policy>> list_policies(sql::Tx& tx, const Context& ctx);
Result<bool> delete_policy(sql::Tx& tx, const Context& ctx, const PolicyId& id);

/// `dedupe` names agent, action, resource and arguments.
Result<> insert(sql::Tx& tx, const Context& ctx, const Request& request, BytesView dedupe);
/// Writes `request` (whose version is one more) over the one of `expected`. False where that is no longer there.
Result<bool> replace(sql::Tx& tx, const Context& ctx, const Request& request, std::uint64_t expected);
Result<std::optional<Request>> find(sql::Tx& tx, const Context& ctx, const RequestId& id);
/// The newest one with that dedupe hash made at or after `since`.
Result<std::optional<Request>> find_same(sql::Tx& tx, const Context& ctx, BytesView dedupe, Instant since);
Result<std::vector<Request>> list(sql::Tx& tx, const Context& ctx, const RequestFilter& filter);

struct Due {
  std::string org;
  RequestId id;
};
/// Open requests whose next deadline has come, of every organization; at most 100.
Result<std::vector<Due>> due(sql::Tx& tx, Instant now);
/// The earliest deadline of all; none where nothing is open.
Result<std::optional<Instant>> earliest_deadline(sql::Tx& tx);

}  // namespace creto::oversight::store

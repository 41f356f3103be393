#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "creto/io/sql.h"
#include "creto/metering/metering.h"
#include "limits/counters.h"

namespace creto::metering {

/// Metering's tables, in domain words. Every function is one or two statements inside the caller's transaction.
namespace store {

Result<> migrate(sql::Database& database);

/// True where this notice is the first for its limit and window.
Result<bool> insert_notice(sql::Tx& tx, const std::string& org, const Notice& notice);
/// Forgets those of windows that began before; not of windows that have no beginning.
Result<> purge_notices(sql::Tx& tx, Instant before);
Result<> insert_rejected(sql::Tx& tx, const std::string& org, const RejectedEvent& event);
Result<std::vector<RejectedEvent>> list_rejected(sql::Tx& tx, const std::string& org, std::size_t limit);
Result<std::optional<RejectedEvent>> find_rejected(sql::Tx& tx, const std::string& org, std::string_view id);
/// False where it is not there.
Result<bool> delete_rejected(sql::Tx& tx, const std::string& org, std::string_view id);

Result<std::optional<Quota>> find_quota(sql::Tx& tx, const std::string& org, std::string_view id);
Result<std::vector<Quota>> list_quotas(sql::Tx& tx, const std::string& org, std::string_view subject);
Result<> put_quota(sql::Tx& tx, const std::string& org, const Quota& quota);
Result<> delete_quota(sql::Tx& tx, const std::string& org, std::string_view id);
Result<std::optional<SubjectThreshold>> find_threshold(sql::Tx& tx, const std::string& org, std::string_view id);
Result<std::vector<SubjectThreshold>> list_thresholds(sql::Tx& tx, const std::string& org, std::string_view subject);
Result<> put_threshold(sql::Tx& tx, const std::string& org, const SubjectThreshold& threshold);
Result<> delete_threshold(sql::Tx& tx, const std::string& org, std::string_view id);

Result<> put_price(sql::Tx& tx, const std::string& org, const ModelPrice& price);

// Of all organizations, for the start.
Result<std::vector<std::pair<std::string, ModelPrice>>> all_prices(sql::Tx& tx);
Result<std::vector<std::pair<std::string, Quota>>> all_quotas(sql::Tx& tx);
Result<std::vector<std::pair<std::string, SubjectThreshold>>> all_thresholds(sql::Tx& tx);
}  // namespace store
}  // namespace creto::metering

#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "counters.h"
#include "creto/io/sql.h"
#include "creto/metering/metering.h"
#include "ledger/billable.h"

namespace creto::metering {

struct LoadedSubscription {
  std::string org;
  Subscription subscription;
};
/// Metering's tables, in domain words. Every function is one or two statements inside the caller's transaction.
namespace store {

Result<> migrate(sql::Database& database);

/// True where this notice is the first for its limit and window.
Result<bool> insert_notice(sql::Tx& tx, const std::string& org, const Notice& notice);
Result<> insert_rejected(sql::Tx& tx, const std::string& org, const RejectedEvent& event);
Result<std::vector<RejectedEvent>> list_rejected(sql::Tx& tx, const std::string& org, std::size_t limit);
Result<std::optional<RejectedEvent>> find_rejected(sql::Tx& tx, const std::string& org, std::string_view id);
/// False where it is not there.
Result<bool> delete_rejected(sql::Tx& tx, const std::string& org, std::string_view id);

Result<std::optional<Plan>> find_plan(sql::Tx& tx, const std::string& org, std::string_view id, std::int64_t version);
Result<> insert_plan(sql::Tx& tx, const std::string& org, const Plan& plan);
Result<std::vector<Plan>> newest_plans(sql::Tx& tx, const std::string& org);

Result<std::optional<Subscription>> find_subscription(sql::Tx& tx, const std::string& org, const SubscriptionId& id);
Result<std::vector<Subscription>> list_subscriptions(sql::Tx& tx, const std::string& org, std::string_view agent);
Result<> put_subscription(sql::Tx& tx, const std::string& org, const Subscription& subscription);

Result<std::optional<Quota>> find_quota(sql::Tx& tx, const std::string& org, std::string_view id);
Result<std::vector<Quota>> list_quotas(sql::Tx& tx, const std::string& org, std::string_view subject);
Result<> put_quota(sql::Tx& tx, const std::string& org, const Quota& quota);
Result<> delete_quota(sql::Tx& tx, const std::string& org, std::string_view id);
Result<std::optional<SubjectThreshold>> find_threshold(sql::Tx& tx, const std::string& org, std::string_view id);
Result<std::vector<SubjectThreshold>> list_thresholds(sql::Tx& tx, const std::string& org, std::string_view subject);
Result<> put_threshold(sql::Tx& tx, const std::string& org, const SubjectThreshold& threshold);
Result<> delete_threshold(sql::Tx& tx, const std::string& org, std::string_view id);

Result<std::int64_t> next_number(sql::Tx& tx, const std::string& org);
/// `log_end`: what of the usage log it has seen.
Result<> insert_invoice(sql::Tx& tx, const std::string& org, const Invoice& invoice, BlockAddress log_end);
/// What the subscription's last invoice has seen; nothing where there is none.
Result<Seen> last_seen(sql::Tx& tx, const std::string& org, const std::string& subscription);
Result<> sign_invoice(sql::Tx& tx, const std::string& org, const Invoice& invoice);
Result<> set_delivery(sql::Tx& tx, const std::string& org, const Invoice& invoice);
Result<std::optional<Invoice>> find_invoice(sql::Tx& tx, const std::string& org, const InvoiceId& id);
Result<std::vector<Invoice>> list_invoices(sql::Tx& tx, const std::string& org,
                                           const std::optional<SubscriptionId>& subscription);
Result<std::vector<std::pair<std::string, InvoiceId>>> unfinished_invoices(sql::Tx& tx);

// Of all organizations, for the start.
Result<std::vector<std::pair<std::string, Quota>>> all_quotas(sql::Tx& tx);
Result<std::vector<std::pair<std::string, SubjectThreshold>>> all_thresholds(sql::Tx& tx);
Result<std::vector<LoadedSubscription>> all_subscriptions(sql::Tx& tx);
}  // namespace store
}  // namespace creto::metering

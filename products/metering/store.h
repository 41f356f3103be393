#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "counters.h"
#include "creto/io/sql.h"
#include "creto/metering/metering.h"
#include "usage_event.h"

namespace creto::metering {

/// A row of the event table, with whom the event counts for.
struct StoredEvent {
  std::string id;
  std::string agent;
  std::string key;
  Hash256 content{};  ///< SHA3-256 of what was signed
  std::string event_type;
  std::string action;
  std::string subscription;  ///< empty: nobody is billed
  Instant event_time{};
  Instant arrived{};
  std::int64_t units = 0;
  NanoMoney cost = 0;
  Properties properties;
  std::string document;               ///< the envelope as received
  std::vector<std::string> subjects;  ///< agent, ancestors, subscription
};

struct SeenKey {
  std::string event_id;
  Hash256 content{};
};

struct LoadedSubscription {
  std::string org;
  Subscription subscription;
};
struct LoadedUse {
  std::string org, subject, event_type, action;
  std::int64_t units;
  NanoMoney cost;
  Instant arrived;
};

/// Metering's tables, in domain words. Every function is one or two statements inside the caller's transaction.
namespace store {

Result<> migrate(sql::Database& database);

/// The event that first used the key within the window.
Result<std::optional<SeenKey>> find_key(sql::Tx& tx, const std::string& org, const std::string& source,
                                        const std::string& key, Instant not_before);
/// Event, key and attribution. False where the key has just been used by another; nothing is written then.
/// Errors: conflict where the event id exists under another key.
Result<bool> insert_event(sql::Tx& tx, const std::string& org, const StoredEvent& event, Instant keys_not_before);
/// True where this notice is the first for its limit and window.
Result<bool> insert_notice(sql::Tx& tx, const std::string& org, const Notice& notice);
Result<> insert_rejected(sql::Tx& tx, const std::string& org, const RejectedEvent& event);
Result<std::vector<RejectedEvent>> list_rejected(sql::Tx& tx, const std::string& org, std::size_t limit);
Result<> forget_keys(sql::Tx& tx, Instant before);

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

/// What a quota's present window holds already.
Result<std::vector<Limits::Seed>> use_since(sql::Tx& tx, const std::string& org, const Quota& quota, Instant from);
Result<std::vector<UsageRow>> usage(sql::Tx& tx, const std::string& org, const UsageQuery& query,
                                    const Currency& currency);

/// Events of a subscription before `until` that no invoice has, in pages by (time, id).
struct BillableFact {
  EventId id;
  Instant time;
  std::string event_type;
  Properties properties;
};
Result<std::vector<BillableFact>> unbilled(sql::Tx& tx, const std::string& org, const std::string& subscription,
                                           Instant until, std::int64_t after_ns, const std::string& after_id,
                                           std::size_t limit);
Result<> mark_billed(sql::Tx& tx, const std::string& org, const std::string& subscription, Instant until,
                     const std::string& invoice);
Result<std::int64_t> next_number(sql::Tx& tx, const std::string& org);
Result<> insert_invoice(sql::Tx& tx, const std::string& org, const Invoice& invoice);
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
/// In the order of arrival, `limit` at a time, after the given place (advanced).
struct Place {
  std::int64_t arrived_ns = INT64_MIN;
  std::string subject, event_id;
};
Result<std::vector<LoadedUse>> load_use(sql::Tx& tx, Place& after, std::size_t limit);

}  // namespace store
}  // namespace creto::metering

#pragma once

#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "billing/invoicing.h"
#include "creto/io/sql.h"
#include "creto/metering/billing.h"
#include "ledger/block_log.h"

namespace creto::metering {

/// A subscription and how far it is billed.
struct StoredSubscription {
  std::string org;
  Subscription subscription;
  Instant billed_until{};           ///< where its last period invoice ends; at first its start
  BlockAddress seen{};              ///< of the usage log, by its last period invoice
  bool opened = false;              ///< whether its opening needs no more thought
  bool watched = false;             ///< whether its plan may want interim invoices
  std::optional<Instant> due_at{};  ///< when something has to be billed next
};

/// An invoice and what only the service knows of it.
struct StoredInvoice {
  Invoice invoice;
  Instant finalize_at{};   ///< of a draft
  BlockAddress log_end{};  ///< what of the usage log it has seen; segment 0: made before there was one
};

struct StoredCredit {
  Credit credit;
  std::optional<Instant> reset_at{};
};

/// The tables of plans, subscriptions, invoices, credits and coupons, in domain words, inside the caller's transaction.
namespace billing {

/// After store::migrate, whose first version had some of them.
Result<> migrate(sql::Database& database);

Result<std::optional<Plan>> find_plan(sql::Tx& tx, const std::string& org, std::string_view id, std::int64_t version);
Result<> insert_plan(sql::Tx& tx, const std::string& org, const Plan& plan);
Result<std::vector<Plan>> newest_plans(sql::Tx& tx, const std::string& org);

Result<std::optional<StoredSubscription>> find_subscription(sql::Tx& tx, const std::string& org,
                                                            const SubscriptionId& id);
Result<std::vector<Subscription>> list_subscriptions(sql::Tx& tx, const std::string& org, std::string_view agent);
Result<> put_subscription(sql::Tx& tx, const StoredSubscription& stored);
/// Only how far it is billed, and what is due.
Result<> put_progress(sql::Tx& tx, const StoredSubscription& stored);
Result<> put_seen(sql::Tx& tx, const std::string& org, const SubscriptionId& id, BlockAddress seen);
/// Of all organizations, oldest first.
Result<std::vector<StoredSubscription>> all_subscriptions(sql::Tx& tx);
/// At most `limit` of one organization, what is due longest first.
Result<std::vector<StoredSubscription>> due_subscriptions(sql::Tx& tx, Instant now, std::size_t limit);
Result<std::vector<StoredSubscription>> watched_subscriptions(sql::Tx& tx);
Result<> postpone(sql::Tx& tx, const std::string& org, const SubscriptionId& id, Instant until);

/// `count` numbers without a gap; the first.
Result<std::int64_t> next_numbers(sql::Tx& tx, const std::string& org, std::string_view name, std::int64_t count);
Result<> insert_invoice(sql::Tx& tx, const std::string& org, const StoredInvoice& stored);
/// A draft that becomes final.
Result<> finalize(sql::Tx& tx, const std::string& org, const StoredInvoice& stored);
Result<> set_settlement(sql::Tx& tx, const std::string& org, const Invoice& invoice);
Result<> set_delivery(sql::Tx& tx, const std::string& org, const Invoice& invoice);
Result<std::optional<StoredInvoice>> find_invoice(sql::Tx& tx, const std::string& org, const InvoiceId& id);
Result<std::vector<StoredInvoice>> list_invoices(sql::Tx& tx, const std::string& org,
                                                 const std::optional<SubscriptionId>& subscription);
/// Of a subscription, oldest first, also voided ones: of this kind, ending in (after, until].
Result<std::vector<StoredInvoice>> invoices_between(sql::Tx& tx, const std::string& org, const SubscriptionId& id,
                                                    InvoiceKind kind, Instant after, Instant until);
Result<std::optional<StoredInvoice>> find_invoice_until(sql::Tx& tx, const std::string& org, const SubscriptionId& id,
                                                        Instant until);
/// Of one organization, which `org` becomes; oldest periods first.
Result<std::vector<StoredInvoice>> due_drafts(sql::Tx& tx, Instant now, std::size_t limit, std::string& org);
Result<std::vector<StoredInvoice>> drafts_until(sql::Tx& tx, const std::string& org, const SubscriptionId& id,
                                                Instant until);
/// When the earliest period begins of which there is a draft, in any organization.
Result<std::optional<Instant>> first_draft(sql::Tx& tx);
Result<> postpone_draft(sql::Tx& tx, const std::string& org, const InvoiceId& id, Instant until);

struct UnsignedInvoice {
  InvoiceId id;
  std::int64_t number = 0;
  std::string document;
};
/// Final invoices without signature, by number.
Result<std::vector<UnsignedInvoice>> unsigned_invoices(sql::Tx& tx, const std::string& org, std::int64_t after,
                                                       std::size_t limit);
Result<std::vector<std::string>> orgs_with_unsigned(sql::Tx& tx);
Result<> sign_invoice(sql::Tx& tx, const std::string& org, const InvoiceId& id, const Signature& signature);
Result<> insert_batch(sql::Tx& tx, const std::string& org, std::string_view batch, std::uint64_t size,
                      const Hash256& root, const Signature& signature);
Result<> sign_invoice_in(sql::Tx& tx, const std::string& org, const InvoiceId& id, std::string_view batch,
                         const InvoiceProof& proof);

Result<> put_profile(sql::Tx& tx, const std::string& org, const BillingProfile& profile);
/// False where there is none.
Result<bool> delete_profile(sql::Tx& tx, const std::string& org, std::string_view subject);
/// Of one subject unless empty.
Result<std::vector<BillingProfile>> list_profiles(sql::Tx& tx, const std::string& org, std::string_view subject);

Result<> put_coupon(sql::Tx& tx, const std::string& org, const Coupon& coupon);
Result<std::optional<Coupon>> find_coupon(sql::Tx& tx, const std::string& org, std::string_view id);
Result<std::vector<Coupon>> list_coupons(sql::Tx& tx, const std::string& org);
/// False where it is there already.
Result<bool> apply_coupon(sql::Tx& tx, const std::string& org, const SubscriptionId& id, const Coupon& coupon,
                          Instant now);
/// Those that still lower something, in the order in which they were applied.
Result<std::vector<AppliedCoupon>> applied_coupons(sql::Tx& tx, const std::string& org, const SubscriptionId& id);
Result<> use_coupon(sql::Tx& tx, const std::string& org, const SubscriptionId& id, std::string_view coupon);

Result<> put_credit(sql::Tx& tx, const std::string& org, const StoredCredit& stored);
Result<std::optional<StoredCredit>> find_credit(sql::Tx& tx, const std::string& org, const CreditId& id);
Result<std::vector<StoredCredit>> list_credits(sql::Tx& tx, const std::string& org, std::string_view agent);
Result<> put_top_up(sql::Tx& tx, const std::string& org, const TopUp& top_up);
struct StoredTopUp {
  TopUp top_up;
  std::string pending;  ///< the invoice that waits to be paid; empty: none
};
Result<std::optional<StoredTopUp>> find_top_up(sql::Tx& tx, const std::string& org, std::string_view agent);
/// Those of all organizations by which nothing is asked for yet.
struct OpenTopUp {
  std::string org;
  TopUp top_up;
};
Result<std::vector<OpenTopUp>> open_top_ups(sql::Tx& tx);
Result<> set_top_up_pending(sql::Tx& tx, const std::string& org, std::string_view agent, std::string_view invoice);

Result<> insert_note(sql::Tx& tx, const std::string& org, const CreditNote& note);
Result<std::vector<CreditNote>> list_notes(sql::Tx& tx, const std::string& org, const InvoiceId& invoice);

/// Whether the organization has any coupons applied, credits, top-ups, billing profiles; so that most invoices ask no
/// further.
struct Extras {
  bool coupons = false;
  bool credits = false;
  bool profiles = false;
};
Result<Extras> extras(sql::Tx& tx, const std::string& org);

}  // namespace billing
}  // namespace creto::metering

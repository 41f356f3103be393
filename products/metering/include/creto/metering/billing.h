#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/bytes.h"
#include "creto/common/context.h"
#include "creto/common/id.h"
#include "creto/common/money.h"
#include "creto/common/result.h"
#include "creto/common/signature.h"
#include "creto/common/time.h"
#include "creto/metering/plan.h"

namespace creto::metering {

CRETO_ID(CreditId, "crd");
CRETO_ID(CreditNoteId, "cdn");

// --- subscriptions

/// Where periods begin: with the calendar's week, month, quarter or year, or counted from the subscription's first day.
enum class BillingTime : std::uint8_t { calendar, anniversary };
std::string_view to_string(BillingTime billing_time);
Result<BillingTime> billing_time_from_string(std::string_view text);

/// What a subscription is on, from a moment on.
struct SubscriptionTerms {
  std::string plan_id{};
  std::int64_t plan_version = 0;  ///< 0 in a request: the newest
  Decimal quantity = Decimal(1);  ///< multiplies the base fee
  /// JSON that changes the plan for this one: members of the plan, `charges` as an object by charge id, each merged
  /// (RFC 7386). Not id, version or currency. Empty: the plan as it is.
  std::string overrides{};
  Instant from{};
};

/// Binds an agent to plans. Usage of agents below it that have none of their own is billed to it.
struct Subscription {
  SubscriptionId id;
  std::string agent{};
  BillingTime billing_time = BillingTime::calendar;
  std::string time_zone = "UTC";           ///< of its days and periods
  std::vector<SubscriptionTerms> terms{};  ///< by `from`, the first at the start; the last may lie ahead
  Instant started_at{};
  std::optional<Instant> ended_at{};  ///< may lie ahead: the end of a period

  bool has_ended(Instant now) const { return ended_at && *ended_at <= now; }
  bool active_at(Instant when) const { return when >= started_at && (!ended_at || when < *ended_at); }
  /// In force at `when`; the first before the start.
  const SubscriptionTerms& terms_at(Instant when) const;
};

struct NewSubscription {
  std::string agent;  ///< identity of an agent, human or service
  std::string plan_id;
  std::int64_t plan_version = 0;  ///< 0: the newest
  Decimal quantity = Decimal(1);
  BillingTime billing_time = BillingTime::calendar;
  std::string time_zone = "UTC";
  std::string overrides{};
};

enum class SubscriptionEnd : std::uint8_t { now, period_end };

struct SubscriptionChange {
  SubscriptionTerms terms;     ///< `from` is not looked at
  bool at_period_end = false;  ///< else now
};

// --- invoices

/// Who bills or is billed, as invoices name him.
struct BillingParty {
  std::string name{};                  ///< the legal name; at most 256 bytes
  std::vector<std::string> address{};  ///< by line; at most 8, each 1 to 128 bytes
  std::string tax_id{};                ///< at most 64 bytes
  std::string email{};                 ///< at most 254 bytes
  std::vector<std::string> payment{};  ///< of who bills: how to pay him, by line; likewise
  bool empty() const;
  friend bool operator==(const BillingParty&, const BillingParty&) = default;
};
/// Errors: invalid_input naming the field, behind `path`.
Result<> validate(const BillingParty& party, std::string_view path);

/// Whom to name on the invoices of a subscription's agent.
struct BillingProfile {
  std::string subject{};  ///< identity of an agent, human or service
  BillingParty party{};   ///< with a name, without `payment`
};
Result<std::string> to_json(const BillingProfile& profile);
Result<BillingProfile> billing_profile_from_json(std::string_view text);

enum class InvoiceKind : std::uint8_t {
  period,   ///< a period's usage, and in advance the next one's base fee
  opening,  ///< the first base fee in advance
  interim,  ///< usage of a period that goes on
  top_up,   ///< credits bought
};
std::string_view to_string(InvoiceKind kind);
Result<InvoiceKind> invoice_kind_from_string(std::string_view text);

/// draft -> finalized -> paid or voided. Only a draft may still change.
enum class InvoiceStatus : std::uint8_t { draft, finalized, paid, voided };
std::string_view to_string(InvoiceStatus status);
Result<InvoiceStatus> invoice_status_from_string(std::string_view text);

enum class LineKind : std::uint8_t {
  base_fee,
  usage,
  minimum,     ///< what a charge's fee lacks to its minimum
  commitment,  ///< what all fees lack to the plan's commitment
  proration,   ///< a base fee in advance, after a change of terms
  adjustment,  ///< of an earlier period, for what arrived or was corrected after its invoice
  purchase,    ///< of credits
};
std::string_view to_string(LineKind kind);
Result<LineKind> line_kind_from_string(std::string_view text);

/// A fee.
struct InvoiceLine {
  LineKind kind = LineKind::usage;
  std::string charge{};       ///< the charge's id; "base_fee", "commitment" or "credits" where there is none
  std::string description{};  ///< for people
  std::string model{};        ///< of the price; "flat" for fees
  std::string group{};        ///< value of the metric's group_by
  Period period{};            ///< what it is for
  Decimal units{};
  std::int64_t events = 0;
  Decimal exact{};   ///< before the fee's one rounding
  Decimal amount{};  ///< rounded half up to the currency's places
};

enum class InvoiceEntryKind : std::uint8_t { billed, coupon, tax, credit };
std::string_view to_string(InvoiceEntryKind kind);
Result<InvoiceEntryKind> entry_kind_from_string(std::string_view text);

/// What follows the fees, in this order: what interim invoices have billed already, coupons, taxes, credits.
struct InvoiceEntry {
  InvoiceEntryKind kind = InvoiceEntryKind::tax;
  std::string id{};  ///< of the invoice, coupon, tax or credit
  std::string description{};
  Decimal base{};    ///< what it is reckoned on
  Decimal rate{};    ///< in percent; 0 where there is none
  Decimal amount{};  ///< added to the total: not positive for all but taxes
};

/// That an invoice is one of those which one signature covers (docs/formats.md, "Invoice batch").
struct InvoiceProof {
  std::uint64_t size = 0;
  std::uint64_t index = 0;
  Hash256 root{};
  std::vector<Hash256> path{};
};

struct Invoice {
  InvoiceId id;
  InvoiceKind kind = InvoiceKind::period;
  InvoiceStatus status = InvoiceStatus::draft;
  std::int64_t number = 0;  ///< 1, 2, 3, ... without gaps in the organization; 0 of a draft
  SubscriptionId subscription;
  std::string agent{};                ///< billed
  BillingParty issuer{}, customer{};  ///< when it was made final; empty where nothing is known
  std::string plan_id{};
  std::int64_t plan_version = 0;
  std::string plan_name{};
  Period period{};
  std::string time_zone = "UTC";
  Instant issued_at{};  ///< when it was made final; of a draft, when it will be
  std::optional<Instant> due_at{};
  Currency currency = Currency::usd();
  std::vector<InvoiceLine> lines{};
  std::vector<InvoiceEntry> entries{};
  Decimal fees{};      ///< of the lines
  Decimal total{};     ///< to be paid; never negative
  Decimal credited{};  ///< what would have made the total negative: a credit of who is billed

  // What the document does not hold.
  std::string document{};                ///< canonical JSON (docs/formats.md, "Invoice"): what is signed
  std::optional<Signature> signature{};  ///< hybrid, of service:metering, over `signed_text`
  std::optional<InvoiceProof> proof{};   ///< where the signature is of a batch
  std::string pdf_object{};              ///< where storage keeps the PDF; empty until it is there
  bool sent = false;
  std::string settlement{};  ///< whoever paid or voided it says why
};

inline constexpr std::string_view invoice_signature_context = "creto.invoice.v1";
/// What the invoice's signature must be over, under the context above, once its proof holds. Needs no service: with the
/// public key of service:metering anybody can check. Errors: hash_mismatch where the proof does not hold.
Result<std::string> signed_text(const Invoice& invoice);

/// One row per line and entry, with a head; RFC 4180.
std::string invoice_csv(const Invoice& invoice);
/// "INV-000042".
std::string invoice_number_text(std::int64_t number);

/// Where invoices go when they are made. App wires storage, messaging and webhooks behind it. Thread-safe.
class InvoiceDelivery {
 public:
  virtual ~InvoiceDelivery() = default;
  /// Keeps the PDF under Compliance; returns its place. Called again after a crash: the same key must not make a second
  /// object that differs.
  virtual Result<std::string> keep(const Context& ctx, const Invoice& invoice, BytesView pdf) = 0;
  /// Tells who is billed. Called until it succeeds, so at least once.
  virtual Result<> send(const Context& ctx, const Invoice& invoice, BytesView pdf) = 0;
};

// --- credits and coupons

/// At the end of each interval the balance becomes min(rollover_max, max(rollover_min, balance)).
struct CreditReset {
  Interval interval = Interval::monthly;  ///< of the calendar, in UTC
  Decimal rollover_min{};
  Decimal rollover_max{};
};

/// Money that invoices of an agent take before they ask for more: by priority, then what expires first, then the older.
struct Credit {
  CreditId id;
  std::string agent{};
  std::string description{};
  Currency currency = Currency::usd();
  Decimal amount{};   ///< as granted
  Decimal balance{};  ///< what is left
  int priority = 50;  ///< 0..100; lower is taken first
  Instant effective_at{};
  std::optional<Instant> expires_at{};
  std::optional<CreditReset> reset{};
  std::optional<Instant> voided_at{};
};

struct NewCredit {
  std::string agent{};
  std::string description{};
  Money amount{};
  int priority = 50;
  std::optional<Instant> effective_at{};  ///< default: now
  std::optional<Instant> expires_at{};
  std::optional<CreditReset> reset{};
};

/// When an agent's balance falls below `below`, by whatever, an invoice over `amount` is made; paying it grants that.
struct TopUp {
  std::string agent{};
  Money amount{};  ///< 0: no more top-ups
  Decimal below{};
};

struct Coupon {
  std::string id{};  ///< [a-z0-9_.-]{1,64}
  std::string name{};
  Decimal percent{};                    ///< of what is left of the fees; or ...
  std::optional<Money> amount{};        ///< ... a fixed amount, on invoices of its currency
  std::optional<int> periods{};         ///< how many period invoices it lowers, 1..1 000; none: forever
  std::optional<Instant> expires_at{};  ///< cannot be applied from then on
};
Result<std::string> to_json(const Coupon& coupon);
Result<Coupon> coupon_from_json(std::string_view text);

/// Owes part of an invoice back, as a credit. Numbers without gaps: CN-000001.
struct CreditNote {
  CreditNoteId id;
  std::int64_t number = 0;
  InvoiceId invoice;
  Decimal amount{};
  std::string reason{};
  Instant issued_at{};
  std::string document{};  ///< canonical JSON (docs/formats.md, "Credit note")
};

/// The billing half of metering. Thread-safe; every change is audited in its transaction.
class Billing {
 public:
  virtual ~Billing() = default;

  /// A plan's next version, or the newest one where it has the same content.
  virtual Result<Plan> put_plan(const Context& ctx, const Plan& plan) = 0;
  /// `version` 0: the newest.
  virtual Result<Plan> get_plan(const Context& ctx, std::string_view id, std::int64_t version) = 0;
  virtual Result<std::vector<Plan>> list_plans(const Context& ctx) = 0;  ///< the newest of each, by id

  /// From now on. Errors: already_exists where the agent has one that has not ended yet.
  virtual Result<Subscription> subscribe(const Context& ctx, const NewSubscription& subscription) = 0;
  /// Other plan, quantity or overrides: usage before is priced by the old terms, usage after by the new; base fees by
  /// days, the day of the change by the new ones. Replaces a change that lies ahead, and takes an end that lies ahead
  /// back. Errors: conflict where it has
  /// ended, where the currency differs, or where another interval would not begin with a period.
  virtual Result<Subscription> change_subscription(const Context& ctx, const SubscriptionId& id,
                                                   const SubscriptionChange& change) = 0;
  /// Usage after its end, now or that of its present period, is no longer billed to it; what was used before and comes
  /// late still is, for a year. Idempotent; one that shall end with its period may still be ended now.
  virtual Result<Subscription> end_subscription(const Context& ctx, const SubscriptionId& id, SubscriptionEnd end) = 0;
  Result<Subscription> end_subscription(const Context& ctx, const SubscriptionId& id) {
    return end_subscription(ctx, id, SubscriptionEnd::now);
  }
  virtual Result<Subscription> get_subscription(const Context& ctx, const SubscriptionId& id) = 0;
  /// Newest first; of one agent unless empty; at most 1 000.
  virtual Result<std::vector<Subscription>> list_subscriptions(const Context& ctx, std::string_view agent) = 0;

  /// Bills a subscription now instead of when it is due: periods that have ended, without waiting for the end of their
  /// grace; where there are none, an interim invoice over the usage until `until` (default: now) that no invoice has.
  /// Of one that has ended and is billed, what came late since; conflict where nothing did. Returns the last. Repeating
  /// with the same `until` (or idempotency key) returns the same. Errors: invalid_input for a future `until`; conflict
  /// where the last invoice already reaches beyond it.
  virtual Result<Invoice> issue_invoice(const Context& ctx, const SubscriptionId& subscription,
                                        std::optional<Instant> until) = 0;
  /// A draft is reckoned anew.
  virtual Result<Invoice> get_invoice(const Context& ctx, const InvoiceId& id) = 0;
  /// Newest first, drafts before; of one subscription unless none; at most 1 000.
  virtual Result<std::vector<Invoice>> list_invoices(const Context& ctx,
                                                     const std::optional<SubscriptionId>& subscription) = 0;
  virtual Result<Bytes> invoice_pdf(const Context& ctx, const InvoiceId& id) = 0;
  /// Marks a final invoice paid or voided; `settlement` says why (1 to 256 bytes). Voiding gives back the credits it
  /// took. The usage of a voided period stays billed: what comes late for it is on the next invoice; that of an interim
  /// invoice is on the period's. Idempotent. Errors: conflict for a draft, where it is settled otherwise, or where it
  /// shall be voided and gave a credit already, by a note or since it came out negative: a credit note owes the rest.
  virtual Result<Invoice> settle_invoice(const Context& ctx, const InvoiceId& id, InvoiceStatus status,
                                         std::string_view settlement) = 0;
  /// Errors: conflict for drafts and voided invoices, and where all notes would exceed the total.
  virtual Result<CreditNote> issue_credit_note(const Context& ctx, const InvoiceId& invoice, const Decimal& amount,
                                               std::string_view reason) = 0;
  virtual Result<std::vector<CreditNote>> list_credit_notes(const Context& ctx, const InvoiceId& invoice) = 0;

  virtual Result<Credit> grant_credit(const Context& ctx, const NewCredit& credit) = 0;
  /// What is left of it is gone. Idempotent.
  virtual Result<Credit> void_credit(const Context& ctx, const CreditId& id) = 0;
  /// All there ever were, oldest first, with today's balances; at most 1 000.
  virtual Result<std::vector<Credit>> list_credits(const Context& ctx, std::string_view agent) = 0;
  virtual Result<TopUp> set_top_up(const Context& ctx, const TopUp& top_up) = 0;

  /// Creates or replaces; invoices that are final stay as they are.
  virtual Result<BillingProfile> set_billing_profile(const Context& ctx, const BillingProfile& profile) = 0;
  virtual Result<> delete_billing_profile(const Context& ctx, std::string_view subject) = 0;
  /// Of one subject unless empty; by subject, at most 10 000.
  virtual Result<std::vector<BillingProfile>> list_billing_profiles(const Context& ctx, std::string_view subject) = 0;

  /// Creates or replaces; what was applied before stays as it was.
  virtual Result<Coupon> put_coupon(const Context& ctx, const Coupon& coupon) = 0;
  virtual Result<std::vector<Coupon>> list_coupons(const Context& ctx) = 0;
  /// From its next invoice on, after those applied before. Errors: conflict where it has expired; already_exists where
  /// it is applied.
  virtual Result<> apply_coupon(const Context& ctx, const SubscriptionId& subscription, std::string_view coupon) = 0;
};

}  // namespace creto::metering

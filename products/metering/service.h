#pragma once

#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <tuple>

#include "billing/billing_store.h"
#include "billing/facts.h"
#include "billing/invoicing.h"
#include "billing/price_table.h"
#include "creto/authz/authz.h"
#include "creto/consensus/timestamp_source.h"
#include "creto/io/bus.h"
#include "creto/metering/metering.h"
#include "creto/nhi/nhi.h"
#include "ledger/column_store.h"
#include "ledger/ledger.h"
#include "limits/counters.h"
#include "store.h"
#include "usage/intake.h"

namespace creto::metering {

/// The metrics of 001 §10.2.
class MeteringProbe {
 public:
  explicit MeteringProbe(Telemetry& telemetry);
  void ingested() { ingested_.add(); }
  void duplicate() { duplicates_.add(); }
  void rejected() { rejected_.add(); }
  void left_out() { left_out_.add(); }
  void refused() { refused_.add(); }
  void granted() { granted_.add(); }
  void invoiced() { invoices_.add(); }

 private:
  Counter& ingested_;
  Counter& duplicates_;
  Counter& rejected_;
  Counter& left_out_;
  Counter& refused_;
  Counter& granted_;
  Counter& invoices_;
};

/// load -> decide (counters, pricing) -> store -> audit: the one place with order. What was used is in the ledger, what
/// is said about it (plans, quotas, invoices) in the database.
class MeteringService final : public LocalMetering, private authz::Extension, private Attributor {
 public:
  MeteringService(sql::Database& database, nhi::Nhi& nhi, consensus::TimestampSource& timestamps,
                  InvoiceDelivery& delivery, const Clock& clock, Telemetry& telemetry, MeteringOptions options);
  /// Saves what was counted, so that the next start is quick.
  ~MeteringService() override;
  /// Loads what is said, then counts what was used.
  Result<> start(io::FileSystem& files, const std::filesystem::path& directory);

  Result<Ingested> ingest(const Context& ctx, std::string_view envelope) override;
  Result<std::vector<Result<Ingested>>> ingest_batch(const Context& ctx,
                                                     std::span<const std::string> envelopes) override;
  Result<std::vector<Result<Ingested>>> ingest_records(const Context& ctx, const RecordBatch& batch) override;
  Result<> ingest_stream(const Context& ctx, const NextBatch& next, const BatchAnswer& answered) override;
  Result<std::vector<RejectedEvent>> rejected_events(const Context& ctx, std::size_t limit) override;
  Result<Ingested> replay_rejected(const Context& ctx, std::string_view id) override;
  Result<> drop_rejected(const Context& ctx, std::string_view id) override;
  Result<UsageVerification> verify_usage(const Context& ctx) override;

  Result<Plan> put_plan(const Context& ctx, const Plan& plan) override;
  Result<Plan> get_plan(const Context& ctx, std::string_view id, std::int64_t version) override;
  Result<std::vector<Plan>> list_plans(const Context& ctx) override;
  Result<Subscription> subscribe(const Context& ctx, const NewSubscription& subscription) override;
  Result<Subscription> change_subscription(const Context& ctx, const SubscriptionId& id,
                                           const SubscriptionChange& change) override;
  using Billing::end_subscription;
  Result<Subscription> end_subscription(const Context& ctx, const SubscriptionId& id, SubscriptionEnd end) override;
  Result<Subscription> get_subscription(const Context& ctx, const SubscriptionId& id) override;
  Result<std::vector<Subscription>> list_subscriptions(const Context& ctx, std::string_view agent) override;

  Result<Quota> set_quota(const Context& ctx, const Quota& quota) override;
  Result<> delete_quota(const Context& ctx, std::string_view id) override;
  Result<std::vector<Quota>> list_quotas(const Context& ctx, std::string_view subject) override;
  using Metering::quota_state;
  Result<QuotaState> quota_state(const Context& ctx, std::string_view id, std::string_view subject) override;
  Result<CostForecast> forecast_cost(const Context& ctx, const Identity& agent,
                                     contracts::BillingPeriod period) override;
  Result<contracts::QuotaDecision> check_quota(const Context& ctx, const Identity& agent, std::string_view event_type,
                                               std::int64_t units) override;
  Result<SubjectThreshold> set_threshold(const Context& ctx, const SubjectThreshold& threshold) override;
  Result<> delete_threshold(const Context& ctx, std::string_view id) override;
  Result<std::vector<SubjectThreshold>> list_thresholds(const Context& ctx, std::string_view subject) override;

  Result<PriceImport> import_prices(const Context& ctx, std::string_view table,
                                    std::optional<Instant> effective) override;
  Result<std::vector<ModelPrice>> list_prices(const Context& ctx, std::string_view model) override;

  Result<UsageReport> usage(const Context& ctx, const UsageQuery& query) override;
  Result<UsageEventsPage> usage_events(const Context& ctx, const UsageEventsQuery& query) override;
  Result<Invoice> issue_invoice(const Context& ctx, const SubscriptionId& subscription,
                                std::optional<Instant> until) override;
  Result<Invoice> get_invoice(const Context& ctx, const InvoiceId& id) override;
  Result<std::vector<Invoice>> list_invoices(const Context& ctx,
                                             const std::optional<SubscriptionId>& subscription) override;
  Result<Bytes> invoice_pdf(const Context& ctx, const InvoiceId& id) override;
  Result<Invoice> settle_invoice(const Context& ctx, const InvoiceId& id, InvoiceStatus status,
                                 std::string_view settlement) override;
  Result<CreditNote> issue_credit_note(const Context& ctx, const InvoiceId& invoice, const Decimal& amount,
                                       std::string_view reason) override;
  Result<std::vector<CreditNote>> list_credit_notes(const Context& ctx, const InvoiceId& invoice) override;
  Result<Credit> grant_credit(const Context& ctx, const NewCredit& credit) override;
  Result<Credit> void_credit(const Context& ctx, const CreditId& id) override;
  Result<std::vector<Credit>> list_credits(const Context& ctx, std::string_view agent) override;
  Result<TopUp> set_top_up(const Context& ctx, const TopUp& top_up) override;
  Result<BillingProfile> set_billing_profile(const Context& ctx, const BillingProfile& profile) override;
  Result<> delete_billing_profile(const Context& ctx, std::string_view subject) override;
  Result<std::vector<BillingProfile>> list_billing_profiles(const Context& ctx, std::string_view subject) override;
  Result<Coupon> put_coupon(const Context& ctx, const Coupon& coupon) override;
  Result<std::vector<Coupon>> list_coupons(const Context& ctx) override;
  Result<> apply_coupon(const Context& ctx, const SubscriptionId& subscription, std::string_view coupon) override;

  Result<std::optional<contracts::OversightTrigger>> check_cost_threshold(const Context& ctx,
                                                                          const contracts::BillableEvent& event,
                                                                          contracts::BillingPeriod period) override;
  Result<std::vector<contracts::OversightTrigger>> check_multiple_thresholds(
      const Context& ctx, const contracts::BillableEvent& event,
      const std::vector<contracts::CostThreshold>& thresholds) override;
  Result<std::vector<std::optional<contracts::OversightTrigger>>> check_batch(
      const Context& ctx, const std::vector<contracts::BillableEvent>& events,
      contracts::BillingPeriod period) override;
  Result<contracts::AccumulatedCost> accumulated_cost(const Context& ctx, const Identity& agent,
                                                      contracts::BillingPeriod period) override;

  Result<EventId> track_message_event(const Context& ctx, const contracts::MessageBillableEvent& event) override;
  Result<contracts::QuotaDecision> check_message_quota(const Context& ctx, const Identity& agent,
                                                       contracts::MessageEventType type) override;

  Result<contracts::Hold> reserve(const Context& ctx, const contracts::SpendRequest& request) override;
  Result<> release(const Context& ctx, const ReservationId& id) override;

  authz::Extension& quota_enforcer() override { return *this; }
  Result<> attach(bus::Bus& bus) override;
  Result<> tick() override;
  HealthStatus health() override;

 private:
  // authz::Extension
  std::string_view name() const override { return "quota_enforcer"; }
  int priority() const override { return 100; }
  bool denies_on_failure() const override { return true; }
  Nanos budget() const override { return std::chrono::milliseconds(100); }  // memory only; the machine may be busy
  Result<std::optional<authz::Decision>> evaluate(const Context& ctx, const authz::CheckRequest& request) override;

  // Attributor
  Result<Attributed> attribute(const Context& ctx, const Identity& agent, Instant when) override;
  std::uint64_t version() const override;
  Result<> add_subscription(const Context& ctx, const Identity& agent, Instant when, Attributed& found);
  Result<std::shared_ptr<const BillingNeeds>> needs_of(const Context& ctx, const SubscriptionTerms& terms);

  Result<> may_correct(const Context& ctx, std::string_view reporter, std::string_view agent);
  Result<> record_corrections(const Context& ctx, std::string_view reporter,
                              std::span<const RecordView* const> corrections);
  Result<Context> as_reporter(const Context& ctx, std::string_view reporter);
  Result<> verify_envelope(const Context& ctx, const UsageEvent& event) const;
  Result<Intake::Answers> take_envelopes(const Context& ctx, std::span<const Result<UsageEvent>> events);
  Result<Intake::Answers> finish(const Context& ctx, Result<Intake::Answers> answers,
                                 std::vector<Intake::Reached>& reached);
  Result<> tell(const Context& ctx, const Intake::Reached& reached);
  Result<> tell_what_waits();
  Result<> verify_keys(BlockAddress until, UsageVerification& found);
  Result<> verify_batches(BlockAddress until, UsageVerification& found);
  Result<> verify_envelopes(BlockAddress until, UsageVerification& found);
  Result<> verify_heads(UsageVerification& found);
  Result<> verify_columns(UsageVerification& found);
  Result<> put_rules();
  Result<> restore(Ledger& ledger, BytesView counters, Ledger::Saved saved);
  /// False where a notice waits to be told: then nothing was saved.
  Result<bool> checkpoint();
  Result<> cut_log();
  Result<> remove_cut();
  Result<Instant> asked_from(Instant now);
  Result<> verify_base(UsageVerification& found);
  void forget_sessions(Instant now);
  Result<> purge_notices(Instant now);
  Result<> record_head();
  /// What was used of a quota before it is put, as far as the log was read.
  struct Seeding {
    Instant from{};
    std::shared_ptr<const Ledger::Held> held{};
    BlockAddress until{};
    std::vector<Limits::Seed> seeds{};
    SessionLife life{};  ///< of the newest session of the subject's name
  };
  void know_session(const std::string& org, const std::string& subject, const Seeding& seeding);
  /// What a quota counts, or a threshold, as if it were one.
  struct Counted {
    Quota as;
    Currency currency;  ///< of its money
    std::optional<SubjectThreshold> threshold{};
  };
  Result<Counted> counted_of(const Quota& quota) const;
  static Counted counted_of(const SubjectThreshold& threshold);
  Result<std::int64_t> used_in_base(const Ledger& ledger, const std::string& org, const Counted& counted) const;
  Result<> load_base(const Ledger& ledger, Limits& limits) const;
  Result<> read_seeds(const Ledger& ledger, const std::string& org, const Counted& counted, Instant from,
                      Seeding& seeding) const;
  Result<EventEnvelope> signed_envelope(const Context& ctx, std::string_view type, const Identity& agent,
                                        const DelegationChain& chain, std::string payload, EventId id);
  Context own(const Context& ctx) const;
  Context context_of(const bus::BusMessage& message) const;
  Result<> ensure_identity(const Context& ctx);
  Result<DelegationChain> ancestors_of(const Context& ctx, const Identity& agent);
  static Result<NanoMoney> cost_of(const Money& cost);
  std::string_view currency_of(const Money& cost) const;
  Result<std::optional<Money>> expected_cost(const Context& ctx, const contracts::SpendRequest& request,
                                             Instant now) const;
  Result<contracts::OversightTrigger> trigger_of(const CostFinding& finding,
                                                 const contracts::BillableEvent& event) const;
  Error refusal(const Verdict& verdict, Instant now) const;
  Error blind_refusal(const Told& limit, const contracts::SpendRequest& request,
                      const std::optional<Money>& cost) const;

  FactSource facts() const { return {*ledger_, options_.event_ahead_max}; }
  void remember(const std::string& org, const Subscription& subscription);
  void bind(const std::string& org, const std::vector<Subscription>& of_agent, Instant now);
  void let_go_of_ended(Instant now);
  Result<> run_billing();
  Result<> bill_due();
  Result<> ask_ahead(FactSource& source, Instant now, std::size_t count);
  Result<std::size_t> bill_some(Context& ctx, FactSource& source, Instant now);
  Result<std::size_t> finalize_some(Context& ctx, Instant now);
  void log_failure(const Context& ctx, const std::string& of, const Error& why);
  Result<> bill_interims();
  Result<> top_up_low();
  Result<> sign_invoices(const Context& ctx);
  Result<> give_back_credits(sql::Tx& tx, const Context& ctx, const Invoice& invoice);
  Result<> finish_top_up(sql::Tx& tx, const Context& ctx, const Invoice& invoice);
  Result<> deliver(const Context& ctx, const InvoiceId& id);
  std::vector<Result<>> on_usage(std::span<const bus::BusMessage> messages);
  Result<> on_usage_of_org(std::span<const bus::BusMessage> messages, std::span<Result<>> results);
  Result<> on_decision(const Context& ctx, const std::string& body);
  Result<> raise_quota(const Context& ctx, const QuotaRaise& raise, const Context& as_approver);
  Result<> raise_threshold(const Context& ctx, const ThresholdRaise& raise, const Context& as_approver);

  sql::Database& database_;
  nhi::Nhi& nhi_;
  consensus::TimestampSource& timestamps_;
  InvoiceDelivery& delivery_;
  const Clock& clock_;
  Telemetry& telemetry_;
  const MeteringOptions options_;
  const Identity self_;
  MeteringProbe probe_;
  Limits limits_;
  /// What is said of limits, by organization.
  struct Rules {
    std::vector<std::pair<std::string, Quota>> quotas;
    std::vector<std::pair<std::string, SubjectThreshold>> thresholds;
  };
  Result<Rules> read_rules();
  Result<Bytes> count_until(std::uint32_t segment, const Rules& rules);
  static Result<> put(const Rules& rules, Limits& limits, Instant now);
  Rules rules_;  ///< at the start; put again where a checkpoint turns out to be unusable
  std::unique_ptr<Ledger> ledger_;
  std::unique_ptr<ColumnStore> columns_;
  std::unique_ptr<Intake> intake_;
  sql::Signal& identities_changed_;
  std::atomic<std::uint64_t> subscriptions_changed_{0};

  /// Held shared while facts are counted and stored, alone while what counts them changes.
  mutable std::shared_mutex rules_mutex_;
  /// All there ever were, by (org, agent), oldest first. Under `rules_mutex_`.
  std::map<std::pair<std::string, std::string>, std::vector<Subscription>> subscriptions_;
  Instant next_end_ = Instant::max();  ///< of those that shall end; likewise
  mutable std::mutex prices_mutex_;
  std::map<std::string, std::shared_ptr<const PriceTable>> prices_;  ///< by organization
  std::shared_ptr<const PriceTable> prices_of(const std::string& org) const;
  /// Of plans with overrides, by organization, plan, version and overrides: none of them ever changes.
  std::mutex needs_mutex_;
  std::map<std::tuple<std::string, std::string, std::int64_t, std::string>, std::shared_ptr<const BillingNeeds>> needs_;
  /// Notices that could not be published yet.
  std::mutex untold_mutex_;
  std::vector<Intake::Reached> untold_;
  /// When interim invoices were last thought about, where the log ended and what was subscribed to; of `tick`.
  Instant interims_at_{};
  std::unique_ptr<FactSource> running_;  ///< what was used of the periods that may want one; likewise of `tick`
  BlockAddress interims_until_;
  std::uint64_t interims_version_ = 0;
  Instant notices_purged_at_{};  ///< of `tick`
  BlockAddress recorded_;        ///< end of the log in this process's last audit record; of `tick`
  std::mutex cutting_mutex_;     ///< while the log is cut, or counted again
  std::mutex checkpoint_mutex_;
  std::uint64_t saved_events_ = 0;  ///< of the last checkpoint
  std::mutex signing_mutex_;        ///< one batch at a time
  std::mutex identity_mutex_;
  std::set<std::string> orgs_with_identity_;
};

}  // namespace creto::metering

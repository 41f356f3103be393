#pragma once

#include <list>
#include <map>
#include <memory>
#include <span>
#include <tuple>
#include <vector>

#include "billing/billing_store.h"
#include "billing/facts.h"
#include "billing/rating.h"
#include "creto/common/context.h"
#include "creto/common/id.h"

namespace creto::metering {

/// Makes the invoices of one organization inside one transaction: loads, rates, reckons, stores. Not thread-safe.
/// What needs events runs in `with_facts`, and fails with internal where they have to be fetched first.
class Biller {
 public:
  /// What it is given must outlive it.
  Biller(sql::Tx& tx, const Context& ctx, Instant now, FactSource& facts, const BillingParty& issuer)
      : tx_(tx), ctx_(ctx), now_(now), facts_(facts), issuer_(issuer) {}

  /// A plan with overrides, read once.
  Result<std::shared_ptr<const Plan>> plan_of(const SubscriptionTerms& terms);
  /// When the first event may have been used that an invoice of it can still ask for, where no event is older than
  /// `age_max` when it comes. None: no invoice will ask for any. Drafts are not looked at.
  Result<std::optional<Instant>> asks_from(const StoredSubscription& stored, Nanos age_max);
  /// Fills `due_at` and `watched` from what is billed and what is agreed on.
  Result<> schedule(StoredSubscription& stored);

  /// The base fee in advance of the period that `begin` lies in, from then on.
  Result<std::vector<InvoiceLine>> opening_lines(const Subscription& subscription, Instant begin);
  /// The whole period around `when`.
  Result<Period> period_of(const Subscription& subscription, Instant when);

  /// Asks `facts` for what `bill` of these will want, so that many can be billed after one pass over the events.
  Result<> ask_ahead(std::span<StoredSubscription> due);
  /// Bills what each is due next (an opening or a period), in one pass over the events. With `drafts`, periods of plans
  /// with a grace become drafts. One answer each; where it is an error that subscription has not changed. Trouble with
  /// the database fails the whole.
  Result<std::vector<Result<Invoice>>> bill(std::span<StoredSubscription> due, bool drafts);
  /// Whether it has ended and its last period is billed: then only what comes late is.
  static bool is_closed(const StoredSubscription& stored);
  /// The differences that late and corrected events make to the invoices of a closed subscription, as an invoice of
  /// kind period after its end. None where they make none.
  Result<std::optional<Invoice>> bill_late(StoredSubscription& stored, Instant until);
  /// Makes drafts final.
  Result<std::vector<Result<Invoice>>> finalize(std::span<const StoredInvoice> drafts);
  /// As it would be if it were made final now; nothing is stored.
  Result<Invoice> preview(const StoredInvoice& draft);

  /// What an interim invoice is over: all usage of the running period, or of the charges that are billed in advance.
  enum class Scope : std::uint8_t { all, in_advance };
  struct Wanting {
    std::size_t subscription;  ///< place among those that were asked about
    Scope scope;
  };
  /// Which running periods have reached a threshold, or have new usage that is billed in advance; in one pass over the
  /// events. A subscription that cannot be rated wants nothing.
  /// With `ahead`, it goes by all events of the period, also those that lie ahead of now: so what is asked stays the
  /// same as time goes on, and what it answers may be a little early.
  Result<std::vector<Wanting>> wanting_interim(std::span<StoredSubscription> watched, bool ahead);
  /// An interim invoice over the running period's usage until `until`. Requires: that lies in the period.
  Result<Invoice> bill_interim(StoredSubscription& stored, Instant until, Scope scope = Scope::all);

  /// Whether an agent that has credits has less left than a top-up leaves it.
  Result<bool> is_low(const TopUp& rule);
  /// Asks for more, on an invoice of its subscription.
  Result<> top_up(StoredSubscription& stored, const TopUp& rule);

 private:
  struct Job;
  Result<RatedPeriod> rated_period(const Subscription& subscription, Instant begin, Instant end);
  Invoice blank_invoice(const Subscription& subscription, InvoiceKind kind, Period period, const Plan& plan);
  Result<Job> job_of(StoredSubscription& stored, InvoiceKind kind, Period period);
  Result<Job> next_job(StoredSubscription& stored);
  std::vector<FactRange> ranges_of(std::span<Job> jobs, std::vector<Job*>& of_range) const;
  Result<Job> draft_job(const StoredInvoice& draft, std::list<StoredSubscription>& keep);
  Result<> read_facts(std::span<Job> jobs);
  Result<> add_adjustments(Job& job);
  Result<> tell_of_late(const Job& job);
  Result<std::vector<InvoiceEntry>> billed_entries(const Job& job);
  Result<std::vector<InvoiceEntry>> billed_in_advance(const Job& job);
  Result<std::optional<Scope>> interim_due(Job& job);
  Result<> reckon(Job& job);
  Result<> name_parties(Invoice& invoice);
  void make_final(Job& job, std::int64_t number) const;
  Result<> conclude(Job& job);
  Result<> top_up_after(const Job& job);
  Result<Decimal> left_of(std::span<const StoredCredit> credits, const Currency& currency) const;
  Result<std::vector<Result<Invoice>>> run(std::vector<Job>& jobs);

  sql::Tx& tx_;
  const Context& ctx_;
  const Instant now_;
  FactSource& facts_;
  const BillingParty& issuer_;
  std::optional<billing::Extras> extras_;
};

}  // namespace creto::metering

#include "billing/biller.h"

#include <fmt/format.h>

#include <algorithm>

#include "billing/credits.h"
#include "service_words.h"

namespace creto::metering {
namespace {

/// How long after its end what comes late for a subscription is looked for: as long as events are taken.
constexpr Nanos late_for = std::chrono::days(367);
constexpr int credit_of_ours_priority = 0;  // what we owe is taken before what was bought

bool is_trouble(const Error& failed) {
  switch (failed.kind()) {
    case ErrorKind::invalid_input:
    case ErrorKind::not_found:
    case ErrorKind::conflict:
    case ErrorKind::already_exists:
    case ErrorKind::too_large:
      return false;
    default:
      return true;
  }
}

bool by_usage(LineKind kind) {
  return kind == LineKind::usage || kind == LineKind::minimum || kind == LineKind::commitment ||
         kind == LineKind::adjustment;
}

bool wants_interim(const Plan& plan) {
  return !plan.progressive_thresholds.empty() || plan.progressive_step > Decimal() ||
         std::ranges::any_of(plan.charges, &Charge::in_advance);
}

Result<Decimal> sum_of(std::span<const InvoiceLine> lines, auto counts) {
  Decimal total;
  for (const InvoiceLine& line : lines) {
    if (counts(line)) total = CRETO_TRY(Decimal::add(total, line.amount));
  }
  return total;
}

InvoiceEntry billed_entry(const Invoice& interim, const Decimal& amount) {
  return {
      InvoiceEntryKind::billed, interim.id.to_string(), "Billed with " + invoice_number_text(interim.number), {}, {},
      amount.negated()};
}

Result<TimeZone> zone_of(const Subscription& subscription) { return TimeZone::load(subscription.time_zone); }

}  // namespace

/// An invoice in the making.
struct Biller::Job {
  StoredSubscription* stored = nullptr;
  StoredInvoice out;
  bool exists = false;                 ///< as a draft in the store
  std::shared_ptr<const Plan> plan{};  ///< in force when the period ends: its taxes, its payment days
  std::optional<RatedPeriod> rated{};
  Period facts{};                  ///< what its rating wants to see
  const Rating* rating = nullptr;  ///< once it was read
  std::optional<Instant> late{};   ///< the earliest event of before the period that no invoice has seen
  std::optional<Period> gone{};    ///< a period that something came late for, whose events are no longer held
  std::vector<StoredCredit> credits{};
  std::vector<AppliedCoupon> coupons{};
  std::optional<Error> failed{};
  Scope scope = Scope::all;  ///< of an interim invoice

  bool in_advance(const InvoiceLine& line) const {
    const auto charge = std::ranges::find(plan->charges, line.charge, &Charge::id);
    return charge != plan->charges.end() && charge->in_advance;
  }
  Invoice& invoice() { return out.invoice; }
  const Subscription& subscription() const { return stored->subscription; }
};

Result<std::shared_ptr<const Plan>> Biller::plan_of(const SubscriptionTerms& terms) {
  auto& known = facts_.plans()[{ctx_.org, terms.plan_id, terms.plan_version, terms.overrides}];
  if (known) return known;
  const auto plan = CRETO_TRY(billing::find_plan(tx_, ctx_.org, terms.plan_id, terms.plan_version));
  if (!plan) return not_found("plan", terms.plan_id);
  Plan merged = CRETO_TRY(with_overrides(*plan, terms.overrides));
  known = std::make_shared<const Plan>(std::move(merged));
  return known;
}

Result<Period> Biller::period_of(const Subscription& subscription, Instant when) {
  const auto plan = CRETO_TRY(plan_of(subscription.terms_at(when)));
  TimeZone zone = CRETO_TRY(zone_of(subscription));
  return period_at({plan->interval, subscription.billing_time, subscription.started_at, std::move(zone)}, when);
}

Result<std::optional<Instant>> Biller::asks_from(const StoredSubscription& stored, Nanos age_max) {
  const Subscription& subscription = stored.subscription;
  const Instant oldest = now_ - age_max;
  if (is_closed(stored) && *subscription.ended_at <= oldest) return std::optional<Instant>();
  for (const SubscriptionTerms& terms : subscription.terms) {
    const auto plan = CRETO_TRY(plan_of(terms));
    if (looks_back(*plan)) return std::optional(subscription.started_at);
  }
  const Instant first = std::max(subscription.started_at, std::min(stored.billed_until, oldest));
  const Period full = CRETO_TRY(period_of(subscription, first));
  return std::optional(std::max(subscription.started_at, full.begin));
}

Result<> Biller::schedule(StoredSubscription& stored) {
  const Subscription& subscription = stored.subscription;
  for (const SubscriptionTerms& terms : subscription.terms) {
    const auto plan = CRETO_TRY(plan_of(terms));
    stored.watched = stored.watched || wants_interim(*plan);
  }
  if (!stored.opened) {
    stored.due_at = subscription.started_at;
    return {};
  }
  stored.due_at.reset();
  const Period full = CRETO_TRY(period_of(subscription, stored.billed_until));
  if (is_closed(stored)) {
    stored.watched = false;
    if (stored.billed_until - *subscription.ended_at <= late_for) stored.due_at = full.end;
    return {};
  }
  stored.due_at = subscription.ended_at ? std::min(full.end, *subscription.ended_at) : full.end;
  return {};
}

bool Biller::is_closed(const StoredSubscription& stored) {
  const Subscription& subscription = stored.subscription;
  return stored.opened && subscription.ended_at && stored.billed_until >= *subscription.ended_at;
}

Result<std::vector<InvoiceLine>> Biller::opening_lines(const Subscription& subscription, Instant begin) {
  const SubscriptionTerms& terms = subscription.terms_at(begin);
  const auto plan = CRETO_TRY(plan_of(terms));
  const Period full = CRETO_TRY(period_of(subscription, begin));
  const TimeZone zone = CRETO_TRY(zone_of(subscription));
  return base_fee_in_advance({plan, terms.quantity, {begin, full.end}}, full, subscription.started_at, zone);
}

/// What the subscription was on from `begin` to `end`, inside one period.
Result<RatedPeriod> Biller::rated_period(const Subscription& subscription, Instant begin, Instant end) {
  RatedPeriod rated;
  rated.full = CRETO_TRY(period_of(subscription, begin));
  rated.zone = CRETO_TRY(zone_of(subscription));
  rated.subscribed_at = subscription.started_at;
  rated.ends = subscription.ended_at == end;
  for (Instant from = begin; from < end;) {
    const SubscriptionTerms& terms = subscription.terms_at(from);
    const auto next = std::ranges::upper_bound(subscription.terms, from, {}, &SubscriptionTerms::from);
    const Instant until = next == subscription.terms.end() ? end : std::min(end, next->from);
    const auto plan = CRETO_TRY(plan_of(terms));
    rated.phases.push_back({plan, terms.quantity, {from, until}});
    from = until;
  }
  return rated;
}

Invoice Biller::blank_invoice(const Subscription& subscription, InvoiceKind kind, Period period, const Plan& plan) {
  Invoice invoice{.id = InvoiceId::fresh(now_), .kind = kind, .subscription = subscription.id};
  invoice.agent = subscription.agent;
  invoice.plan_id = plan.id;
  invoice.plan_version = plan.version;
  invoice.plan_name = plan.name;
  invoice.period = period;
  invoice.time_zone = subscription.time_zone;
  invoice.currency = plan.currency;
  return invoice;
}

/// Everything of a period's invoice that does not need its events. A subscription without `due_at` has none.
Result<Biller::Job> Biller::job_of(StoredSubscription& stored, InvoiceKind kind, Period period) {
  const Subscription& subscription = stored.subscription;
  const auto plan = CRETO_TRY(plan_of(subscription.terms_at(period.end - Nanos(1))));
  Job job{.stored = &stored, .out = {.invoice = blank_invoice(subscription, kind, period, *plan)}};
  job.plan = plan;
  job.out.log_end = facts_.end();
  if (kind == InvoiceKind::opening) {
    job.invoice().lines = CRETO_TRY(opening_lines(subscription, period.begin));
    return job;
  }
  if (kind == InvoiceKind::period && subscription.ended_at && period.begin >= *subscription.ended_at) return job;
  // An interim invoice sees the period as if nothing else happened in it.
  const Period full = CRETO_TRY(period_of(subscription, period.begin));
  const Instant rated_until = kind == InvoiceKind::interim ? full.end : period.end;
  job.rated = CRETO_TRY(rated_period(subscription, period.begin, rated_until));
  job.facts = {looks_back(*job.rated) ? subscription.started_at : period.begin, period.end};
  return job;
}

std::vector<FactRange> Biller::ranges_of(std::span<Job> jobs, std::vector<Job*>& of_range) const {
  std::vector<FactRange> ranges;
  for (Job& job : jobs) {
    const Invoice& invoice = job.invoice();
    if (!job.rated && invoice.kind != InvoiceKind::period) continue;
    Instant late_before = invoice.kind == InvoiceKind::period ? invoice.period.begin : Instant::min();
    if (!job.rated) {  // after the end there is only what comes late
      job.facts = {invoice.period.begin, invoice.period.begin};
      late_before = *job.subscription().ended_at;
    }
    ranges.push_back({job.subscription().id, job.facts, late_before, job.stored->seen, job.rated});
    of_range.push_back(&job);
  }
  return ranges;
}

Result<> Biller::ask_ahead(std::span<StoredSubscription> due) {
  for (StoredSubscription& stored : due) {
    auto made = schedule(stored) && stored.due_at ? next_job(stored) : not_found("period", "");
    if (!made) continue;  // to be told where it is billed
    std::vector<Job*> of_range;
    facts_.ask(ctx_.org, ranges_of(std::span(&*made, 1), of_range));
  }
  return {};
}

Result<> Biller::read_facts(std::span<Job> jobs) {
  std::vector<Job*> of_range;
  const std::vector<FactRange> ranges = ranges_of(jobs, of_range);
  const auto usage = CRETO_TRY(facts_.read(ctx_.org, ranges));
  for (std::size_t i = 0; i < of_range.size(); ++i) {
    of_range[i]->late = usage[i]->late;
    if (usage[i]->rating) of_range[i]->rating = &*usage[i]->rating;
  }
  return {};
}

/// What arrived or was corrected for earlier periods after their invoices: each is rated again, and the difference to
/// what was billed for it is due.
Result<> Biller::add_adjustments(Job& job) {
  const Instant begin = job.invoice().period.begin;
  if (!job.late || begin <= job.subscription().started_at) return {};
  const auto earlier = CRETO_TRY(billing::invoices_between(tx_, ctx_.org, job.subscription().id, InvoiceKind::period,
                                                           job.subscription().started_at, begin));
  std::vector<const StoredInvoice*> final;
  for (const StoredInvoice& one : earlier) {
    // Invoices from before there was a log were made by other rules; they stay as they are.
    const bool after_end = job.subscription().ended_at && one.invoice.period.begin >= *job.subscription().ended_at;
    if (one.invoice.status != InvoiceStatus::draft && one.log_end.segment > 0 && !after_end) final.push_back(&one);
  }
  for (const StoredInvoice* one : final) {
    const Period period = one->invoice.period;
    if (period.end <= *job.late) continue;
    std::vector<InvoiceLine> before;
    for (const StoredInvoice& any : earlier) {
      for (const InvoiceLine& line : any.invoice.lines) {
        if (by_usage(line.kind) && period.contains(line.period.begin)) before.push_back(line);
      }
    }
    const RatedPeriod rated = CRETO_TRY(rated_period(job.subscription(), period.begin, period.end));
    const Instant from = looks_back(rated) ? job.subscription().started_at : period.begin;
    // By what is left of it, it would cost less than it did.
    if (!facts_.holds(ctx_.org, job.subscription().id, from)) {
      if (!job.gone) job.gone = period;
      continue;
    }
    const FactRange range{job.subscription().id, {from, period.end}, Instant::min(), facts_.end(), rated};
    const auto again = CRETO_TRY(facts_.read(ctx_.org, std::span(&range, 1)));
    std::vector<InvoiceLine> now = CRETO_TRY(again.front()->rating->finish());
    std::erase_if(now, [](const InvoiceLine& line) { return !by_usage(line.kind); });
    const std::vector<InvoiceLine> changed = CRETO_TRY(adjustments(before, now));
    job.invoice().lines.insert(job.invoice().lines.end(), changed.begin(), changed.end());
  }
  return {};
}

Result<std::vector<InvoiceEntry>> Biller::billed_entries(const Job& job) {
  const Invoice& invoice = job.out.invoice;
  std::vector<InvoiceEntry> entries;
  const auto interims = CRETO_TRY(billing::invoices_between(tx_, ctx_.org, job.subscription().id, InvoiceKind::interim,
                                                            invoice.period.begin, invoice.period.end));
  for (const StoredInvoice& one : interims) {
    if (one.invoice.status == InvoiceStatus::voided) continue;
    const Decimal billed = CRETO_TRY(billed_by(one.invoice));
    entries.push_back(billed_entry(one.invoice, billed));
  }
  return entries;
}

/// What of the charges in advance each interim invoice has billed: its lines hold all of the period until then, and its
/// entries name those before that it took off.
Result<std::vector<InvoiceEntry>> Biller::billed_in_advance(const Job& job) {
  const Invoice& invoice = job.out.invoice;
  std::vector<InvoiceEntry> entries;
  std::map<std::string, Decimal> billed;
  const auto interims = CRETO_TRY(billing::invoices_between(tx_, ctx_.org, job.subscription().id, InvoiceKind::interim,
                                                            invoice.period.begin, invoice.period.end));
  for (const StoredInvoice& one : interims) {
    Decimal amount =
        CRETO_TRY(sum_of(one.invoice.lines, [&](const InvoiceLine& line) { return job.in_advance(line); }));
    for (const InvoiceEntry& entry : one.invoice.entries) {
      const auto before = billed.find(entry.id);
      if (entry.kind != InvoiceEntryKind::billed || before == billed.end()) continue;
      amount = CRETO_TRY(Decimal::subtract(amount, before->second));
    }
    billed.emplace(one.invoice.id.to_string(), amount);
    if (one.invoice.status == InvoiceStatus::voided || amount.is_zero()) continue;
    entries.push_back(billed_entry(one.invoice, amount));
  }
  return entries;
}

Result<> Biller::reckon(Job& job) {
  Invoice& invoice = job.invoice();
  Reckoning reckoning;
  reckoning.when = now_;
  if (invoice.kind == InvoiceKind::period) {
    if (job.rating) invoice.lines = CRETO_TRY(job.rating->finish());
    CRETO_TRY(add_adjustments(job));
    if (job.rating && job.subscription().ended_at != invoice.period.end) {
      std::vector<InvoiceLine> next = CRETO_TRY(opening_lines(job.subscription(), invoice.period.end));
      invoice.lines.insert(invoice.lines.end(), next.begin(), next.end());
    }
  } else if (invoice.kind == InvoiceKind::interim) {
    invoice.lines = CRETO_TRY(job.scope == Scope::all ? job.rating->usage_so_far() : job.rating->usage_in_advance());
  }
  if (job.rating && job.stored->watched) {
    reckoning.billed = CRETO_TRY(job.scope == Scope::all ? billed_entries(job) : billed_in_advance(job));
  }
  if (invoice.kind != InvoiceKind::top_up) {
    if (!extras_) extras_ = CRETO_TRY(billing::extras(tx_, ctx_.org));
    if (extras_->coupons) job.coupons = CRETO_TRY(billing::applied_coupons(tx_, ctx_.org, invoice.subscription));
    if (extras_->credits) job.credits = CRETO_TRY(billing::list_credits(tx_, ctx_.org, invoice.agent));
    reckoning.taxes = job.plan->taxes;
  }
  std::vector<Credit> credits;
  for (StoredCredit& stored : job.credits) {
    CRETO_TRY(catch_up(stored.credit, stored.reset_at, now_));
    credits.push_back(stored.credit);
  }
  reckoning.coupons = job.coupons;
  reckoning.credits = credits;
  CRETO_TRY(total_up(invoice, reckoning));
  for (std::size_t i = 0; i < credits.size(); ++i) job.credits[i].credit = credits[i];
  return {};
}

/// As they are called today.
Result<> Biller::name_parties(Invoice& invoice) {
  invoice.issuer = issuer_;
  invoice.customer = {};
  if (!extras_) extras_ = CRETO_TRY(billing::extras(tx_, ctx_.org));
  if (!extras_->profiles) return {};
  auto profiles = CRETO_TRY(billing::list_profiles(tx_, ctx_.org, invoice.agent));
  if (!profiles.empty()) invoice.customer = std::move(profiles.front().party);
  return {};
}

/// Of what came late and no invoice can tell the price of any more.
Result<> Biller::tell_of_late(const Job& job) {
  if (!job.gone) return {};
  return audit_change(
      tx_, ctx_, "invoice_left_late_usage_out", "metering:subscription:" + job.subscription().id.to_string(),
      fmt::format(R"({{"begin":"{}","end":"{}"}})", to_rfc3339(job.gone->begin), to_rfc3339(job.gone->end)));
}

/// Stores a reckoned invoice and all that goes with it.
Result<> Biller::conclude(Job& job) {
  Invoice& invoice = job.invoice();
  const bool final = invoice.status != InvoiceStatus::draft;
  CRETO_TRY(name_parties(invoice));
  invoice.document = CRETO_TRY(invoice_document(invoice));
  if (job.exists) {
    CRETO_TRY(billing::finalize(tx_, ctx_.org, job.out));
  } else {
    CRETO_TRY(billing::insert_invoice(tx_, ctx_.org, job.out));
  }
  if (!final) return {};
  const auto left_out = std::ranges::find(invoice.lines, left_out_charge, &InvoiceLine::charge);
  if (left_out != invoice.lines.end()) {
    CRETO_TRY(audit_change(tx_, ctx_, "invoice_left_events_out", "metering:invoice:" + invoice.id.to_string(),
                           fmt::format(R"({{"events":"{}"}})", left_out->events)));
  }
  CRETO_TRY(tell_of_late(job));
  if (invoice.kind == InvoiceKind::period) {
    job.stored->seen = job.out.log_end;
    if (job.exists) CRETO_TRY(billing::put_seen(tx_, ctx_.org, invoice.subscription, job.out.log_end));
    for (const AppliedCoupon& coupon : job.coupons) {
      CRETO_TRY(billing::use_coupon(tx_, ctx_.org, invoice.subscription, coupon.coupon.id));
    }
  }
  if (!invoice.credited.is_zero()) {
    const Credit owed{.id = CreditId::fresh(now_),
                      .agent = invoice.agent,
                      .description = "Credit of " + invoice_number_text(invoice.number),
                      .currency = invoice.currency,
                      .amount = invoice.credited,
                      .balance = invoice.credited,
                      .priority = credit_of_ours_priority,
                      .effective_at = now_};
    CRETO_TRY(billing::put_credit(tx_, ctx_.org, {owed, {}}));
    extras_->credits = true;
  }
  return {};
}

/// After an invoice took credits: where too little is left, more is asked for.
Result<> Biller::top_up_after(const Job& job) {
  const Invoice& invoice = job.out.invoice;
  if (invoice.status == InvoiceStatus::draft || invoice.kind == InvoiceKind::top_up || !extras_->credits) return {};
  const auto rule = CRETO_TRY(billing::find_top_up(tx_, ctx_.org, invoice.agent));
  if (!rule || !rule->pending.empty() || rule->top_up.amount.amount.is_zero()) return {};
  const Decimal balance = CRETO_TRY(left_of(job.credits, rule->top_up.amount.currency));
  return balance < rule->top_up.below ? top_up(*job.stored, rule->top_up) : Result<>();
}

Result<Decimal> Biller::left_of(std::span<const StoredCredit> credits, const Currency& currency) const {
  Decimal balance;
  for (const StoredCredit& stored : credits) {
    if (stored.credit.currency != currency) continue;
    balance = CRETO_TRY(Decimal::add(balance, worth(stored.credit, now_)));
  }
  return balance;
}

Result<bool> Biller::is_low(const TopUp& rule) {
  if (rule.amount.amount.is_zero()) return false;
  std::vector<StoredCredit> credits = CRETO_TRY(billing::list_credits(tx_, ctx_.org, rule.agent));
  for (StoredCredit& stored : credits) CRETO_TRY(catch_up(stored.credit, stored.reset_at, now_));
  const Decimal balance = CRETO_TRY(left_of(credits, rule.amount.currency));
  return !credits.empty() && balance < rule.below;
}

Result<> Biller::top_up(StoredSubscription& stored, const TopUp& rule) {
  const Subscription& subscription = stored.subscription;
  const auto plan = CRETO_TRY(plan_of(subscription.terms_at(now_)));
  Job purchase{.stored = &stored,
               .out = {.invoice = blank_invoice(subscription, InvoiceKind::top_up, {now_, now_ + Nanos(1)}, *plan)}};
  purchase.plan = plan;
  purchase.out.log_end = facts_.end();
  Invoice& bought = purchase.invoice();
  bought.currency = rule.amount.currency;
  bought.lines.push_back({.kind = LineKind::purchase,
                          .charge = "credits",
                          .description = "Prepaid credits",
                          .model = "flat",
                          .period = bought.period,
                          .units = Decimal(1),
                          .exact = rule.amount.amount,
                          .amount = rule.amount.amount});
  CRETO_TRY(reckon(purchase));
  const std::int64_t number = CRETO_TRY(billing::next_numbers(tx_, ctx_.org, "invoice", 1));
  make_final(purchase, number);
  CRETO_TRY(conclude(purchase));
  CRETO_TRY(billing::set_top_up_pending(tx_, ctx_.org, subscription.agent, bought.id.to_string()));
  return audit_change(tx_, ctx_, "top_up_invoiced", "metering:invoice:" + bought.id.to_string());
}

void Biller::make_final(Job& job, std::int64_t number) const {
  Invoice& invoice = job.invoice();
  invoice.status = InvoiceStatus::finalized;
  invoice.number = number;
  invoice.issued_at = now_;
  if (job.plan->payment_days > 0) invoice.due_at = now_ + std::chrono::days(job.plan->payment_days);
}

/// From jobs to stored invoices. Jobs that fail take no number.
Result<std::vector<Result<Invoice>>> Biller::run(std::vector<Job>& jobs) {
  CRETO_TRY(read_facts(jobs));
  std::int64_t finals = 0;
  for (Job& job : jobs) {
    if (job.failed) continue;
    if (auto reckoned = reckon(job); !reckoned) {
      if (is_trouble(reckoned.error())) return std::move(reckoned).error();
      job.failed = std::move(reckoned).error();
    } else if (job.out.finalize_at <= now_) {
      ++finals;
    }
    // Two subscriptions of one agent share its credits: the next one must see what this one took.
    if (!job.failed && !job.credits.empty() && job.out.finalize_at <= now_) {
      for (const StoredCredit& stored : job.credits) CRETO_TRY(billing::put_credit(tx_, ctx_.org, stored));
    }
  }
  std::int64_t number = 0;
  if (finals > 0) number = CRETO_TRY(billing::next_numbers(tx_, ctx_.org, "invoice", finals));
  const std::int64_t first = number;

  std::vector<Result<Invoice>> answers;
  for (Job& job : jobs) {
    if (job.failed) {
      answers.emplace_back(*job.failed);
      continue;
    }
    if (job.out.finalize_at <= now_) {
      make_final(job, number++);
    } else {
      job.invoice().issued_at = job.out.finalize_at;
    }
    CRETO_TRY(conclude(job));
    CRETO_TRY(top_up_after(job));
    answers.emplace_back(job.invoice());
  }
  if (jobs.size() == 1 && finals == 1) {
    const Invoice& invoice = jobs.front().invoice();
    CRETO_TRY(audit_change(
        tx_, ctx_, "invoice_generated", "metering:invoice:" + invoice.id.to_string(),
        fmt::format(R"({{"number":"{}","total":"{}","currency":"{}"}})", invoice_number_text(invoice.number),
                    invoice.total.to_string(), invoice.currency.code())));
  } else if (finals > 0) {
    CRETO_TRY(audit_change(
        tx_, ctx_, "invoices_generated",
        fmt::format("metering:invoices:{}-{}", invoice_number_text(first), invoice_number_text(number - 1))));
  }
  return answers;
}

/// Of what is due next.
Result<Biller::Job> Biller::next_job(StoredSubscription& stored) {
  if (!stored.opened) {
    const Period full = CRETO_TRY(period_of(stored.subscription, stored.subscription.started_at));
    return job_of(stored, InvoiceKind::opening, {stored.subscription.started_at, full.end});
  }
  CRETO_TRY(schedule(stored));
  CRETO_ASSERT(stored.due_at.has_value());
  return job_of(stored, InvoiceKind::period, {stored.billed_until, *stored.due_at});
}

Result<std::vector<Result<Invoice>>> Biller::bill(std::span<StoredSubscription> due, bool drafts) {
  std::vector<Job> jobs;
  std::vector<std::optional<Error>> refused(due.size());
  std::vector<std::size_t> of_job;
  for (std::size_t i = 0; i < due.size(); ++i) {
    auto made = next_job(due[i]);
    if (!made) {
      if (is_trouble(made.error())) return std::move(made).error();
      refused[i] = std::move(made).error();
      continue;
    }
    if (drafts && made->out.invoice.kind == InvoiceKind::period) {
      made->out.finalize_at = made->out.invoice.period.end + std::chrono::days(made->plan->grace_days);
    }
    jobs.push_back(*std::move(made));
    of_job.push_back(i);
  }
  auto answers = CRETO_TRY(run(jobs));
  std::vector<Result<Invoice>> result;
  std::size_t next = 0;
  for (std::size_t i = 0; i < due.size(); ++i) {
    if (refused[i]) {
      result.emplace_back(*refused[i]);
      continue;
    }
    Result<Invoice>& answer = answers[next++];
    if (answer) {
      StoredSubscription& stored = due[i];
      if (answer->kind == InvoiceKind::opening) {
        stored.opened = true;
      } else {
        stored.billed_until = answer->period.end;
        stored.watched = false;  // interim invoices of the period are dealt with
      }
      CRETO_TRY(schedule(stored));
      CRETO_TRY(billing::put_progress(tx_, stored));
    }
    result.push_back(std::move(answer));
  }
  return result;
}

Result<std::optional<Invoice>> Biller::bill_late(StoredSubscription& stored, Instant until) {
  CRETO_ASSERT(is_closed(stored) && until > stored.billed_until);
  std::vector<Job> jobs;
  {
    Job job = CRETO_TRY(job_of(stored, InvoiceKind::period, {stored.billed_until, until}));
    jobs.push_back(std::move(job));
  }
  Job& job = jobs.front();
  CRETO_TRY(read_facts(jobs));
  CRETO_TRY(add_adjustments(job));
  std::optional<Invoice> made;
  if (!job.invoice().lines.empty()) {
    job.invoice().lines.clear();  // `run` reckons them
    auto answers = CRETO_TRY(run(jobs));
    made = CRETO_TRY(std::move(answers.front()));
  } else {
    CRETO_TRY(tell_of_late(job));
  }
  stored.billed_until = until;
  CRETO_TRY(schedule(stored));
  CRETO_TRY(billing::put_progress(tx_, stored));
  return made;
}

Result<Biller::Job> Biller::draft_job(const StoredInvoice& draft, std::list<StoredSubscription>& keep) {
  auto stored = CRETO_TRY(billing::find_subscription(tx_, ctx_.org, draft.invoice.subscription));
  if (!stored) return not_found("subscription", draft.invoice.subscription.to_string());
  keep.push_back(*std::move(stored));
  keep.back().watched = true;  // its period may have had interim invoices
  Job job = CRETO_TRY(job_of(keep.back(), draft.invoice.kind, draft.invoice.period));
  job.exists = true;
  job.invoice().id = draft.invoice.id;
  return job;
}

Result<std::vector<Result<Invoice>>> Biller::finalize(std::span<const StoredInvoice> drafts) {
  std::list<StoredSubscription> subscriptions;
  std::vector<Job> jobs;
  std::vector<std::optional<Error>> refused(drafts.size());
  for (std::size_t i = 0; i < drafts.size(); ++i) {
    auto job = draft_job(drafts[i], subscriptions);
    if (!job) {
      if (is_trouble(job.error())) return std::move(job).error();
      refused[i] = std::move(job).error();
      continue;
    }
    jobs.push_back(*std::move(job));
  }
  auto answers = CRETO_TRY(run(jobs));
  std::vector<Result<Invoice>> result;
  std::size_t next = 0;
  for (const auto& error : refused) {
    if (error) {
      result.emplace_back(*error);
    } else {
      result.push_back(std::move(answers[next++]));
    }
  }
  return result;
}

Result<Invoice> Biller::preview(const StoredInvoice& draft) {
  std::list<StoredSubscription> subscriptions;
  Job job = CRETO_TRY(draft_job(draft, subscriptions));
  CRETO_TRY(read_facts(std::span(&job, 1)));
  if (job.failed) return *job.failed;
  CRETO_TRY(reckon(job));
  Invoice& invoice = job.invoice();
  invoice.issued_at = draft.finalize_at;
  CRETO_TRY(name_parties(invoice));
  invoice.document = CRETO_TRY(invoice_document(invoice));
  return std::move(invoice);
}

/// Whether the running period should be billed, and what of it. What interim invoices were over counts as asked for,
/// also where they were voided.
Result<std::optional<Biller::Scope>> Biller::interim_due(Job& job) {
  const auto interims = CRETO_TRY(billing::invoices_between(tx_, ctx_.org, job.subscription().id, InvoiceKind::interim,
                                                            job.invoice().period.begin, job.invoice().period.end));
  const auto in_advance = [&](const InvoiceLine& line) { return job.in_advance(line); };
  const auto in_arrears = [&](const InvoiceLine& line) { return !job.in_advance(line); };
  Decimal asked_in_advance;
  Decimal asked_in_arrears;
  for (const StoredInvoice& one : interims) {
    asked_in_advance = CRETO_TRY(sum_of(one.invoice.lines, in_advance));
    if (std::ranges::any_of(one.invoice.lines, in_arrears))
      asked_in_arrears = CRETO_TRY(sum_of(one.invoice.lines, in_arrears));
  }
  const std::vector<InvoiceLine> lines = CRETO_TRY(job.rating->usage_so_far());
  const Decimal used_in_advance = CRETO_TRY(sum_of(lines, in_advance));
  const Decimal used_in_arrears = CRETO_TRY(sum_of(lines, in_arrears));
  const Decimal asked = CRETO_TRY(Decimal::add(asked_in_advance, asked_in_arrears));
  const Decimal used = CRETO_TRY(Decimal::add(used_in_advance, used_in_arrears));
  const auto crossed =
      CRETO_TRY(thresholds_crossed(job.plan->progressive_thresholds, job.plan->progressive_step, asked, used));
  if (!crossed.empty()) return std::optional(Scope::all);
  return used_in_advance > asked_in_advance ? std::optional(Scope::in_advance) : std::nullopt;
}

Result<std::vector<Biller::Wanting>> Biller::wanting_interim(std::span<StoredSubscription> watched, bool ahead) {
  std::vector<Job> jobs;
  std::vector<std::size_t> of_job;
  for (std::size_t i = 0; i < watched.size(); ++i) {
    if (now_ <= watched[i].billed_until) continue;
    auto job = job_of(watched[i], InvoiceKind::interim, {watched[i].billed_until, now_});
    if (!job) {
      if (is_trouble(job.error())) return std::move(job).error();
      continue;
    }
    if (ahead) job->facts.end = job->rated->full.end;
    jobs.push_back(*std::move(job));
    of_job.push_back(i);
  }
  CRETO_TRY(read_facts(jobs));
  std::vector<Wanting> wanting;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    if (jobs[i].failed) continue;
    const auto due = CRETO_TRY(interim_due(jobs[i]));
    if (due) wanting.push_back({of_job[i], *due});
  }
  return wanting;
}

Result<Invoice> Biller::bill_interim(StoredSubscription& stored, Instant until, Scope scope) {
  CRETO_ASSERT(until > stored.billed_until);
  std::vector<Job> jobs;
  {
    Job job = CRETO_TRY(job_of(stored, InvoiceKind::interim, {stored.billed_until, until}));
    job.scope = scope;
    jobs.push_back(std::move(job));
  }
  stored.watched = true;  // the period's invoice has to look for it
  CRETO_TRY(billing::put_progress(tx_, stored));
  auto answers = CRETO_TRY(run(jobs));
  return std::move(answers.front());
}

}  // namespace creto::metering

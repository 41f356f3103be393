#include "limits/limits_impl.h"

// What has been spent, and whether a human should know.
namespace creto::metering {
namespace {

using contracts::BillingPeriod;
using contracts::ThresholdAction;

BillingPeriod period_of(WindowKind window) {
  switch (window) {
    case WindowKind::transaction:
      return BillingPeriod::transaction;
    case WindowKind::hour:
      return BillingPeriod::hour;
    case WindowKind::day:
      return BillingPeriod::day;
    case WindowKind::month:
      return BillingPeriod::month;
    default:
      return BillingPeriod::lifetime;
  }
}

}  // namespace

std::optional<CostFinding> Limits::check_cost(const Use& use, BillingPeriod period, Instant now) {
  const Targets targets = impl_->find_targets(use);
  const NanoMoney accounted = targets.words.currency == 0 ? use.cost : 0;
  const auto wanted = [&](const Terms& said) {
    return said->family == Terms::Family::threshold && said->currency == targets.words.currency &&
           (said->window == WindowKind::transaction || period_of(said->window) == period);
  };
  const auto unusual = [&](const Account& account, std::int64_t ns) {
    const Extra* beyond = account.extra(impl_->books);
    if (beyond == nullptr) return false;
    const NanoMoney bound = beyond->costs.unusual.get();
    return bound > 0 && add_saturating(account.cost_in(impl_->books, hour_cost, ns), accounted) > bound;
  };
  const auto within = [&](Account& account, bool own) {
    if (impl_->books.terms.replaced(account.defaults())) return false;
    // An hour that is over has to be learnt from first.
    constexpr std::int64_t hour_ns = Nanos(std::chrono::hours(1)).count();
    const std::int64_t ns = std::max(ns_of(now), account.stamp());
    const bool learns = account.extra(impl_->books) != nullptr && account.stamp() / hour_ns != ns / hour_ns;
    if (own && (learns || unusual(account, ns))) return false;
    const bool roomy_enough = account.all_of(impl_->books, [&](const Terms& said, bool roomy) {
      if (!wanted(said)) return true;
      return use.cost <= (said->window == WindowKind::transaction ? said->limit : roomy ? said->margin : INT64_MIN);
    });
    if (roomy_enough) return true;
    for (int attempt = 0; attempt < 8; ++attempt) {
      const std::uint32_t version = account.version();
      if ((version & 1) != 0) continue;
      bool certain = true;
      account.each(impl_->books, [&](const Account::Counter& counter, const Terms& said) {
        if (certain && wanted(said))
          certain = add_saturating(taken(account, counter, said, ns), use.cost) <= said->limit;
      });
      if (account.is_still(version)) return certain;
    }
    return false;
  };

  for (std::size_t i = 0; i < targets.count; ++i) {
    const bool own = i == 0 && targets.agent_known;
    const AccountNumber number = targets.accounts[i];
    Account& account = impl_->at(number);
    if (within(account, own)) continue;
    const std::scoped_lock lock(account);
    account.bring_up(impl_->books, ns_of(now));
    const std::int64_t ns = account.stamp();
    std::optional<CostFinding> finding;
    account.each(impl_->books, [&](const Account::Counter& counter, const Terms& said) {
      if (finding || !wanted(said)) return;
      const NanoMoney with_use = add_saturating(taken(account, counter, said, ns), use.cost);
      if (with_use <= said->limit) return;
      finding = CostFinding{said->each ? said->id : account.own_id(impl_->books, counter.position),
                            impl_->names.subject(number),
                            period_of(said->window),
                            with_use,
                            said->limit,
                            said->currency_code,
                            said->action,
                            said->approvers,
                            {}};
    });
    if (!finding && own && unusual(account, ns)) {
      const Costs& costs = account.obtain_extra(impl_->books).costs;
      const NanoMoney hour = add_saturating(costs.totals[hour_cost].get(), accounted);
      const Expectation expected = account.expect(impl_->books, ns);
      finding = CostFinding{"anomaly",
                            impl_->names.subject(number),
                            BillingPeriod::hour,
                            hour,
                            costs.unusual.get(),
                            {},
                            ThresholdAction::require_approval,
                            {},
                            CostFinding::Anomaly{expected.mean / 1e9, static_cast<double>(hour) / 1e9,
                                                 confidence_unusual(expected, static_cast<double>(hour))}};
    }
    if (finding) return finding;
  }
  // Those who used nothing yet have the defaults of their kind.
  for (std::size_t kind = 0; kind < subject_kinds; ++kind) {
    if (!targets.unseen[kind]) continue;
    for (const std::uint32_t number :
         impl_->books.terms.set(impl_->books.terms.defaults(targets.org, static_cast<SubjectKind>(kind)))) {
      const Terms& said = impl_->books.terms[number];
      if (!wanted(said) || use.cost <= said->limit) continue;
      return CostFinding{said->id,
                         std::string(use.agent),
                         period_of(said->window),
                         use.cost,
                         said->limit,
                         said->currency_code,
                         said->action,
                         said->approvers,
                         {}};
    }
  }
  return std::nullopt;
}

template <class IsCandidate, class Found>
bool Limits::Impl::find_blind(const Targets& targets, Instant now, IsCandidate is_candidate, Found found) {
  const std::uint32_t currency = targets.words.currency;
  // Beside it, something may be said of this very currency.
  const auto sees = [&](const Terms& said, const Terms& other) {
    if (currency == 0 || other->family != said->family || other->measure != Measure::cost ||
        other->currency != currency || other->window != said->window)
      return false;
    if (said->family == Terms::Family::threshold) return other->action != ThresholdAction::notify_only;
    return other->rolling_length == said->rolling_length && other->overflow != Overflow::allow_with_notification &&
           other.is_about(targets.words);
  };
  for (const AccountNumber number : targets.span()) {
    Account& account = at(number);
    const std::scoped_lock lock(account);
    account.bring_up(books, ns_of(now));
    bool done = false;
    account.each(books, [&](const Account::Counter& counter, const Terms& said) {
      if (done || !is_candidate(said)) return;
      bool seen = false;
      account.each(books, [&](const Account::Counter&, const Terms& other) { seen = seen || sees(said, other); });
      if (seen) return;
      done = true;
      found(number, &counter, said);
    });
    if (done) return true;
  }
  for (std::size_t kind = 0; kind < subject_kinds; ++kind) {
    if (!targets.unseen[kind]) continue;
    const auto defaults = books.terms.set(books.terms.defaults(targets.org, static_cast<SubjectKind>(kind)));
    for (const std::uint32_t one : defaults) {
      const Terms& said = books.terms[one];
      if (!is_candidate(said)) continue;
      if (std::ranges::any_of(defaults, [&](std::uint32_t other) { return sees(said, books.terms[other]); })) continue;
      found(AccountNumber::none, nullptr, said);
      return true;
    }
  }
  return false;
}

std::optional<Told> Limits::blind_limit(const Use& use, Instant now) {
  const Targets targets = impl_->find_targets(use);
  const auto refuses = [&](const Terms& said) {
    if (said->measure != Measure::cost || !said.is_about(targets.words)) return false;
    if (targets.words.currency == 0 && said->currency != 0) return false;
    return said->family == Terms::Family::threshold ? said->overflow == Overflow::block
                                                    : said->overflow != Overflow::allow_with_notification;
  };
  std::optional<Told> told;
  impl_->find_blind(
      targets, now, refuses, [&](AccountNumber number, const Account::Counter* counter, const Terms& said) {
        told =
            Told{said->id, std::string(use.agent), said->event_type, said->measure, said->window, said->currency_code};
        if (counter == nullptr) return;
        told->subject = impl_->names.subject(number);
        if (!said->each) told->id = impl_->at(number).own_id(impl_->books, counter->position);
      });
  return told;
}

std::optional<CostFinding> Limits::blind_threshold(const Use& use, BillingPeriod period, Instant now) {
  const Targets targets = impl_->find_targets(use);
  if (targets.words.currency == 0) return std::nullopt;
  const auto asks = [&](const Terms& said) {
    return said->family == Terms::Family::threshold && said->action != ThresholdAction::notify_only &&
           (said->window == WindowKind::transaction || period_of(said->window) == period);
  };
  std::optional<CostFinding> finding;
  impl_->find_blind(targets, now, asks, [&](AccountNumber number, const Account::Counter* counter, const Terms& said) {
    finding = CostFinding{said->id,
                          std::string(use.agent),
                          period_of(said->window),
                          0,
                          said->limit,
                          said->currency_code,
                          said->action,
                          said->approvers,
                          {}};
    if (counter == nullptr) return;
    Account& account = impl_->at(number);
    finding->subject = impl_->names.subject(number);
    finding->with_use = taken(account, *counter, said, account.stamp());
    if (!said->each) finding->id = account.own_id(impl_->books, counter->position);
  });
  return finding;
}

std::optional<NanoMoney> Limits::used_of(std::string_view org, const SubjectThreshold& threshold, Instant now,
                                         std::string_view subject) {
  const bool each = each_of(threshold.subject).has_value();
  const std::shared_lock stay(impl_->sessions_gate);
  const AccountNumber number = impl_->find(org, each ? subject : threshold.subject);
  if (number == AccountNumber::none) return std::nullopt;
  Account& account = impl_->at(number);
  const std::scoped_lock lock(account);
  account.bring_up(impl_->books, ns_of(now));
  std::optional<NanoMoney> used;
  account.each(impl_->books, [&](const Account::Counter& counter, const Terms& said) {
    if (said->family != Terms::Family::threshold || said->each != each) return;
    if ((each ? said->id : account.own_id(impl_->books, counter.position)) == threshold.threshold.threshold_id)
      used = counter.used.get();
  });
  return used;
}

NanoMoney Limits::cost_with(const Use& use, BillingPeriod period, Instant now) {
  const AccountNumber number = impl_->find(use.org, use.agent);
  const auto window = cost_window_of(period);
  if (number == AccountNumber::none || !window) return use.cost;
  Account& account = impl_->at(number);
  const std::scoped_lock lock(account);
  const std::int64_t ns = std::max(ns_of(now), account.stamp());
  const Extra* beyond = account.extra(impl_->books);
  const NanoMoney held = beyond == nullptr ? 0 : beyond->costs.held.get();
  return add_saturating(add_saturating(account.cost_in(impl_->books, *window, ns), held), use.cost);
}

std::optional<CostTotals> Limits::costs(std::string_view org, std::string_view subject, BillingPeriod period,
                                        Instant now) {
  const std::shared_lock stay(impl_->sessions_gate);
  const AccountNumber number = impl_->find(org, subject);
  const auto window = cost_window_of(period);
  if (number == AccountNumber::none || !window) return std::nullopt;
  Account& account = impl_->at(number);
  const std::scoped_lock lock(account);
  account.bring_up(impl_->books, ns_of(now));
  CostTotals totals;
  const Extra* beyond = account.extra(impl_->books);
  if (beyond == nullptr) return totals;
  totals.total = beyond->costs.totals[*window].get();
  beyond->costs.each_type([&](std::uint32_t type, const auto& values) {
    if (values[*window] != 0) totals.by_event_type.emplace_back(impl_->books.terms.word(type), values[*window]);
  });
  std::ranges::sort(totals.by_event_type);
  return totals;
}

std::optional<Forecast> Limits::forecast(std::string_view org, std::string_view subject, BillingPeriod period,
                                         Instant now) {
  const std::shared_lock stay(impl_->sessions_gate);
  const AccountNumber number = impl_->find(org, subject);
  const auto window = cost_window_of(period);
  if (number == AccountNumber::none || !window || period == BillingPeriod::lifetime) return std::nullopt;
  Account& account = impl_->at(number);
  const std::scoped_lock lock(account);
  account.bring_up(impl_->books, ns_of(now));
  const Extra* beyond = account.extra(impl_->books);
  constexpr std::int64_t hour_ns = Nanos(std::chrono::hours(1)).count();
  const std::int64_t ns = account.stamp();
  const std::int64_t end = unix_ns(calendar_window(cost_windows[*window], from_unix_ns(ns)).end);
  Forecast told;
  told.until_ns = end;
  if (beyond == nullptr) return told;
  told = metering::forecast(beyond->costs.rhythm, beyond->rare == nullptr ? nullptr : beyond->rare->week.get(),
                            account.cost_in(impl_->books, *window, ns), account.cost_in(impl_->books, hour_cost, ns),
                            ns / hour_ns, end / hour_ns);
  told.until_ns = end;
  return told;
}

}  // namespace creto::metering

#include "limits/counters.h"

#include <fmt/format.h>

#include "limits/limits_impl.h"

namespace creto::metering {
namespace {

using contracts::ThresholdAction;

constexpr std::int64_t hour_ns = Nanos(std::chrono::hours(1)).count();

/// Accounts of a settlement: those of its hold and those of the use.
constexpr std::size_t locked_max = accounts_per_use_max;
/// How many facts ahead of the one that is counted memory is asked for.
constexpr std::size_t prefetched_ahead = 4;

/// What counts of a use against these terms; none where they have nothing to say about it.
std::optional<std::int64_t> asked(const Terms& terms, const Use& use) {
  if (terms->family == Terms::Family::threshold && terms->overflow != Overflow::block) return std::nullopt;
  if (terms->measure == Measure::cost && use.cost <= 0) {
    // What does not say its cost still needs that something is left.
    if (use.free || terms->window == WindowKind::transaction) return std::nullopt;
    return 1;
  }
  return terms.amount(use.units, use.cost);
}

void describe(Verdict& verdict, const Terms& terms, std::uint32_t number, std::int64_t used) {
  verdict.limited = true;
  verdict.terms = number;
  verdict.limit = terms->limit;
  verdict.used = used;
}

bool has_less_left(const Terms& terms, const Use& use, std::int64_t used, const Verdict& than) {
  if (terms->measure == Measure::cost && use.cost <= 0) return false;  // it was not about money
  return !than.limited || add_saturating(terms->limit, -used) < add_saturating(than.limit, -than.used);
}

Verdict::Kind refusal(const Terms& terms) {
  if (terms->family == Terms::Family::threshold) return Verdict::Kind::budget_exceeded;
  return terms->overflow == Overflow::block ? Verdict::Kind::quota_exceeded : Verdict::Kind::oversight_required;
}

/// What blocks goes before what a human might allow.
bool outranks(Verdict::Kind kind, const std::optional<Verdict>& other) {
  return !other || (other->kind == Verdict::Kind::oversight_required && kind != Verdict::Kind::oversight_required);
}

/// The same question, put twice, has the same hash.
std::uint64_t content_of(const Use& use, const Targets& targets) {
  std::uint64_t hash = std::hash<std::string_view>()(use.event_type);
  const auto mix = [&](std::uint64_t value) {
    hash = (hash ^ value) * 0x9E3779B97F4A7C15ull;
    hash ^= hash >> 29;
  };
  mix(std::hash<std::string_view>()(use.action));
  mix(std::hash<std::string_view>()(use.currency));
  for (const auto& [property, value] : use.properties) {
    mix(std::hash<std::string_view>()(property));
    mix(std::hash<std::string_view>()(value));
  }
  mix(static_cast<std::uint64_t>(targets.accounts[0]));
  return hash;
}

/// Locks accounts in the order of their numbers.
class Locked {
 public:
  Locked(const Limits::Impl& impl, std::span<const AccountNumber> numbers) : count_(numbers.size()) {
    CRETO_ASSERT(numbers.size() <= accounts_.size());
    std::array<AccountNumber, locked_max> sorted{};
    std::ranges::copy(numbers, sorted.begin());
    std::sort(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(count_));
    for (std::size_t i = 0; i < count_; ++i) {
      accounts_[i] = &impl.at(sorted[i]);
      accounts_[i]->lock();
    }
  }
  ~Locked() {
    for (std::size_t i = count_; i-- > 0;) accounts_[i]->unlock();
  }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;

 private:
  std::array<Account*, locked_max> accounts_{};
  std::size_t count_;
};

}  // namespace

std::string_view session_of(PropertyViews properties) {
  std::string_view sandbox;
  for (const auto& [name, value] : properties) {
    if (name == "session" && !value.empty()) return value;
    if (name == "sandbox_id") sandbox = value;
  }
  return sandbox;
}

// --- who is asked

AccountNumber Limits::Impl::find(std::string_view org, std::string_view subject) const {
  const OrgNumber number = names.find_org(org);
  return number == OrgNumber::none ? AccountNumber::none : names.find(number, subject);
}

AccountNumber Limits::Impl::obtain(OrgNumber org, std::string_view subject) {
  return names.obtain(org, subject,
                      [&](AccountNumber number, bool anew) { set_up(org, subject_kind(subject), number, anew); });
}

AccountNumber Limits::Impl::obtain_session(OrgNumber org, std::string_view name) {
  return names.obtain_session(
      org, name, [&](AccountNumber number, bool anew) { set_up(org, SubjectKind::session, number, anew); });
}

void Limits::Impl::set_up(OrgNumber org, SubjectKind kind, AccountNumber number, bool anew) {
  if (anew) accounts.make();
  Account& account = at(number);
  const std::scoped_lock lock(account);
  if (kind == SubjectKind::session) {
    // Younger than a copy that is being made.
    const auto index = static_cast<std::uint32_t>(number);
    if (copy.active.load(std::memory_order_acquire) && index <= copy.last) copy.done[index] = 1;
    account.obtain_extra(books).life = {};
  }
  account.follow(books, books.terms.obtain_defaults(org, kind));
}

namespace {

template <class Lookup, class LookupSession>
void take_accounts(Targets& targets, const Use& use, const Limits::Impl& impl, Lookup lookup,
                   LookupSession lookup_session) {
  CRETO_ASSERT(use.chain.size() <= delegation_chain_max_depth);
  AccountNumber billed_to = AccountNumber::none;
  const auto take_as = [&](SubjectKind kind, AccountNumber number) {
    if (number == AccountNumber::none) {
      targets.unseen[static_cast<std::size_t>(kind)] = true;
      return;
    }
    targets.push(number);
    if (billed_to == AccountNumber::none) billed_to = impl.at(number).billed_to();
  };
  const auto take = [&](std::string_view subject) { take_as(subject_kind(subject), lookup(subject)); };
  take(use.agent);
  targets.agent_known = targets.count > 0;
  for (auto ancestor = use.chain.rbegin(); ancestor != use.chain.rend(); ++ancestor) {
    if (ancestor->text() != use.agent) take(ancestor->text());
  }
  if (impl.books.terms.defaults(targets.org, SubjectKind::session) != 0) {
    if (const std::string_view session = session_of(use.properties); !session.empty()) {
      targets.sessions = std::shared_lock(impl.sessions_gate);
      targets.session = lookup_session(session);
      take_as(SubjectKind::session, targets.session);
    }
  }
  if (use.subscription) billed_to = use.subscription->empty() ? AccountNumber::none : lookup(*use.subscription);
  targets.push(billed_to);
}

}  // namespace

Targets Limits::Impl::find_targets(const Use& use) const {
  Targets targets;
  targets.org = names.find_org(use.org);
  if (targets.org == OrgNumber::none) return targets;  // nobody has said or used anything there
  targets.words = books.terms.words(targets.org, use.event_type, use.action, use.properties, use.currency);
  const auto ahead = [&](AccountNumber likely) { at(likely).prefetch_to_ask(); };
  take_accounts(
      targets, use, *this, [&](std::string_view subject) { return names.find(targets.org, subject, ahead); },
      [&](std::string_view session) { return names.find_session(targets.org, session, ahead); });
  return targets;
}

Targets Limits::Impl::obtain_targets(const Use& use) {
  Targets targets;
  targets.org = names.obtain_org(use.org);
  targets.words = books.terms.learn(targets.org, use.event_type, use.action, use.properties, use.currency);
  take_accounts(
      targets, use, *this, [&](std::string_view subject) { return obtain(targets.org, subject); },
      [&](std::string_view session) { return obtain_session(targets.org, session); });
  return targets;
}

// --- what is answered

bool Limits::Impl::is_roomy(AccountNumber number, const Use& use, const Words& words) const {
  Account& account = at(number);
  if (books.terms.replaced(account.defaults())) return false;
  return account.all_of(books, [&](const Terms& said, bool roomy) {
    const auto amount = said.counts(words) ? asked(said, use) : std::nullopt;
    if (!amount || said->overflow == Overflow::allow_with_notification) return true;
    return *amount <= (said->window == WindowKind::transaction ? said->limit : roomy ? said->margin : INT64_MIN);
  });
}

/// True where it is certain, without a lock, that nothing in the account refuses. False says nothing.
bool Limits::Impl::grants(AccountNumber number, const Use& use, const Words& words, std::int64_t now,
                          Verdict& verdict) const {
  Account& account = at(number);
  for (int attempt = 0; attempt < 8; ++attempt) {
    const std::uint32_t version = account.version();
    if ((version & 1) != 0) continue;
    if (books.terms.replaced(account.defaults())) return false;
    const std::int64_t ns = std::max(now, account.stamp());
    bool certain = true;
    Verdict seen = verdict;
    account.each(books, [&](const Account::Counter& counter, const Terms& said) {
      if (!certain || !said.counts(words)) return;
      const auto amount = asked(said, use);
      if (!amount) return;
      const std::int64_t used = taken(account, counter, said, ns);
      if (add_saturating(used, *amount) > said->limit) {
        certain = false;
      } else if (has_less_left(said, use, used, seen)) {
        describe(seen, said, counter.number(), used);
        seen.account = number;
        seen.position = counter.position;
        seen.reset_at = said.calendar() ? std::optional(from_unix_ns(said.window_end(ns))) : std::nullopt;
      }
    });
    if (!account.is_still(version)) continue;
    if (certain) verdict = seen;
    return certain;
  }
  return false;
}

/// Requires: the accounts are locked and brought up.
Verdict Limits::Impl::judge(const Targets& targets, const Use& use, std::int64_t now) const {
  Verdict granted;
  std::optional<Verdict> refused;
  for (const AccountNumber number : targets.span()) {
    Account& account = at(number);
    const std::int64_t ns = std::max(now, account.stamp());
    account.each(books, [&](const Account::Counter& counter, const Terms& said) {
      const auto amount = said.counts(targets.words) ? asked(said, use) : std::nullopt;
      if (!amount) return;
      const std::int64_t used = taken(account, counter, said, ns);
      const bool over = add_saturating(used, *amount) > said->limit;
      Verdict* told = nullptr;
      if (over && said->overflow != Overflow::allow_with_notification) {
        if (!outranks(refusal(said), refused)) return;
        told = &refused.emplace();
        told->kind = refusal(said);
      } else if (has_less_left(said, use, used, granted)) {
        told = &granted;
      }
      if (told == nullptr) return;
      describe(*told, said, counter.number(), used);
      told->account = number;
      told->position = counter.position;
      told->reset_at = account.reset_at(books, counter, said, ns);
    });
  }
  judge_unseen(targets, use, granted, refused);
  return refused ? *refused : granted;
}

/// The defaults hold for those, too, who used nothing yet.
void Limits::Impl::judge_unseen(const Targets& targets, const Use& use, Verdict& granted,
                                std::optional<Verdict>& refused) const {
  for (std::size_t kind = 0; kind < subject_kinds; ++kind) {
    if (!targets.unseen[kind]) continue;
    for (const std::uint32_t number :
         books.terms.set(books.terms.defaults(targets.org, static_cast<SubjectKind>(kind)))) {
      const Terms& said = books.terms[number];
      const auto amount = said.counts(targets.words) ? asked(said, use) : std::nullopt;
      if (!amount) continue;
      if (*amount > said->limit && said->overflow != Overflow::allow_with_notification) {
        if (!outranks(refusal(said), refused)) continue;
        refused.emplace();
        refused->kind = refusal(said);
        describe(*refused, said, number, 0);
      } else if (has_less_left(said, use, 0, granted)) {
        granted = {};
        describe(granted, said, number, 0);
      }
    }
  }
}

bool Limits::allows(const Use& use, Instant now) {
  const Targets targets = impl_->find_targets(use);
  const bool seen = std::ranges::find(targets.unseen, true) == targets.unseen.end();
  const bool roomy = std::ranges::all_of(
      targets.span(), [&](AccountNumber number) { return impl_->is_roomy(number, use, targets.words); });
  return (seen && roomy) || impl_->check(targets, use, now).kind == Verdict::Kind::granted;
}

Verdict Limits::check(const Use& use, Instant now) { return impl_->check(impl_->find_targets(use), use, now); }

Verdict Limits::Impl::check(const Targets& targets, const Use& use, Instant now) {
  const std::int64_t ns = ns_of(now);
  Verdict verdict;
  bool certain = true;
  for (std::size_t i = 0; certain && i < targets.count; ++i)
    certain = grants(targets.accounts[i], use, targets.words, ns, verdict);
  if (certain) {
    std::optional<Verdict> refused;
    judge_unseen(targets, use, verdict, refused);
    return refused ? *refused : verdict;
  }
  for (int attempt = 0;; ++attempt) {
    {
      const Locked locked(*this, targets.span());
      for (const AccountNumber number : targets.span()) at(number).bring_up(books, ns);
      verdict = judge(targets, use, ns);
    }
    if (verdict.kind == Verdict::Kind::granted || attempt > 0 || expire(now) == 0) return verdict;
  }
}

Told Limits::tell(const Verdict& verdict) const {
  const Terms& said = impl_->books.terms[verdict.terms];
  Told told{said->id, {}, said->event_type, said->measure, said->window, said->currency_code};
  if (verdict.account == AccountNumber::none) return told;
  const std::shared_lock stay(impl_->sessions_gate);
  Account& account = impl_->at(verdict.account);
  const std::scoped_lock lock(account);
  // The limit may be gone meanwhile, and so may a session.
  if (account.place(impl_->books, verdict.position).number() != verdict.terms) return told;
  told.subject = impl_->names.subject(verdict.account);
  if (!said->each) told.id = account.own_id(impl_->books, verdict.position);
  return told;
}

// --- reservations

Verdict Limits::reserve(const ReservationId& id, const Use& use, Instant now, Instant expires_at) {
  const Targets targets = impl_->obtain_targets(use);
  const std::uint64_t content = content_of(use, targets);
  const std::int64_t ns = ns_of(now);
  Holds::Shard& shard = impl_->holds.of(id);
  Verdict verdict;
  for (int attempt = 0;; ++attempt) {
    {
      const std::scoped_lock lock(shard.mutex);
      verdict = {};
      if (const Hold* known = shard.find(id)) {
        if (known->content != content || known->units != use.units || known->cost != use.cost)
          verdict.kind = Verdict::Kind::conflict;
        else
          shard.extend(id, unix_ns(expires_at));
        return verdict;
      }
      const Locked locked(*impl_, targets.span());
      for (const AccountNumber number : targets.span()) impl_->at(number).bring_up(impl_->books, ns);
      verdict = impl_->judge(targets, use, ns);
      if (verdict.kind == Verdict::Kind::granted) {
        Hold& hold = shard.open(id, unix_ns(expires_at));
        hold.content = content;
        hold.units = use.units;
        hold.cost = use.cost;
        hold.accounted = targets.words.currency == 0;
        hold.accounts.assign(targets.span().begin(), targets.span().end());
        for (const AccountNumber number : targets.span()) {
          Account& account = impl_->at(number);
          account.each(impl_->books, [&](const Account::Counter& counter, const Terms& said) {
            if (!said.counts(targets.words)) return;
            account.set_held(counter, said, add_saturating(counter.held.get(), said.amount(use.units, use.cost)));
            hold.parts.push_back({number, counter.position});
            // Pair of the check in judge(): what blocks is never held beyond its limit.
            CRETO_ASSERT(said->overflow != Overflow::block || !asked(said, use) ||
                         taken(account, counter, said, std::max(ns, account.stamp())) <= said->limit);
          });
          if (use.cost > 0 && hold.accounted) {
            Costs& costs = account.obtain_extra(impl_->books).costs;
            costs.held.set(add_saturating(costs.held.get(), use.cost));
          }
        }
        return verdict;
      }
    }
    if (attempt > 0 || expire(now) == 0) return verdict;
  }
}

void Limits::Impl::let_go(const Hold& hold, AccountNumber number) {
  Account& account = at(number);
  for (const Hold::Part& part : hold.parts) {
    if (part.account != number) continue;
    const Account::Counter counter = account.place(books, part.position);
    const Terms& said = books.terms[counter.number()];
    account.set_held(counter, said, counter.held.get() - said.amount(hold.units, hold.cost));
  }
  if (hold.cost > 0 && hold.accounted) {
    Costs& costs = account.obtain_extra(books).costs;
    costs.held.set(costs.held.get() - hold.cost);
  }
}

bool Limits::release(const ReservationId& id) {
  Holds::Shard& shard = impl_->holds.of(id);
  const std::scoped_lock lock(shard.mutex);
  return shard.end(id, [&](const Hold& hold) {
    for (const AccountNumber number : hold.accounts) {
      const std::scoped_lock held(impl_->at(number));
      impl_->let_go(hold, number);
    }
  });
}

std::optional<std::string> Limits::holder_of(std::string_view org, const ReservationId& id) {
  Holds::Shard& shard = impl_->holds.of(id);
  const std::scoped_lock lock(shard.mutex);
  const Hold* hold = shard.find(id);
  if (hold == nullptr) return std::nullopt;
  const AccountNumber agent = hold->accounts.front();
  if (impl_->names.org(agent) != impl_->names.find_org(org)) return std::nullopt;
  return impl_->names.subject(agent);
}

std::size_t Limits::Impl::expire(Holds::Shard& shard, std::int64_t now_ns) {
  if (shard.earliest() > now_ns) return 0;
  const std::scoped_lock lock(shard.mutex);
  return shard.expire(now_ns, [&](const Hold& hold) {
    for (const AccountNumber number : hold.accounts) {
      const std::scoped_lock held(at(number));
      let_go(hold, number);
    }
  });
}

std::size_t Limits::Impl::expire(Instant now) {
  std::size_t ended = 0;
  for (Holds::Shard& shard : holds.shards()) ended += expire(shard, unix_ns(now));
  return ended;
}

std::size_t Limits::expire(Instant now) { return impl_->expire(now); }

// --- facts

void Limits::Impl::notice(AccountNumber number, const Account::Counter& counter, const Terms& said, Notice::Kind kind,
                          std::int64_t used, std::int64_t ns, std::vector<Notice>& notices, std::size_t fact) const {
  Instant window = from_unix_ns(said.window_begin(ns));
  if (said->window == WindowKind::rolling) {
    window = from_unix_ns(ns / said->rolling_length.count() * said->rolling_length.count());
  } else if (said->window == WindowKind::transaction) {
    window = from_unix_ns(ns);
  } else if (said->window == WindowKind::lifetime && names.kind(number) == SubjectKind::session) {
    window = from_unix_ns(at(number).life(books).begun_ns());  // another one of its name is told of anew
  }
  ThresholdAction action = said->action;
  if (said->family == Terms::Family::quota) {
    action = kind == Notice::Kind::soft || said->overflow == Overflow::allow_with_notification
                 ? ThresholdAction::notify_only
             : said->overflow == Overflow::block ? ThresholdAction::block
                                                 : ThresholdAction::require_approval;
  }
  notices.push_back({kind, said->each ? said->id : at(number).own_id(books, counter.position), names.subject(number),
                     used, said->limit, window, std::string(to_string(said->window)), said->event_type, said->measure,
                     said->currency_code, action, said->approvers, fact});
}

std::int64_t Limits::Impl::count(AccountNumber number, const Words& words, std::int64_t units, NanoMoney cost,
                                 std::int64_t now, std::vector<Notice>& notices, std::size_t fact, bool own) {
  const std::int64_t ns = at(number).stamp();  // brought up, so not before `now`
  count_at(number, words, units, cost, ns, now, notices, fact, own);
  return ns;
}

void Limits::Impl::count_at(AccountNumber number, const Words& words, std::int64_t units, NanoMoney cost,
                            std::int64_t ns, std::int64_t now, std::vector<Notice>& notices, std::size_t fact,
                            bool own) {
  keep(number);
  Account& account = at(number);
  account.each(books, [&](const Account::Counter& counter, const Terms& said) {
    if (!said.counts(words)) return;
    if (ns < account.stamp() && said.calendar() && ns < said.window_begin(account.stamp())) return;
    const std::int64_t amount = said.amount(units, cost);
    account.adjust(books, counter, said, amount, ns);
    if (said->window == WindowKind::concurrent || amount <= 0) return;
    const std::int64_t used = said->window == WindowKind::transaction ? amount : counter.used.get();
    const auto once = [&](std::uint32_t flag, Notice::Kind kind) {
      const bool every = said->window == WindowKind::transaction;
      if (!every && (counter.word.get() & flag) != 0) return;
      if (!every) counter.word.set(counter.word.get() | flag);
      notice(number, counter, said, kind, used, every ? now : ns, notices, fact);
    };
    if (used >= said->soft) once(Account::soft_noticed, Notice::Kind::soft);
    if (used > said->limit)
      once(Account::hard_noticed, said->family == Terms::Family::threshold ? Notice::Kind::cost : Notice::Kind::hard);
  });
  if (cost == 0 || words.currency != 0) return;
  const bool judged = own && cost > 0 && ns / hour_ns == account.stamp() / hour_ns;
  const NanoMoney before = judged ? account.cost_in(books, hour_cost, ns) : 0;
  account.adjust_cost(books, words.type, cost, ns);
  if (judged) notice_unusual(number, before, ns, notices, fact);
}

/// Tells of the use by which an hour that had cost `before` becomes so unusual that people should know.
void Limits::Impl::notice_unusual(AccountNumber number, NanoMoney before, std::int64_t ns, std::vector<Notice>& notices,
                                  std::size_t fact) {
  Account& account = at(number);
  const Costs& costs = account.obtain_extra(books).costs;
  const NanoMoney bound = costs.unusual.get();
  const NanoMoney after = costs.totals[hour_cost].get();
  if (bound <= 0 || after <= bound) return;
  const Expectation expected = account.expect(books, ns);
  const auto confidence = [&](NanoMoney cost) { return confidence_unusual(expected, static_cast<double>(cost)); };
  if (confidence(after) < books.anomalies.confidence) return;
  if (before > bound && confidence(before) >= books.anomalies.confidence) return;
  notices.push_back({.kind = Notice::Kind::anomaly,
                     .id = "anomaly",
                     .subject = names.subject(number),
                     .used = after,
                     .limit = bound,
                     .window_begin = from_unix_ns(ns / hour_ns * hour_ns),
                     .period = "hour",
                     .event_type = {},
                     .measure = Measure::cost,
                     .approvers = {},
                     .fact = fact,
                     .expected = expected.mean,
                     .confidence = confidence(after)});
}

void Limits::Impl::uncount(AccountNumber number, const Words& words, std::int64_t units, NanoMoney cost,
                           std::int64_t counted_ns) {
  Account& account = at(number);
  keep(number);
  account.each(books, [&](const Account::Counter& counter, const Terms& said) {
    if (!said.counts(words)) return;
    account.adjust(books, counter, said, -said.amount(units, cost), counted_ns);
    // What is reached again is told again.
    if (counter.used.get() < said->soft) counter.word.set(counter.word.get() & ~Account::soft_noticed);
    if (counter.used.get() <= said->limit) counter.word.set(counter.word.get() & ~Account::hard_noticed);
  });
  if (cost != 0 && words.currency == 0) account.adjust_cost(books, words.type, -cost, counted_ns);
}

void Limits::Impl::prefetch(std::span<const AccountNumber> numbers) const {
  for (const AccountNumber number : numbers) at(number).prefetch_to_count();
}

AccountNumber Limits::account(std::string_view org, std::string_view subject) {
  return impl_->obtain(impl_->names.obtain_org(org), subject);
}

bool Limits::limits_sessions(std::string_view org) const {
  const OrgNumber number = impl_->names.find_org(org);
  return number != OrgNumber::none && impl_->books.terms.defaults(number, SubjectKind::session) != 0;
}

AccountNumber Limits::session_account(std::string_view org, std::string_view session) {
  return impl_->obtain_session(impl_->names.obtain_org(org), session);
}

Words Limits::words_of_fact(std::string_view org, std::string_view event_type, std::string_view action,
                            PropertyViews properties, std::string_view currency) {
  return impl_->books.terms.learn(impl_->names.obtain_org(org), event_type, action, properties, currency);
}

void Limits::add(std::span<const Fact> facts, Instant when, std::vector<Notice>& notices, Receipt* receipt) {
  const std::int64_t ns = ns_of(when);
  if (receipt != nullptr) receipt->counted_ns.clear();
  for (std::size_t i = 0; i < std::min(prefetched_ahead, facts.size()); ++i) impl_->prefetch(facts[i].accounts);
  for (std::size_t i = 0; i < facts.size(); ++i) {
    if (i + prefetched_ahead < facts.size()) impl_->prefetch(facts[i + prefetched_ahead].accounts);
    const Fact& fact = facts[i];
    const auto count_all = [&](const Hold* hold) {
      for (const AccountNumber number : fact.accounts) {
        Account& account = impl_->at(number);
        const std::scoped_lock lock(account);
        account.bring_up(impl_->books, ns);
        if (hold != nullptr && std::ranges::find(hold->accounts, number) != hold->accounts.end())
          impl_->let_go(*hold, number);
        if (number == fact.session) {
          impl_->keep(number);
          account.life(impl_->books).use(account.stamp(), fact.ends_session);
        }
        const std::int64_t counted =
            impl_->count(number, fact.words, fact.units, fact.cost, ns, notices, i, number == fact.accounts.front());
        if (receipt != nullptr) receipt->counted_ns.push_back(counted);
      }
      if (hold == nullptr) return;
      for (const AccountNumber number : hold->accounts) {
        if (std::ranges::find(fact.accounts, number) != fact.accounts.end()) continue;
        const std::scoped_lock lock(impl_->at(number));
        impl_->let_go(*hold, number);
      }
    };
    if (fact.settles) {
      Holds::Shard& shard = impl_->holds.of(*fact.settles);
      const std::scoped_lock lock(shard.mutex);
      if (shard.end(*fact.settles, [&](const Hold& hold) { count_all(&hold); })) continue;
    }
    count_all(nullptr);
  }
}

void Limits::take_back(std::span<const Fact> facts, const Receipt& receipt) {
  std::size_t next = 0;
  for (const Fact& fact : facts) {
    for (const AccountNumber number : fact.accounts) {
      const std::scoped_lock lock(impl_->at(number));
      impl_->uncount(number, fact.words, fact.units, fact.cost, receipt.counted_ns[next++]);
    }
  }
}

void Limits::correct(const Fact& out, const Fact* in, Instant counted_at, Instant now, std::vector<Notice>& notices) {
  const std::int64_t at_ns = ns_of(counted_at);
  for (const AccountNumber number : out.accounts) {
    Account& account = impl_->at(number);
    const std::scoped_lock lock(account);
    account.bring_up(impl_->books, ns_of(now));
    // A session that is over has nothing left of it, not even where its name has another one.
    const bool gone = number == out.session && !account.life(impl_->books).holds(at_ns);
    if (!gone) impl_->uncount(number, out.words, out.units, out.cost, at_ns);
  }
  if (in == nullptr) return;
  for (const AccountNumber number : in->accounts) {
    Account& account = impl_->at(number);
    const std::scoped_lock lock(account);
    account.bring_up(impl_->books, ns_of(now));
    if (number == in->session) {
      SessionLife& life = account.life(impl_->books);
      if (number == out.session && !life.holds(at_ns)) continue;
      impl_->keep(number);
      life.use_instead(at_ns, account.stamp());
    }
    impl_->count_at(number, in->words, in->units, in->cost, at_ns, ns_of(now), notices, 0,
                    number == in->accounts.front());
  }
  if (in->settles) release(*in->settles);
}

std::vector<AccountNumber> Limits::sessions_over(Instant now) {
  impl_->names.reuse();
  std::vector<AccountNumber> over = impl_->names.session_numbers();
  std::erase_if(over, [&](AccountNumber number) {
    Account& account = impl_->at(number);
    const std::scoped_lock lock(account);
    return !account.may_go(impl_->books, ns_of(now));
  });
  return over;
}

void Limits::forget(std::span<const AccountNumber> sessions, Instant now) {
  const std::scoped_lock rules(impl_->rules_mutex);
  const std::scoped_lock alone(impl_->sessions_gate);
  std::vector<AccountNumber> gone;
  for (const AccountNumber number : sessions) {
    Account& account = impl_->at(number);
    const std::scoped_lock lock(account);
    if (!account.may_go(impl_->books, ns_of(now))) continue;
    impl_->keep(number);
    account.clear(impl_->books);
    gone.push_back(number);
  }
  impl_->names.give_back(gone);
}

std::vector<std::pair<std::string, std::string>> Limits::sessions() const {
  const std::shared_lock stay(impl_->sessions_gate);
  std::vector<std::pair<std::string, std::string>> all;
  for (const AccountNumber number : impl_->names.session_numbers()) {
    Account& account = impl_->at(number);
    const std::scoped_lock lock(account);
    if (!account.life(impl_->books).is_free())
      all.emplace_back(impl_->names.org_name(impl_->names.org(number)), impl_->names.subject(number));
  }
  return all;
}

void Limits::add(const Use& use, Instant when, std::optional<ReservationId> settles, std::vector<Notice>& notices) {
  const Targets targets = impl_->obtain_targets(use);
  const Fact fact{targets.span(), targets.words, use.units, use.cost, settles, targets.session};
  add(std::span(&fact, 1), when, notices);
}

// --- what is told

std::optional<QuotaState> Limits::state(std::string_view org, const Quota& quota, Instant now,
                                        std::string_view subject) {
  const bool each = each_of(quota.subject).has_value();
  if (!each) subject = quota.subject;
  const std::shared_lock stay(impl_->sessions_gate);
  QuotaState state{quota.id,
                   std::string(subject),
                   quota.event_type,
                   quota.measure,
                   quota.window,
                   quota.overflow,
                   quota.currency,
                   quota.limit,
                   0,
                   0,
                   {}};
  const AccountNumber number = impl_->find(org, subject);
  if (number == AccountNumber::none) {
    if (!each) return std::nullopt;
    return state;
  }
  Account& account = impl_->at(number);
  const std::scoped_lock lock(account);
  account.bring_up(impl_->books, ns_of(now));
  bool found = false;
  account.each(impl_->books, [&](const Account::Counter& counter, const Terms& said) {
    if (said->family != Terms::Family::quota || said->each != each) return;
    if ((each ? said->id : account.own_id(impl_->books, counter.position)) != quota.id) return;
    found = true;
    state.overflow = said->overflow;
    state.limit = said->limit;
    state.used = counter.used.get();
    state.held = counter.held.get();
    state.reset_at = account.reset_at(impl_->books, counter, said, account.stamp());
  });
  if (!found) return std::nullopt;
  return state;
}

Limits::Limits(AnomalyRules anomalies, Currency accounting) : impl_(std::make_unique<Impl>(std::move(accounting))) {
  impl_->books.anomalies = anomalies;
  impl_->books.extras.make();  // of nobody
  impl_->accounts.make();      // of AccountNumber::none
}
Limits::Limits(Limits&&) noexcept = default;
Limits& Limits::operator=(Limits&&) noexcept = default;
Limits::~Limits() = default;

std::size_t Limits::accounts() const { return impl_->names.in_use(); }

std::size_t Limits::holds() const {
  std::size_t count = 0;
  for (Holds::Shard& shard : impl_->holds.shards()) {
    const std::scoped_lock lock(shard.mutex);
    count += shard.size();
  }
  return count;
}

}  // namespace creto::metering

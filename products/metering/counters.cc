#include "counters.h"

#include <fmt/format.h>

#include "limits_impl.h"

namespace creto::metering {
namespace {

using contracts::BillingPeriod;
using contracts::ThresholdAction;

constexpr std::size_t quotas_per_subject_max = 256;
constexpr std::size_t thresholds_per_subject_max = 64;
/// Accounts of a settlement: those of its hold and those of the use.
constexpr std::size_t locked_max = accounts_per_use_max;
/// How many facts ahead of the one that is counted memory is asked for.
constexpr std::size_t prefetched_ahead = 4;

/// What counts of a use against these terms; none where they have nothing to say about it.
std::optional<std::int64_t> asked(const Terms& terms, const Use& use) {
  if (terms.family == Terms::Family::threshold && terms.overflow != Overflow::block) return std::nullopt;
  if (terms.measure == Measure::cost && use.cost <= 0) return std::nullopt;
  return terms.amount(use.units, use.cost);
}

/// Used and held, as far as the terms see them.
std::int64_t taken(const Account& account, const Account::Counter& counter, const Terms& terms, std::int64_t ns) {
  if (terms.window == WindowKind::transaction) return 0;
  return add_saturating(account.used_in(counter, terms, ns), counter.held.get());
}

void describe(Verdict& verdict, const Terms& terms, std::uint32_t number, std::int64_t used) {
  verdict.limited = true;
  verdict.terms = number;
  verdict.limit = terms.limit;
  verdict.used = used;
}

bool has_less_left(const Terms& terms, std::int64_t used, const Verdict& than) {
  return !than.limited || add_saturating(terms.limit, -used) < add_saturating(than.limit, -than.used);
}

Verdict::Kind refusal(const Terms& terms) {
  if (terms.family == Terms::Family::threshold) return Verdict::Kind::budget_exceeded;
  return terms.overflow == Overflow::block ? Verdict::Kind::quota_exceeded : Verdict::Kind::oversight_required;
}

/// What blocks goes before what a human might allow.
bool outranks(Verdict::Kind kind, const std::optional<Verdict>& other) {
  return !other || (other->kind == Verdict::Kind::oversight_required && kind != Verdict::Kind::oversight_required);
}

std::optional<std::size_t> cost_window_of(BillingPeriod period) {
  switch (period) {
    case BillingPeriod::transaction:
      return std::nullopt;
    case BillingPeriod::hour:
      return 0;
    case BillingPeriod::day:
      return 1;
    case BillingPeriod::month:
      return 2;
    case BillingPeriod::lifetime:
      return 3;
  }
  return std::nullopt;
}

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

/// The same question, put twice, has the same hash.
std::uint64_t content_of(const Use& use, const Targets& targets) {
  std::uint64_t hash = std::hash<std::string_view>()(use.event_type);
  const auto mix = [&](std::uint64_t value) {
    hash = (hash ^ value) * 0x9E3779B97F4A7C15ull;
    hash ^= hash >> 29;
  };
  mix(std::hash<std::string_view>()(use.action));
  for (const auto& [property, value] : use.properties) {
    mix(std::hash<std::string_view>()(property));
    mix(std::hash<std::string_view>()(value));
  }
  mix(static_cast<std::uint64_t>(targets.accounts[0]));
  return hash;
}

std::int64_t ns_of(Instant now) { return std::max<std::int64_t>(unix_ns(now), 0); }

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

// --- who is asked

AccountNumber Limits::Impl::find(std::string_view org, std::string_view subject) const {
  const OrgNumber number = names.find_org(org);
  return number == OrgNumber::none ? AccountNumber::none : names.find(number, subject);
}

AccountNumber Limits::Impl::obtain(OrgNumber org, std::string_view subject) {
  return names.obtain(org, subject, [&] {
    Account& made = accounts.make();
    made.follow(terms, terms.obtain_defaults(org, subject_kind(subject)));
  });
}

namespace {

template <class Lookup>
void take_accounts(Targets& targets, const Use& use, const Limits::Impl& impl, Lookup lookup) {
  CRETO_ASSERT(use.chain.size() <= delegation_chain_max_depth);
  AccountNumber billed_to = AccountNumber::none;
  const auto take = [&](std::string_view subject) {
    const AccountNumber number = lookup(subject);
    if (number == AccountNumber::none) {
      targets.unseen[static_cast<std::size_t>(subject_kind(subject))] = true;
      return;
    }
    targets.push(number);
    if (billed_to == AccountNumber::none) billed_to = impl.at(number).billed_to.load(std::memory_order_acquire);
  };
  take(use.agent);
  targets.agent_known = targets.count > 0;
  for (auto ancestor = use.chain.rbegin(); ancestor != use.chain.rend(); ++ancestor) {
    if (ancestor->text() != use.agent) take(ancestor->text());
  }
  if (use.subscription) billed_to = use.subscription->empty() ? AccountNumber::none : lookup(*use.subscription);
  targets.push(billed_to);
}

}  // namespace

Targets Limits::Impl::find_targets(const Use& use) const {
  Targets targets;
  targets.org = names.find_org(use.org);
  if (targets.org == OrgNumber::none) return targets;  // nobody has said or used anything there
  targets.words = terms.words(targets.org, use.event_type, use.action, use.properties);
  take_accounts(targets, use, *this, [&](std::string_view subject) { return names.find(targets.org, subject); });
  return targets;
}

Targets Limits::Impl::obtain_targets(const Use& use) {
  Targets targets;
  targets.org = names.obtain_org(use.org);
  targets.words = terms.learn(targets.org, use.event_type, use.action, use.properties);
  take_accounts(targets, use, *this, [&](std::string_view subject) { return obtain(targets.org, subject); });
  return targets;
}

void Limits::Impl::bring_up(Account& account, std::int64_t ns) const {
  if (terms.replaced(account.defaults.get())) account.follow(terms, terms.newest(account.defaults.get()));
  account.roll(terms, ns, anomalies);
}

// --- what is answered

/// True where it is certain, without a lock, that nothing in the account refuses. False says nothing.
bool Limits::Impl::grants(AccountNumber number, const Use& use, const Words& words, std::int64_t now,
                          Verdict& verdict) const {
  Account& account = at(number);
  for (int attempt = 0; attempt < 8; ++attempt) {
    const std::uint32_t version = account.version.load(std::memory_order_acquire);
    if ((version & 1) != 0) continue;
    if (terms.replaced(account.defaults.get())) return false;
    const std::int64_t ns = std::max(now, account.stamp.get());
    bool certain = true;
    Verdict seen = verdict;
    account.each(terms, [&](const Account::Counter& counter, const Terms& said) {
      if (!certain || !said.counts(words)) return;
      const auto amount = asked(said, use);
      if (!amount) return;
      const std::int64_t used = taken(account, counter, said, ns);
      if (add_saturating(used, *amount) > said.limit) {
        certain = false;
      } else if (has_less_left(said, used, seen)) {
        describe(seen, said, counter.number(), used);
        seen.account = number;
        seen.position = counter.position;
        seen.reset_at = said.calendar() ? std::optional(from_unix_ns(said.window_end(ns))) : std::nullopt;
      }
    });
    if (account.version.load(std::memory_order_relaxed) != version) continue;
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
    const std::int64_t ns = std::max(now, account.stamp.get());
    account.each(terms, [&](const Account::Counter& counter, const Terms& said) {
      const auto amount = said.counts(targets.words) ? asked(said, use) : std::nullopt;
      if (!amount) return;
      const std::int64_t used = taken(account, counter, said, ns);
      const bool over = add_saturating(used, *amount) > said.limit;
      Verdict* told = nullptr;
      if (over && said.overflow != Overflow::allow_with_notification) {
        if (!outranks(refusal(said), refused)) return;
        told = &refused.emplace();
        told->kind = refusal(said);
      } else if (has_less_left(said, used, granted)) {
        told = &granted;
      }
      if (told == nullptr) return;
      describe(*told, said, counter.number(), used);
      told->account = number;
      told->position = counter.position;
      told->reset_at = account.reset_at(counter, said, ns);
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
    for (const std::uint32_t number : terms.set(terms.defaults(targets.org, static_cast<SubjectKind>(kind)))) {
      const Terms& said = terms[number];
      const auto amount = said.counts(targets.words) ? asked(said, use) : std::nullopt;
      if (!amount) continue;
      if (*amount > said.limit && said.overflow != Overflow::allow_with_notification) {
        if (!outranks(refusal(said), refused)) continue;
        refused.emplace();
        refused->kind = refusal(said);
        describe(*refused, said, number, 0);
      } else if (has_less_left(said, 0, granted)) {
        granted = {};
        describe(granted, said, number, 0);
      }
    }
  }
}

Verdict Limits::check(const Use& use, Instant now) {
  const Targets targets = impl_->find_targets(use);
  const std::int64_t ns = ns_of(now);
  Verdict verdict;
  bool certain = true;
  for (std::size_t i = 0; certain && i < targets.count; ++i)
    certain = impl_->grants(targets.accounts[i], use, targets.words, ns, verdict);
  if (certain) {
    std::optional<Verdict> refused;
    impl_->judge_unseen(targets, use, verdict, refused);
    return refused ? *refused : verdict;
  }
  for (int attempt = 0;; ++attempt) {
    {
      const Locked locked(*impl_, targets.span());
      for (const AccountNumber number : targets.span()) impl_->bring_up(impl_->at(number), ns);
      verdict = impl_->judge(targets, use, ns);
    }
    if (verdict.kind == Verdict::Kind::granted || attempt > 0 || expire(now) == 0) return verdict;
  }
}

Told Limits::tell(const Verdict& verdict) const {
  const Terms& said = impl_->terms[verdict.terms];
  Told told{said.id, {}, said.event_type, said.measure, said.window};
  if (verdict.account == AccountNumber::none) return told;
  told.subject = impl_->names.subject(verdict.account);
  if (said.each) return told;
  Account& account = impl_->at(verdict.account);
  const std::scoped_lock lock(account);
  if (account.place(verdict.position).number() == verdict.terms) told.id = account.own_id(verdict.position);
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
        return verdict;
      }
      const Locked locked(*impl_, targets.span());
      for (const AccountNumber number : targets.span()) impl_->bring_up(impl_->at(number), ns);
      verdict = impl_->judge(targets, use, ns);
      if (verdict.kind == Verdict::Kind::granted) {
        Hold& hold = shard.open(id, unix_ns(expires_at));
        hold.content = content;
        hold.units = use.units;
        hold.cost = use.cost;
        hold.accounts.assign(targets.span().begin(), targets.span().end());
        for (const AccountNumber number : targets.span()) {
          Account& account = impl_->at(number);
          account.each(impl_->terms, [&](const Account::Counter& counter, const Terms& said) {
            if (!said.counts(targets.words)) return;
            counter.held.set(add_saturating(counter.held.get(), said.amount(use.units, use.cost)));
            hold.parts.push_back({number, counter.position});
            // Pair of the check in judge(): what blocks is never held beyond its limit.
            CRETO_ASSERT(said.overflow != Overflow::block || !asked(said, use) ||
                         taken(account, counter, said, std::max(ns, account.stamp.get())) <= said.limit);
          });
          if (use.cost > 0) {
            Costs& costs = account.obtain_extra().costs;
            costs.held.set(add_saturating(costs.held.get(), use.cost));
          }
        }
        return verdict;
      }
    }
    if (attempt > 0 || expire(now) == 0) return verdict;
  }
}

void Limits::Impl::let_go(const Hold& hold, AccountNumber number) const {
  Account& account = at(number);
  for (const Hold::Part& part : hold.parts) {
    if (part.account != number) continue;
    const Account::Counter counter = account.place(part.position);
    const Terms& said = terms[counter.number()];
    counter.held.set(counter.held.get() - said.amount(hold.units, hold.cost));
  }
  if (hold.cost > 0) {
    Costs& costs = account.obtain_extra().costs;
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

std::size_t Limits::Impl::expire(Holds::Shard& shard, std::int64_t now_ns) const {
  if (shard.earliest() > now_ns) return 0;
  const std::scoped_lock lock(shard.mutex);
  return shard.expire(now_ns, [&](const Hold& hold) {
    for (const AccountNumber number : hold.accounts) {
      const std::scoped_lock held(at(number));
      let_go(hold, number);
    }
  });
}

std::size_t Limits::expire(Instant now) {
  std::size_t ended = 0;
  for (Holds::Shard& shard : impl_->holds.shards()) ended += impl_->expire(shard, unix_ns(now));
  return ended;
}

// --- facts

void Limits::Impl::notice(AccountNumber number, const Account::Counter& counter, const Terms& said, Notice::Kind kind,
                          std::int64_t used, std::int64_t ns, std::vector<Notice>& notices, std::size_t fact) const {
  Instant window = from_unix_ns(said.window_begin(ns));
  if (said.window == WindowKind::rolling) {
    window = from_unix_ns(ns / said.rolling_length.count() * said.rolling_length.count());
  } else if (said.window == WindowKind::transaction) {
    window = from_unix_ns(ns);
  }
  ThresholdAction action = said.action;
  if (said.family == Terms::Family::quota) {
    action = kind == Notice::Kind::soft || said.overflow == Overflow::allow_with_notification
                 ? ThresholdAction::notify_only
             : said.overflow == Overflow::block ? ThresholdAction::block
                                                : ThresholdAction::require_approval;
  }
  notices.push_back({kind, said.each ? said.id : at(number).own_id(counter.position), names.subject(number), used,
                     said.limit, window, std::string(to_string(said.window)), said.event_type, said.measure, action,
                     said.approvers, fact});
}

std::int64_t Limits::Impl::count(AccountNumber number, const Words& words, std::int64_t units, NanoMoney cost,
                                 std::int64_t now, std::vector<Notice>& notices, std::size_t fact) const {
  Account& account = at(number);
  const std::int64_t ns = account.stamp.get();  // brought up, so not before `now`
  account.each(terms, [&](const Account::Counter& counter, const Terms& said) {
    if (!said.counts(words)) return;
    const std::int64_t amount = said.amount(units, cost);
    account.adjust(counter, said, amount, ns);
    if (said.window == WindowKind::concurrent || amount <= 0) return;
    const std::int64_t used = said.window == WindowKind::transaction ? amount : counter.used.get();
    const auto once = [&](std::uint32_t flag, Notice::Kind kind) {
      const bool every = said.window == WindowKind::transaction;
      if (!every && (counter.word.get() & flag) != 0) return;
      if (!every) counter.word.set(counter.word.get() | flag);
      notice(number, counter, said, kind, used, every ? now : ns, notices, fact);
    };
    if (used >= said.soft) once(Account::soft_noticed, Notice::Kind::soft);
    if (used > said.limit)
      once(Account::hard_noticed, said.family == Terms::Family::threshold ? Notice::Kind::cost : Notice::Kind::hard);
  });
  if (cost != 0) account.adjust_cost(words.type, cost, ns);
  return ns;
}

void Limits::Impl::uncount(AccountNumber number, const Words& words, std::int64_t units, NanoMoney cost,
                           std::int64_t counted_ns) const {
  Account& account = at(number);
  const std::scoped_lock lock(account);
  account.each(terms, [&](const Account::Counter& counter, const Terms& said) {
    if (!said.counts(words)) return;
    account.adjust(counter, said, -said.amount(units, cost), counted_ns);
    counter.word.set(counter.word.get() & ~(Account::soft_noticed | Account::hard_noticed));
  });
  if (cost != 0) account.adjust_cost(words.type, -cost, counted_ns);
}

void Limits::Impl::prefetch(std::span<const AccountNumber> numbers) const {
  for (const AccountNumber number : numbers) {
    const Account* account = &at(number);
    __builtin_prefetch(account, 1);
    __builtin_prefetch(reinterpret_cast<const char*>(account) + 64, 1);
  }
}

AccountNumber Limits::account(std::string_view org, std::string_view subject) {
  return impl_->obtain(impl_->names.obtain_org(org), subject);
}

Words Limits::words_of_fact(std::string_view org, std::string_view event_type, std::string_view action,
                            PropertyViews properties) {
  return impl_->terms.learn(impl_->names.obtain_org(org), event_type, action, properties);
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
        impl_->bring_up(account, ns);
        if (hold != nullptr && std::ranges::find(hold->accounts, number) != hold->accounts.end())
          impl_->let_go(*hold, number);
        const std::int64_t counted = impl_->count(number, fact.words, fact.units, fact.cost, ns, notices, i);
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
    for (const AccountNumber number : fact.accounts)
      impl_->uncount(number, fact.words, fact.units, fact.cost, receipt.counted_ns[next++]);
  }
}

Limits::Added Limits::add(const Use& use, Instant now, std::optional<ReservationId> settles,
                          std::vector<Notice>& notices) {
  const Targets targets = impl_->obtain_targets(use);
  const Fact fact{targets.span(), targets.words, use.units, use.cost, settles};
  Receipt receipt;
  receipt.counted_ns.reserve(targets.count);
  add(std::span(&fact, 1), now, notices, &receipt);
  Added added{targets.accounts, {}, targets.count, targets.words, use.units, use.cost};
  std::ranges::copy(receipt.counted_ns, added.counted_ns.begin());
  return added;
}

void Limits::take_back(const Added& added) {
  for (std::size_t i = 0; i < added.count; ++i)
    impl_->uncount(added.accounts[i], added.words, added.units, added.cost, added.counted_ns[i]);
}

void Limits::replay(std::string_view org, std::string_view subject, std::string_view event_type,
                    std::string_view action, std::int64_t units, NanoMoney cost, Instant when) {
  const OrgNumber org_number = impl_->names.obtain_org(org);
  const AccountNumber number = impl_->obtain(org_number, subject);
  const Words words = impl_->terms.learn(org_number, event_type, action, {});
  Account& account = impl_->at(number);
  const std::scoped_lock lock(account);
  const std::int64_t ns = ns_of(when);
  impl_->bring_up(account, ns);
  account.each(impl_->terms, [&](const Account::Counter& counter, const Terms& said) {
    if (said.counts(words)) account.adjust(counter, said, said.amount(units, cost), ns);
  });
  if (cost != 0) account.adjust_cost(words.type, cost, ns);
}

// --- what is allowed

Result<> Limits::Impl::put_own(AccountNumber number, std::string_view id, std::uint32_t terms_number, std::int64_t ns,
                               std::span<const Seed> seeds) {
  const Terms& said = terms[terms_number];
  Account& account = at(number);
  const std::scoped_lock lock(account);
  if (terms.replaced(account.defaults.get())) account.follow(terms, terms.newest(account.defaults.get()));
  std::optional<Account::Counter> known;
  std::optional<Account::Counter> of_default;
  std::size_t own = 0;
  account.each(terms, [&](const Account::Counter& counter, const Terms& other) {
    if (other.family != said.family) return;
    if (other.each) {
      if (other.what == said.what) of_default.emplace(counter);
      return;
    }
    ++own;
    if (account.own_id(counter.position) == id) known.emplace(counter);
  });
  if (known && terms[known->number()].what != said.what) {
    account.end(*known);
    known.reset();
    --own;
  }
  const std::size_t own_max = said.family == Terms::Family::quota ? quotas_per_subject_max : thresholds_per_subject_max;
  if (!known && own >= own_max) {
    return Error(Product::metering, ErrorKind::resource_exhausted,
                 fmt::format("`{}` already has {} {}", names.subject(number), own_max,
                             said.family == Terms::Family::quota ? "quotas" : "cost thresholds"));
  }
  if (known) {
    known->word.set(Account::active | terms_number);  // a limit that was changed may be reached again
    if (of_default) account.end(*of_default);
    return {};
  }
  const Account::Counter counter = of_default ? *of_default : account.free_place(terms, said.what);
  counter.word.set(Account::active | terms_number);
  account.set_own_id(counter.position, id);
  if (of_default) return {};  // which counted the same: its use stays
  if (!seeds.empty()) account.roll(terms, ns, anomalies);
  for (const Seed& seed : seeds) account.adjust(counter, said, seed.amount, unix_ns(seed.when));
  return {};
}

void Limits::Impl::remove_own(AccountNumber number, Terms::Family family, std::string_view id) {
  Account& account = at(number);
  const std::scoped_lock lock(account);
  const auto defaults = terms.set(account.defaults.get());
  account.each(terms, [&](const Account::Counter& counter, const Terms& said) {
    if (said.each || said.family != family || account.own_id(counter.position) != id) return;
    const auto same = std::ranges::find_if(defaults, [&](std::uint32_t one) { return terms[one].what == said.what; });
    bool other = same == defaults.end();
    account.each(terms, [&](const Account::Counter& beside, const Terms& of_beside) {
      other = other || (beside.position != counter.position && of_beside.what == said.what);
    });
    const std::int64_t used = counter.used.get();
    account.end(counter);
    if (other) return;
    counter.used.set(used);  // the default takes over what was counted
    counter.word.set(Account::active | *same);
  });
}

Result<> Limits::put_quota(std::string_view org, const Quota& quota, Instant now, std::span<const Seed> seeds) {
  const std::scoped_lock rules(impl_->rules_mutex);
  const OrgNumber org_number = impl_->names.obtain_org(org);
  const std::uint32_t said = CRETO_TRY(impl_->terms.of(org_number, quota));
  if (const auto kind = each_of(quota.subject)) return impl_->terms.put_default(org_number, *kind, said);
  return impl_->put_own(impl_->obtain(org_number, quota.subject), quota.id, said, ns_of(now), seeds);
}

void Limits::remove_quota(std::string_view org, const Quota& quota) {
  const std::scoped_lock rules(impl_->rules_mutex);
  const OrgNumber org_number = impl_->names.find_org(org);
  if (const auto kind = each_of(quota.subject)) {
    impl_->terms.remove_default(org_number, *kind, Terms::Family::quota, quota.id);
  } else if (const AccountNumber number = impl_->find(org, quota.subject); number != AccountNumber::none) {
    impl_->remove_own(number, Terms::Family::quota, quota.id);
  }
}

Result<> Limits::put_threshold(std::string_view org, const SubjectThreshold& threshold, Instant now) {
  const std::scoped_lock rules(impl_->rules_mutex);
  const OrgNumber org_number = impl_->names.obtain_org(org);
  const std::uint32_t said = CRETO_TRY(impl_->terms.of(org_number, threshold));
  if (const auto kind = each_of(threshold.subject)) return impl_->terms.put_default(org_number, *kind, said);
  const AccountNumber number = impl_->obtain(org_number, threshold.subject);
  std::vector<Seed> seeds;
  if (const auto window = cost_window_of(threshold.threshold.period); window && threshold.time_zone.empty()) {
    Account& account = impl_->at(number);
    const std::scoped_lock lock(account);
    const std::int64_t ns = std::max(ns_of(now), account.stamp.get());
    if (const NanoMoney cost = account.cost_in(*window, ns); cost != 0) seeds.push_back({from_unix_ns(ns), cost});
  }
  return impl_->put_own(number, threshold.threshold.threshold_id, said, ns_of(now), seeds);
}

void Limits::remove_threshold(std::string_view org, const SubjectThreshold& threshold) {
  const std::scoped_lock rules(impl_->rules_mutex);
  const OrgNumber org_number = impl_->names.find_org(org);
  const std::string& id = threshold.threshold.threshold_id;
  if (const auto kind = each_of(threshold.subject)) {
    impl_->terms.remove_default(org_number, *kind, Terms::Family::threshold, id);
  } else if (const AccountNumber number = impl_->find(org, threshold.subject); number != AccountNumber::none) {
    impl_->remove_own(number, Terms::Family::threshold, id);
  }
}

void Limits::bind(std::string_view org, std::string_view agent, std::string_view subscription) {
  const OrgNumber number = impl_->names.obtain_org(org);
  const AccountNumber billed_to = subscription.empty() ? AccountNumber::none : impl_->obtain(number, subscription);
  impl_->at(impl_->obtain(number, agent)).billed_to.store(billed_to, std::memory_order_release);
}

std::string Limits::subscription_of(std::string_view org, std::string_view agent,
                                    std::span<const Identity> chain) const {
  const auto of = [&](std::string_view subject) {
    const AccountNumber number = impl_->find(org, subject);
    return number == AccountNumber::none ? number : impl_->at(number).billed_to.load(std::memory_order_acquire);
  };
  AccountNumber found = of(agent);
  for (auto ancestor = chain.rbegin(); found == AccountNumber::none && ancestor != chain.rend(); ++ancestor)
    found = of(ancestor->text());
  return found == AccountNumber::none ? std::string() : impl_->names.subject(found);
}

// --- cost

std::optional<CostFinding> Limits::check_cost(const Use& use, BillingPeriod period, Instant now) {
  const Targets targets = impl_->find_targets(use);
  const auto wanted = [&](const Terms& said) {
    return said.family == Terms::Family::threshold &&
           (said.window == WindowKind::transaction || period_of(said.window) == period);
  };
  const auto unusual = [&](const Account& account, std::int64_t ns) {
    const Extra* beyond = account.extra.load(std::memory_order_acquire);
    if (beyond == nullptr) return false;
    const NanoMoney bound = beyond->costs.unusual.get();
    return bound > 0 && add_saturating(account.cost_in(hour_cost, ns), use.cost) > bound;
  };
  const auto within = [&](Account& account, bool own) {
    for (int attempt = 0; attempt < 8; ++attempt) {
      const std::uint32_t version = account.version.load(std::memory_order_acquire);
      if ((version & 1) != 0) continue;
      if (impl_->terms.replaced(account.defaults.get())) return false;
      const std::int64_t ns = std::max(ns_of(now), account.stamp.get());
      bool certain = !(own && unusual(account, ns));
      account.each(impl_->terms, [&](const Account::Counter& counter, const Terms& said) {
        if (certain && wanted(said))
          certain = add_saturating(taken(account, counter, said, ns), use.cost) <= said.limit;
      });
      if (account.version.load(std::memory_order_relaxed) == version) return certain;
    }
    return false;
  };

  for (std::size_t i = 0; i < targets.count; ++i) {
    const bool own = i == 0 && targets.agent_known;
    const AccountNumber number = targets.accounts[i];
    Account& account = impl_->at(number);
    if (within(account, own)) continue;
    const std::scoped_lock lock(account);
    impl_->bring_up(account, ns_of(now));
    const std::int64_t ns = account.stamp.get();
    std::optional<CostFinding> finding;
    account.each(impl_->terms, [&](const Account::Counter& counter, const Terms& said) {
      if (finding || !wanted(said)) return;
      const NanoMoney with_use = add_saturating(taken(account, counter, said, ns), use.cost);
      if (with_use <= said.limit) return;
      finding = CostFinding{said.each ? said.id : account.own_id(counter.position),
                            impl_->names.subject(number),
                            period_of(said.window),
                            with_use,
                            said.limit,
                            said.action,
                            said.approvers,
                            {}};
    });
    if (!finding && own && unusual(account, ns)) {
      const Costs& costs = account.obtain_extra().costs;
      const NanoMoney hour = add_saturating(costs.totals[hour_cost].get(), use.cost);
      const double mean = static_cast<double>(costs.rhythm.mean);
      const double deviation = std::sqrt(static_cast<double>(costs.rhythm.variance));
      const double distance = static_cast<double>(hour) - mean;
      // Cantelli's inequality: no assumption about how costs are distributed.
      const double square = deviation > 0 ? distance / deviation * (distance / deviation) : 1e6;
      finding = CostFinding{"anomaly",
                            impl_->names.subject(number),
                            BillingPeriod::hour,
                            hour,
                            costs.unusual.get(),
                            ThresholdAction::require_approval,
                            {},
                            CostFinding::Anomaly{mean / 1e9, static_cast<double>(hour) / 1e9, square / (1 + square)}};
    }
    if (finding) return finding;
  }
  // Those who used nothing yet have the defaults of their kind.
  for (std::size_t kind = 0; kind < subject_kinds; ++kind) {
    if (!targets.unseen[kind]) continue;
    for (const std::uint32_t number :
         impl_->terms.set(impl_->terms.defaults(targets.org, static_cast<SubjectKind>(kind)))) {
      const Terms& said = impl_->terms[number];
      if (!wanted(said) || use.cost <= said.limit) continue;
      return CostFinding{
          said.id, std::string(use.agent), period_of(said.window), use.cost, said.limit, said.action, said.approvers,
          {}};
    }
  }
  return std::nullopt;
}

NanoMoney Limits::cost_with(const Use& use, BillingPeriod period, Instant now) {
  const AccountNumber number = impl_->find(use.org, use.agent);
  const auto window = cost_window_of(period);
  if (number == AccountNumber::none || !window) return use.cost;
  Account& account = impl_->at(number);
  const std::scoped_lock lock(account);
  const std::int64_t ns = std::max(ns_of(now), account.stamp.get());
  const Extra* beyond = account.extra.load(std::memory_order_acquire);
  const NanoMoney held = beyond == nullptr ? 0 : beyond->costs.held.get();
  return add_saturating(add_saturating(account.cost_in(*window, ns), held), use.cost);
}

std::optional<CostTotals> Limits::costs(std::string_view org, std::string_view subject, BillingPeriod period,
                                        Instant now) {
  const AccountNumber number = impl_->find(org, subject);
  const auto window = cost_window_of(period);
  if (number == AccountNumber::none || !window) return std::nullopt;
  Account& account = impl_->at(number);
  const std::scoped_lock lock(account);
  impl_->bring_up(account, ns_of(now));
  CostTotals totals;
  const Extra* beyond = account.extra.load(std::memory_order_acquire);
  if (beyond == nullptr) return totals;
  totals.total = beyond->costs.totals[*window].get();
  beyond->costs.each_type([&](const Costs::OfType& one) {
    if (one.values[*window] != 0) totals.by_event_type.emplace_back(impl_->terms.word(one.type), one.values[*window]);
  });
  std::ranges::sort(totals.by_event_type);
  return totals;
}

// --- what is told

std::optional<QuotaState> Limits::state(std::string_view org, const Quota& quota, Instant now,
                                        std::string_view subject) {
  const bool each = each_of(quota.subject).has_value();
  if (!each) subject = quota.subject;
  QuotaState state{
      quota.id, std::string(subject), quota.event_type, quota.measure, quota.window, quota.overflow, quota.limit, 0, 0,
      {}};
  const AccountNumber number = impl_->find(org, subject);
  if (number == AccountNumber::none) {
    if (!each) return std::nullopt;
    return state;
  }
  Account& account = impl_->at(number);
  const std::scoped_lock lock(account);
  impl_->bring_up(account, ns_of(now));
  bool found = false;
  account.each(impl_->terms, [&](const Account::Counter& counter, const Terms& said) {
    if (said.family != Terms::Family::quota || said.each != each) return;
    if ((each ? said.id : account.own_id(counter.position)) != quota.id) return;
    found = true;
    state.overflow = said.overflow;
    state.limit = said.limit;
    state.used = counter.used.get();
    state.held = counter.held.get();
    state.reset_at = account.reset_at(counter, said, account.stamp.get());
  });
  if (!found) return std::nullopt;
  return state;
}

Limits::Limits(AnomalyRules anomalies) : impl_(std::make_unique<Impl>()) {
  impl_->anomalies = anomalies;
  impl_->accounts.make();  // of AccountNumber::none
}
Limits::~Limits() = default;

std::size_t Limits::accounts() const { return impl_->names.count(); }

std::size_t Limits::holds() const {
  std::size_t count = 0;
  for (Holds::Shard& shard : impl_->holds.shards()) {
    const std::scoped_lock lock(shard.mutex);
    count += shard.size();
  }
  return count;
}

}  // namespace creto::metering

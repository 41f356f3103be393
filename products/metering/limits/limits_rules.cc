#include <fmt/format.h>

#include "limits/limits_impl.h"

// What is allowed: quotas, cost thresholds, and who is billed.
namespace creto::metering {
namespace {

constexpr std::size_t quotas_per_subject_max = 256;
constexpr std::size_t thresholds_per_subject_max = 64;

}  // namespace

Result<> Limits::Impl::put_own(AccountNumber number, std::string_view id, std::uint32_t terms_number, std::int64_t ns,
                               std::span<const Seed> seeds, bool anew) {
  const Terms& said = books.terms[terms_number];
  Account& account = at(number);
  const std::scoped_lock lock(account);
  keep(number);
  if (books.terms.replaced(account.defaults())) account.follow(books, books.terms.newest(account.defaults()));
  std::optional<Account::Counter> known;
  std::optional<Account::Counter> of_default;
  std::size_t own = 0;
  account.each(books, [&](const Account::Counter& counter, const Terms& other) {
    if (other->family != said->family) return;
    if (other->each) {
      if (other->what == said->what) of_default.emplace(counter);
      return;
    }
    ++own;
    if (account.own_id(books, counter.position) == id) known.emplace(counter);
  });
  if (known && (anew || books.terms[known->number()]->what != said->what)) {
    account.end(books, *known);
    known.reset();
    --own;
  }
  const std::size_t own_max =
      said->family == Terms::Family::quota ? quotas_per_subject_max : thresholds_per_subject_max;
  if (!known && own >= own_max) {
    return Error(Product::metering, ErrorKind::resource_exhausted,
                 fmt::format("`{}` already has {} {}", names.subject(number), own_max,
                             said->family == Terms::Family::quota ? "quotas" : "cost thresholds"));
  }
  if (known) {
    account.begin(books, *known, terms_number);  // a limit that was changed may be reached again
    if (of_default) account.end(books, *of_default);
    return {};
  }
  const Account::Counter counter = of_default ? *of_default : account.free_place(books, said->what);
  account.begin(books, counter, terms_number);
  account.set_own_id(books, counter.position, id);
  if (of_default) return {};  // which counted the same: its use stays
  if (!seeds.empty()) account.bring_up(books, ns);
  for (const Seed& seed : seeds) account.adjust(books, counter, said, seed.amount, unix_ns(seed.when));
  return {};
}

void Limits::Impl::remove_own(AccountNumber number, Terms::Family family, std::string_view id) {
  Account& account = at(number);
  const std::scoped_lock lock(account);
  keep(number);
  const auto defaults = books.terms.set(account.defaults());
  account.each(books, [&](const Account::Counter& counter, const Terms& said) {
    if (said->each || said->family != family || account.own_id(books, counter.position) != id) return;
    const auto same =
        std::ranges::find_if(defaults, [&](std::uint32_t one) { return books.terms[one]->what == said->what; });
    bool other = same == defaults.end();
    account.each(books, [&](const Account::Counter& beside, const Terms& of_beside) {
      other = other || (beside.position != counter.position && of_beside->what == said->what);
    });
    const std::int64_t used = counter.used.get();
    account.end(books, counter);
    if (other) return;
    counter.used.set(used);  // the default takes over what was counted
    account.begin(books, counter, *same);
  });
}

Result<> Limits::put_quota(std::string_view org, const Quota& quota, Instant now, std::span<const Seed> seeds) {
  const std::scoped_lock rules(impl_->rules_mutex);
  const OrgNumber org_number = impl_->names.obtain_org(org);
  const std::uint32_t said = CRETO_TRY(impl_->books.terms.of(org_number, quota));
  if (const auto kind = each_of(quota.subject)) return impl_->books.terms.put_default(org_number, *kind, said);
  return impl_->put_own(impl_->obtain(org_number, quota.subject), quota.id, said, ns_of(now), seeds, false);
}

Result<> Limits::put_quota_anew(std::string_view org, const Quota& quota, Instant now, std::span<const Seed> seeds) {
  const std::scoped_lock rules(impl_->rules_mutex);
  const OrgNumber org_number = impl_->names.obtain_org(org);
  const std::uint32_t said = CRETO_TRY(impl_->books.terms.of(org_number, quota));
  return impl_->put_own(impl_->obtain(org_number, quota.subject), quota.id, said, ns_of(now), seeds, true);
}

void Limits::know_session(std::string_view org, std::string_view subject, const SessionLife& life) {
  const std::scoped_lock rules(impl_->rules_mutex);
  const AccountNumber number = impl_->obtain(impl_->names.obtain_org(org), subject);
  Account& account = impl_->at(number);
  const std::scoped_lock lock(account);
  impl_->keep(number);
  if (!account.life(impl_->books).is_used()) account.life(impl_->books) = life;
}

void Limits::remove_quota(std::string_view org, const Quota& quota) {
  const std::scoped_lock rules(impl_->rules_mutex);
  const OrgNumber org_number = impl_->names.find_org(org);
  if (const auto kind = each_of(quota.subject)) {
    impl_->books.terms.remove_default(org_number, *kind, Terms::Family::quota, quota.id);
  } else if (const AccountNumber number = impl_->find(org, quota.subject); number != AccountNumber::none) {
    impl_->remove_own(number, Terms::Family::quota, quota.id);
  }
}

Result<> Limits::put_threshold(std::string_view org, const SubjectThreshold& threshold, Instant now,
                               std::span<const Seed> seeds) {
  return impl_->put_threshold(org, threshold, now, seeds, false);
}

Result<> Limits::put_threshold_anew(std::string_view org, const SubjectThreshold& threshold, Instant now,
                                    std::span<const Seed> seeds) {
  return impl_->put_threshold(org, threshold, now, seeds, true);
}

Result<> Limits::Impl::put_threshold(std::string_view org, const SubjectThreshold& threshold, Instant now,
                                     std::span<const Seed> seeds, bool anew) {
  const std::scoped_lock rules(rules_mutex);
  const OrgNumber org_number = names.obtain_org(org);
  const std::uint32_t said = CRETO_TRY(books.terms.of(org_number, threshold));
  if (const auto kind = each_of(threshold.subject)) return books.terms.put_default(org_number, *kind, said);
  const AccountNumber number = obtain(org_number, threshold.subject);
  std::optional<Seed> so_far;
  {
    Account& account = at(number);
    const std::scoped_lock lock(account);
    account.learn_weeks(books);
    const std::int64_t at_ns = std::max(ns_of(now), account.stamp());
    if (const auto window = books.terms[said].cost_window())
      so_far = Seed{from_unix_ns(at_ns), account.cost_in(books, *window, at_ns)};
  }
  if (so_far && so_far->amount != 0) seeds = std::span(&*so_far, 1);
  return put_own(number, threshold.threshold.threshold_id, said, ns_of(now), seeds, anew);
}

void Limits::remove_threshold(std::string_view org, const SubjectThreshold& threshold) {
  const std::scoped_lock rules(impl_->rules_mutex);
  const OrgNumber org_number = impl_->names.find_org(org);
  const std::string& id = threshold.threshold.threshold_id;
  if (const auto kind = each_of(threshold.subject)) {
    impl_->books.terms.remove_default(org_number, *kind, Terms::Family::threshold, id);
  } else if (const AccountNumber number = impl_->find(org, threshold.subject); number != AccountNumber::none) {
    impl_->remove_own(number, Terms::Family::threshold, id);
  }
}

void Limits::bind(std::string_view org, std::string_view agent, std::string_view subscription) {
  const OrgNumber number = impl_->names.obtain_org(org);
  const AccountNumber billed_to = subscription.empty() ? AccountNumber::none : impl_->obtain(number, subscription);
  impl_->at(impl_->obtain(number, agent)).set_billed_to(billed_to);
}

std::string Limits::subscription_of(std::string_view org, std::string_view agent,
                                    std::span<const Identity> chain) const {
  const auto of = [&](std::string_view subject) {
    const AccountNumber number = impl_->find(org, subject);
    return number == AccountNumber::none ? number : impl_->at(number).billed_to();
  };
  AccountNumber found = of(agent);
  for (auto ancestor = chain.rbegin(); found == AccountNumber::none && ancestor != chain.rend(); ++ancestor)
    found = of(ancestor->text());
  return found == AccountNumber::none ? std::string() : impl_->names.subject(found);
}

}  // namespace creto::metering

#include <fmt/format.h>

#include <algorithm>

#include "billing/biller.h"
#include "creto/common/time_zone.h"
#include "creto/io/idempotency.h"
#include "service.h"
#include "service_words.h"

namespace creto::metering {
namespace {

constexpr std::size_t terms_max = 1'000;
constexpr Nanos repeat_window = std::chrono::hours(24);

std::string resource_of(const SubscriptionId& id) { return "metering:subscription:" + id.to_string(); }

Result<> check_quantity(const Decimal& quantity) {
  if (quantity <= Decimal() || quantity > Decimal(1'000'000'000)) {
    return error(ErrorKind::invalid_input, "quantity: must be above 0 and at most 10^9");
  }
  return {};
}

Result<StoredSubscription> stored_subscription(sql::Tx& tx, const std::string& org, const SubscriptionId& id) {
  auto found = CRETO_TRY(billing::find_subscription(tx, org, id));
  if (!found) return not_found("subscription", id.to_string());
  return *std::move(found);
}

}  // namespace

Result<Plan> MeteringService::put_plan(const Context& ctx, const Plan& plan) {
  CRETO_TRY(validate(plan));
  return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Plan> {
    const auto newest = CRETO_TRY(billing::find_plan(tx, ctx.org, plan.id, 0));
    Plan next = plan;
    next.version = newest ? newest->version : 1;
    if (newest) {
      const std::string before = CRETO_TRY(to_json(*newest));
      const std::string after = CRETO_TRY(to_json(next));
      if (before == after) return *newest;
      ++next.version;
    }
    CRETO_TRY(billing::insert_plan(tx, ctx.org, next));
    CRETO_TRY(audit_change(tx, ctx, "plan_created", fmt::format("metering:plan:{}:{}", next.id, next.version)));
    return next;
  });
}

// --- what models cost

std::shared_ptr<const PriceTable> MeteringService::prices_of(const std::string& org) const {
  const std::scoped_lock lock(prices_mutex_);
  const auto found = prices_.find(org);
  return found == prices_.end() ? nullptr : found->second;
}

Result<PriceImport> MeteringService::import_prices(const Context& ctx, std::string_view table,
                                                   std::optional<Instant> effective) {
  const Instant from = effective.value_or(clock_.now());
  ImportedPrices imported = CRETO_TRY(import_model_prices(table, from));
  CRETO_TRY(database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    for (const ModelPrice& price : imported.prices) CRETO_TRY(store::put_price(tx, ctx.org, price));
    return audit_change(tx, ctx, "prices_imported", fmt::format("metering:prices:{}", to_rfc3339(from)),
                        fmt::format(R"({{"models":"{}"}})", imported.prices.size()));
  }));
  const PriceImport done{imported.prices.size(), imported.left_out, from};
  const std::scoped_lock lock(prices_mutex_);
  auto& known = prices_[ctx.org];
  const PriceTable before = known == nullptr ? PriceTable() : *known;
  known = std::make_shared<const PriceTable>(before.with(std::move(imported.prices)));
  return done;
}

Result<std::vector<ModelPrice>> MeteringService::list_prices(const Context& ctx, std::string_view model) {
  const auto prices = prices_of(ctx.org);
  return prices == nullptr ? std::vector<ModelPrice>() : prices->list(model, clock_.now());
}

Result<Plan> MeteringService::get_plan(const Context& ctx, std::string_view id, std::int64_t version) {
  auto plan =
      CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return billing::find_plan(tx, ctx.org, id, version); }));
  if (!plan) return not_found("plan", id);
  return *std::move(plan);
}

Result<std::vector<Plan>> MeteringService::list_plans(const Context& ctx) {
  return sql::read(database_, ctx, [&](sql::Tx& tx) { return billing::newest_plans(tx, ctx.org); });
}

Result<Subscription> MeteringService::subscribe(const Context& ctx, const NewSubscription& wanted) {
  const Identity agent = CRETO_TRY(Identity::parse(wanted.agent));
  CRETO_TRY(check_quantity(wanted.quantity));
  CRETO_TRY(TimeZone::load(wanted.time_zone));
  const bool known = CRETO_TRY(nhi_.is_registered(ctx, agent));
  if (!known) return not_found("agent", wanted.agent);
  const std::unique_lock rules(rules_mutex_);
  const auto make = [&](sql::Tx& tx) -> Result<Subscription> {
    const auto plan = CRETO_TRY(billing::find_plan(tx, ctx.org, wanted.plan_id, wanted.plan_version));
    if (!plan) return not_found("plan", wanted.plan_id);
    const auto there = CRETO_TRY(billing::list_subscriptions(tx, ctx.org, agent.text()));
    for (const Subscription& one : there) {
      if (!one.has_ended(clock_.now())) {
        return error(ErrorKind::already_exists,
                     fmt::format("`{}` has subscription `{}`", agent.text(), one.id.to_string()));
      }
    }
    const Instant now = clock_.now();
    StoredSubscription stored{.org = ctx.org,
                              .subscription = {.id = SubscriptionId::fresh(now), .agent = agent.text()}};
    Subscription& subscription = stored.subscription;
    subscription.billing_time = wanted.billing_time;
    subscription.time_zone = wanted.time_zone;
    subscription.started_at = now;
    subscription.terms = {{plan->id, plan->version, wanted.quantity, wanted.overrides, now}};
    stored.billed_until = now;
    FactSource source = facts();
    stored.seen = source.end();
    Biller biller(tx, ctx, now, source, options_.issuer);
    const auto opening = CRETO_TRY(biller.opening_lines(subscription, now));
    stored.opened = opening.empty();
    CRETO_TRY(biller.schedule(stored));
    CRETO_TRY(billing::put_subscription(tx, stored));
    CRETO_TRY(audit_change(tx, ctx, "subscription_created", resource_of(subscription.id)));
    return subscription;
  };
  const Subscription made = CRETO_TRY(sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Subscription> {
    return io::once(
        tx, ctx, "metering.subscribe", repeat_window, [&] { return make(tx); },
        [](const Subscription& subscription) { return subscription.id.to_string(); },
        [&](std::string_view id) -> Result<Subscription> {
          const SubscriptionId first = CRETO_TRY(SubscriptionId::parse(id));
          StoredSubscription stored = CRETO_TRY(stored_subscription(tx, ctx.org, first));
          return std::move(stored.subscription);
        });
  }));
  remember(ctx.org, made);
  return made;
}

/// Requires: `rules_mutex_` is held alone.
void MeteringService::remember(const std::string& org, const Subscription& subscription) {
  auto& of_agent = subscriptions_[{org, subscription.agent}];
  const auto known = std::ranges::find(of_agent, subscription.id, &Subscription::id);
  if (known == of_agent.end()) {
    of_agent.push_back(subscription);
  } else {
    *known = subscription;
  }
  ++subscriptions_changed_;
  bind(org, of_agent, clock_.now());
}

/// What the agent uses from now on counts for the subscription that it is billed to. Requires: likewise.
void MeteringService::bind(const std::string& org, const std::vector<Subscription>& of_agent, Instant now) {
  const auto active = std::ranges::find_if(of_agent, [&](const Subscription& one) { return !one.has_ended(now); });
  limits_.bind(org, of_agent.front().agent, active == of_agent.end() ? "" : active->id.to_string());
  if (active != of_agent.end() && active->ended_at) next_end_ = std::min(next_end_, *active->ended_at);
}

/// Requests to spend no longer count for those that were to end meanwhile; facts never did.
void MeteringService::let_go_of_ended(Instant now) {
  {
    const std::shared_lock rules(rules_mutex_);
    if (now < next_end_) return;
  }
  const std::unique_lock rules(rules_mutex_);
  next_end_ = Instant::max();
  for (const auto& [key, of_agent] : subscriptions_) {
    if (std::ranges::any_of(of_agent, [](const Subscription& one) { return one.ended_at.has_value(); }))
      bind(key.first, of_agent, now);
  }
}

Result<Subscription> MeteringService::change_subscription(const Context& ctx, const SubscriptionId& id,
                                                          const SubscriptionChange& change) {
  CRETO_TRY(check_quantity(change.terms.quantity));
  const std::unique_lock rules(rules_mutex_);
  const auto make = [&](sql::Tx& tx) -> Result<Subscription> {
    StoredSubscription stored = CRETO_TRY(stored_subscription(tx, ctx.org, id));
    Subscription& subscription = stored.subscription;
    const Instant now = clock_.now();
    if (subscription.has_ended(now)) {
      return error(ErrorKind::conflict, fmt::format("subscription `{}` has ended", id.to_string()));
    }
    subscription.ended_at.reset();
    const auto newest = CRETO_TRY(billing::find_plan(tx, ctx.org, change.terms.plan_id, change.terms.plan_version));
    if (!newest) return not_found("plan", change.terms.plan_id);
    FactSource source = facts();
    Biller biller(tx, ctx, now, source, options_.issuer);
    const auto before = CRETO_TRY(biller.plan_of(subscription.terms_at(now)));
    SubscriptionTerms next = change.terms;
    next.plan_version = newest->version;
    const auto after = CRETO_TRY(biller.plan_of(next));
    if (before->currency != after->currency) {
      return error(ErrorKind::conflict, "plan: must have the currency of the plan before");
    }
    if (before->interval != after->interval && !change.at_period_end) {
      return error(ErrorKind::conflict, "plan: another interval can only begin at the end of a period");
    }
    const Period period = CRETO_TRY(biller.period_of(subscription, now));
    next.from = change.at_period_end ? period.end : now;
    std::erase_if(subscription.terms, [&](const SubscriptionTerms& terms) {
      return terms.from > now || (terms.from == next.from && terms.from > subscription.started_at);
    });
    if (next.from <= subscription.terms.back().from) {  // within the moment of the start
      next.from = subscription.terms.back().from;
      subscription.terms.pop_back();
    }
    if (subscription.terms.size() >= terms_max) {
      return error(ErrorKind::resource_exhausted, fmt::format("terms: must change at most {} times", terms_max));
    }
    subscription.terms.push_back(std::move(next));
    CRETO_TRY(biller.schedule(stored));
    CRETO_TRY(billing::put_subscription(tx, stored));
    CRETO_TRY(audit_change(tx, ctx, "subscription_changed", resource_of(id)));
    return subscription;
  };
  const Subscription changed = CRETO_TRY(sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Subscription> {
    return io::once(
        tx, ctx, "metering.change_subscription", repeat_window, [&] { return make(tx); },
        [](const Subscription& subscription) { return subscription.id.to_string(); },
        [&](std::string_view) -> Result<Subscription> {
          StoredSubscription stored = CRETO_TRY(stored_subscription(tx, ctx.org, id));
          return std::move(stored.subscription);
        });
  }));
  remember(ctx.org, changed);
  return changed;
}

Result<Subscription> MeteringService::end_subscription(const Context& ctx, const SubscriptionId& id,
                                                       SubscriptionEnd end) {
  const std::unique_lock rules(rules_mutex_);
  const Subscription ended = CRETO_TRY(sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Subscription> {
    StoredSubscription stored = CRETO_TRY(stored_subscription(tx, ctx.org, id));
    Subscription& subscription = stored.subscription;
    const bool at_period_end = end == SubscriptionEnd::period_end;
    // A period has a length: what ends in the moment of its start ends right after it.
    const Instant now = std::max(clock_.now(), subscription.started_at + Nanos(1));
    if (subscription.has_ended(now) || (subscription.ended_at && at_period_end)) return subscription;
    FactSource source = facts();
    Biller biller(tx, ctx, now, source, options_.issuer);
    subscription.ended_at = now;
    if (at_period_end) {
      const Period period = CRETO_TRY(biller.period_of(subscription, now));
      subscription.ended_at = period.end;
    }
    std::erase_if(subscription.terms, [&](const SubscriptionTerms& terms) {
      return terms.from > now && terms.from >= *subscription.ended_at;
    });
    CRETO_TRY(biller.schedule(stored));
    CRETO_TRY(billing::put_subscription(tx, stored));
    CRETO_TRY(audit_change(tx, ctx, "subscription_ended", resource_of(id),
                           fmt::format(R"({{"at":"{}"}})", to_rfc3339(*subscription.ended_at))));
    return subscription;
  }));
  remember(ctx.org, ended);
  return ended;
}

Result<Subscription> MeteringService::get_subscription(const Context& ctx, const SubscriptionId& id) {
  StoredSubscription stored =
      CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return stored_subscription(tx, ctx.org, id); }));
  return std::move(stored.subscription);
}

Result<std::vector<Subscription>> MeteringService::list_subscriptions(const Context& ctx, std::string_view agent) {
  return sql::read(database_, ctx, [&](sql::Tx& tx) { return billing::list_subscriptions(tx, ctx.org, agent); });
}

}  // namespace creto::metering

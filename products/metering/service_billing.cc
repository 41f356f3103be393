#include "service.h"

#include <fmt/format.h>

#include <algorithm>

#include "creto/io/bus.h"
#include "creto/io/idempotency.h"
#include "invoicing.h"
#include "service_words.h"
#include "window.h"

namespace creto::metering {
namespace {

constexpr std::string_view invoice_context = "creto.invoice.v1";

}  // namespace

// --- plans and subscriptions
// ---------------------------------------------------------------------------------------------

Result<Plan> MeteringService::put_plan(const Context& ctx, const Plan& plan) {
  CRETO_TRY(validate(plan));
  return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Plan> {
    const auto newest = CRETO_TRY(store::find_plan(tx, ctx.org, plan.id, 0));
    Plan next = plan;
    next.version = newest ? newest->version : 1;
    if (newest) {
      const std::string before = CRETO_TRY(to_json(*newest));
      const std::string after = CRETO_TRY(to_json(next));
      if (before == after) return *newest;
      ++next.version;
    }
    CRETO_TRY(store::insert_plan(tx, ctx.org, next));
    CRETO_TRY(audit_change(tx, ctx, "plan_created", fmt::format("metering:plan:{}:{}", next.id, next.version)));
    return next;
  });
}

Result<Plan> MeteringService::get_plan(const Context& ctx, std::string_view id, std::int64_t version) {
  auto plan =
      CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find_plan(tx, ctx.org, id, version); }));
  if (!plan) return not_found("plan", id);
  return *std::move(plan);
}

Result<std::vector<Plan>> MeteringService::list_plans(const Context& ctx) {
  return sql::read(database_, ctx, [&](sql::Tx& tx) { return store::newest_plans(tx, ctx.org); });
}

Result<Subscription> MeteringService::subscribe(const Context& ctx, const NewSubscription& wanted) {
  const Identity agent = CRETO_TRY(Identity::parse(wanted.agent));
  const bool known = CRETO_TRY(nhi_.is_registered(ctx, agent));
  if (!known) return not_found("agent", wanted.agent);
  const std::unique_lock rules(rules_mutex_);
  auto& of_agent = subscriptions_[{ctx.org, agent.text()}];
  const Subscription made = CRETO_TRY(sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Subscription> {
    return io::once(
        tx, ctx, "metering.subscribe", std::chrono::hours(24),
        [&]() -> Result<Subscription> {
          const auto plan = CRETO_TRY(store::find_plan(tx, ctx.org, wanted.plan_id, wanted.plan_version));
          if (!plan) return not_found("plan", wanted.plan_id);
          const auto there = CRETO_TRY(store::list_subscriptions(tx, ctx.org, agent.text()));
          for (const Subscription& one : there) {
            if (!one.ended_at) {
              return error(ErrorKind::already_exists,
                           fmt::format("`{}` has subscription `{}`", agent.text(), one.id.to_string()));
            }
          }
          const Instant now = clock_.now();
          const Subscription subscription{
              SubscriptionId::fresh(now), agent.text(), plan->id, plan->version, now, std::nullopt};
          CRETO_TRY(store::put_subscription(tx, ctx.org, subscription));
          CRETO_TRY(
              audit_change(tx, ctx, "subscription_created", "metering:subscription:" + subscription.id.to_string()));
          return subscription;
        },
        [](const Subscription& subscription) { return subscription.id.to_string(); },
        [&](std::string_view id) -> Result<Subscription> {
          const SubscriptionId first = CRETO_TRY(SubscriptionId::parse(id));
          auto found = CRETO_TRY(store::find_subscription(tx, ctx.org, first));
          if (!found) return not_found("subscription", id);
          return *std::move(found);
        });
  }));
  if (std::ranges::find(of_agent, made.id, &Subscription::id) == of_agent.end()) of_agent.push_back(made);
  ++subscriptions_changed_;
  if (!made.ended_at) limits_.bind(ctx.org, made.agent, made.id.to_string());
  return made;
}

Result<Subscription> MeteringService::end_subscription(const Context& ctx, const SubscriptionId& id) {
  const std::unique_lock rules(rules_mutex_);
  const Subscription ended = CRETO_TRY(sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Subscription> {
    auto found = CRETO_TRY(store::find_subscription(tx, ctx.org, id));
    if (!found) return not_found("subscription", id.to_string());
    if (found->ended_at) return *found;
    found->ended_at = clock_.now();
    CRETO_TRY(store::put_subscription(tx, ctx.org, *found));
    CRETO_TRY(audit_change(tx, ctx, "subscription_ended", "metering:subscription:" + id.to_string()));
    return *found;
  }));
  auto& of_agent = subscriptions_[{ctx.org, ended.agent}];
  bool other_active = false;
  for (Subscription& one : of_agent) {
    if (one.id == id)
      one = ended;
    else if (!one.ended_at)
      other_active = true;
  }
  if (!other_active) limits_.bind(ctx.org, ended.agent, "");
  ++subscriptions_changed_;
  return ended;
}

Result<Subscription> MeteringService::get_subscription(const Context& ctx, const SubscriptionId& id) {
  auto found =
      CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find_subscription(tx, ctx.org, id); }));
  if (!found) return not_found("subscription", id.to_string());
  return *std::move(found);
}

Result<std::vector<Subscription>> MeteringService::list_subscriptions(const Context& ctx, std::string_view agent) {
  return sql::read(database_, ctx, [&](sql::Tx& tx) { return store::list_subscriptions(tx, ctx.org, agent); });
}

// --- usage and invoices
// --------------------------------------------------------------------------------------------------

Result<std::vector<UsageRow>> MeteringService::usage(const Context& ctx, const UsageQuery& query) {
  if (query.subject.empty()) return error(ErrorKind::invalid_input, "subject: is required");
  const SubjectNumber subject = ledger_->subjects().find(ctx.org, query.subject);
  std::map<std::string, UsageRow, std::less<>> rows;
  if (subject == 0) return std::vector<UsageRow>();
  CRETO_TRY(ledger_->scan({}, ledger_->position().end, [&](const StoredEvent& event) -> Result<> {
    if (!ledger_->subjects().attribution(event.attribution).counts_for(subject)) return {};
    const RecordView& record = event.record;
    if (record.time < query.from || record.time >= query.until) return {};
    if (!query.event_type.empty() && record.type != query.event_type) return {};
    auto row = rows.find(record.type);
    if (row == rows.end()) {
      const std::string type(record.type);
      row = rows.emplace(type, UsageRow{type, 0, 0, Money{Decimal(), options_.currency}}).first;
    }
    ++row->second.events;
    row->second.units = add_saturating(row->second.units, record.whole_units);
    const Money cost{from_nano_money(intake_->cost_of(record)), options_.currency};
    row->second.cost = CRETO_TRY(Money::add(row->second.cost, cost));
    return {};
  }));
  std::vector<UsageRow> all;
  for (auto& [type, row] : rows) all.push_back(std::move(row));
  return all;
}

/// Prices what `invoice` sees and `before` has not seen.
Result<InvoiceDraft::Priced> MeteringService::price_usage_of(const Context& ctx, const Subscription& subscription,
                                                             const Seen& before, const Seen& invoice) {
  const Plan plan = CRETO_TRY(get_plan(ctx, subscription.plan_id, subscription.plan_version));
  const Instant begin = before.until == Instant::min() ? subscription.started_at : before.until;
  InvoiceDraft draft(plan, {begin, invoice.until}, subscription.started_at);
  const SubjectNumber billed = ledger_->subjects().find(ctx.org, subscription.id.to_string());
  if (billed != 0) {
    CRETO_TRY(each_billable(*ledger_, before, invoice, options_.event_ahead_max, billed,
                            [&](SubjectNumber, const StoredEvent& event) -> Result<> {
                              const Properties properties = properties_of(event.record);
                              return draft.add({event.id, event.record.time, event.record.type, &properties});
                            }));
  }
  return draft.finish();
}

Result<Invoice> MeteringService::issue_invoice(const Context& ctx, const SubscriptionId& id,
                                               std::optional<Instant> until) {
  const Instant now = clock_.now();
  if (until && *until > now) return error(ErrorKind::invalid_input, "until: must not be in the future");
  const Instant end = until.value_or(now);
  // The usage log is read before the transaction, which then looks whether another invoice came between.
  const Seen before =
      CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::last_seen(tx, ctx.org, id.to_string()); }));
  const Seen seen{end, ledger_->position().end};
  const Subscription of = CRETO_TRY(get_subscription(ctx, id));
  std::optional<InvoiceDraft::Priced> priced;
  if (end > std::max(before.until, of.started_at)) priced = CRETO_TRY(price_usage_of(ctx, of, before, seen));
  Invoice issued = CRETO_TRY(sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Invoice> {
    return io::once(
        tx, ctx, "metering.issue_invoice", std::chrono::hours(24),
        [&]() -> Result<Invoice> {
          const auto subscription = CRETO_TRY(store::find_subscription(tx, ctx.org, id));
          if (!subscription) return not_found("subscription", id.to_string());
          const auto earlier = CRETO_TRY(store::list_invoices(tx, ctx.org, id));
          for (const Invoice& one : earlier) {
            if (one.period.end == end) return one;
          }
          const Instant begin = earlier.empty() ? subscription->started_at : earlier.front().period.end;
          if (begin >= end) {
            return error(ErrorKind::conflict, fmt::format("subscription `{}` is billed until {} already",
                                                          id.to_string(), to_rfc3339(begin)));
          }
          const auto plan = CRETO_TRY(store::find_plan(tx, ctx.org, subscription->plan_id, subscription->plan_version));
          CRETO_ASSERT(plan.has_value());

          const Period period{begin, end};
          const Seen last = CRETO_TRY(store::last_seen(tx, ctx.org, id.to_string()));
          if (!priced || last != before) return error(ErrorKind::unavailable, "another invoice has just been issued");
          const std::int64_t number = CRETO_TRY(store::next_number(tx, ctx.org));
          Invoice invoice{.id = InvoiceId::fresh(now),
                          .number = number,
                          .subscription = id,
                          .agent = subscription->agent,
                          .plan_id = plan->id,
                          .plan_version = plan->version,
                          .plan_name = plan->name,
                          .period = period,
                          .issued_at = now,
                          .currency = plan->currency,
                          .lines = priced->lines,
                          .total = priced->total,
                          .document = {},
                          .signature = {},
                          .pdf_object = {},
                          .sent = false};
          invoice.document = CRETO_TRY(invoice_document(invoice));
          CRETO_TRY(store::insert_invoice(tx, ctx.org, invoice, seen.log_end));
          CRETO_TRY(
              audit_change(tx, ctx, "invoice_generated", "metering:invoice:" + invoice.id.to_string(),
                           fmt::format(R"({{"number":"{}","total":"{}","currency":"{}"}})", invoice_number_text(number),
                                       invoice.total.to_string(), invoice.currency.code())));
          return invoice;
        },
        [](const Invoice& invoice) { return invoice.id.to_string(); },
        [&](std::string_view text) -> Result<Invoice> {
          const InvoiceId first = CRETO_TRY(InvoiceId::parse(text));
          auto found = CRETO_TRY(store::find_invoice(tx, ctx.org, first));
          if (!found) return not_found("invoice", text);
          return *std::move(found);
        });
  }));
  return finish_invoice(ctx, std::move(issued));
}

/// Signs outside the transaction that made the invoice (signing asks nhi, which has its own); a crash in between is
/// made good by `tick`. With the signature the invoice goes out.
Result<Invoice> MeteringService::finish_invoice(const Context& ctx, Invoice invoice) {
  if (invoice.signature) return invoice;
  CRETO_TRY(ensure_identity(ctx));
  const std::string bytes = "creto.invoice.v1\n" + invoice.document;
  invoice.signature = CRETO_TRY(nhi_.sign(own(ctx), self_, as_bytes(bytes), invoice_context));
  CRETO_TRY(database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(store::sign_invoice(tx, ctx.org, invoice));
    return bus::publish(tx, ctx, "metering.invoices", invoice.id.to_string(), invoice.id.to_string());
  }));
  probe_.invoiced();
  return get_invoice(ctx, invoice.id);
}

Result<Invoice> MeteringService::get_invoice(const Context& ctx, const InvoiceId& id) {
  auto found = CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find_invoice(tx, ctx.org, id); }));
  if (!found) return not_found("invoice", id.to_string());
  return *std::move(found);
}

Result<std::vector<Invoice>> MeteringService::list_invoices(const Context& ctx,
                                                            const std::optional<SubscriptionId>& subscription) {
  return sql::read(database_, ctx, [&](sql::Tx& tx) { return store::list_invoices(tx, ctx.org, subscription); });
}

Result<Bytes> MeteringService::invoice_pdf(const Context& ctx, const InvoiceId& id) {
  const Invoice invoice = CRETO_TRY(get_invoice(ctx, id));
  return render_pdf(invoice, options_.issuer);
}

Result<> MeteringService::deliver(const Context& ctx, const InvoiceId& id) {
  Invoice invoice = CRETO_TRY(get_invoice(ctx, id));
  if (invoice.sent) return {};
  const Bytes pdf = CRETO_TRY(render_pdf(invoice, options_.issuer));
  const Context self = own(ctx);
  if (invoice.pdf_object.empty()) {
    invoice.pdf_object = CRETO_TRY(delivery_.keep(self, invoice, pdf));
    CRETO_TRY(database_.transaction(self, [&](sql::Tx& tx) { return store::set_delivery(tx, ctx.org, invoice); }));
  }
  CRETO_TRY(delivery_.send(self, invoice, pdf));
  invoice.sent = true;
  return database_.transaction(self, [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(store::set_delivery(tx, ctx.org, invoice));
    return audit_change(tx, self, "invoice_sent", "metering:invoice:" + invoice.id.to_string());
  });
}

}  // namespace creto::metering

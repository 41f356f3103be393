#include <fmt/format.h>

#include <algorithm>

#include "billing/biller.h"
#include "billing/credits.h"
#include "creto/io/bus.h"
#include "creto/io/idempotency.h"
#include "service.h"
#include "service_words.h"

namespace creto::metering {
namespace {

constexpr std::size_t chunk = 500;             ///< invoices of one transaction
constexpr std::size_t kept_ahead = 200'000;    ///< of what is added up for the next ones
constexpr std::size_t kept_running = 400'000;  ///< between two looks at the periods that run; more is read anew
constexpr std::size_t signed_chunk = 1'000;
constexpr Nanos after_failure = std::chrono::hours(1);
constexpr std::size_t reason_bytes_max = 256;

std::string resource_of(const InvoiceId& id) { return "metering:invoice:" + id.to_string(); }

Result<StoredInvoice> stored_invoice(sql::Tx& tx, const std::string& org, const InvoiceId& id) {
  auto found = CRETO_TRY(billing::find_invoice(tx, org, id));
  if (!found) return not_found("invoice", id.to_string());
  return *std::move(found);
}

Result<> check_reason(std::string_view field, std::string_view reason) {
  if (reason.empty() || reason.size() > reason_bytes_max || !is_valid_utf8(reason)) {
    return error(ErrorKind::invalid_input,
                 fmt::format("{}: must have 1 to {} bytes of UTF-8", field, reason_bytes_max));
  }
  return {};
}

}  // namespace

// --- making them

Result<Invoice> MeteringService::issue_invoice(const Context& ctx, const SubscriptionId& id,
                                               std::optional<Instant> until) {
  const Instant now = clock_.now();
  if (until && *until > now) return error(ErrorKind::invalid_input, "until: must not be in the future");
  const Instant end = until.value_or(now);
  FactSource source = facts();
  const auto make = [&](sql::Tx& tx) -> Result<Invoice> {
    auto earlier = CRETO_TRY(billing::find_invoice_until(tx, ctx.org, id, end));
    if (earlier && earlier->invoice.status != InvoiceStatus::draft) return std::move(earlier->invoice);
    auto stored = CRETO_TRY(billing::find_subscription(tx, ctx.org, id));
    if (!stored) return not_found("subscription", id.to_string());
    Biller biller(tx, ctx, now, source, options_.issuer);
    std::optional<Invoice> last;
    const auto drafts = CRETO_TRY(billing::drafts_until(tx, ctx.org, id, end));
    for (const StoredInvoice& draft : drafts) {
      auto answers = CRETO_TRY(biller.finalize(std::span(&draft, 1)));
      last = CRETO_TRY(std::move(answers.front()));
    }
    while (stored->due_at && *stored->due_at <= end && !Biller::is_closed(*stored)) {
      auto answers = CRETO_TRY(biller.bill(std::span(&*stored, 1), false));
      last = CRETO_TRY(std::move(answers.front()));
    }
    if (last && last->period.end == end) return *std::move(last);
    if (Biller::is_closed(*stored) && end > stored->billed_until) {
      auto late = CRETO_TRY(biller.bill_late(*stored, end));
      if (late) return *std::move(late);
      if (last) return *std::move(last);
      return error(ErrorKind::conflict,
                   fmt::format("subscription `{}` has ended, and nothing came late for it", id.to_string()));
    }
    if (end <= stored->billed_until || !stored->due_at) {
      if (last) return *std::move(last);
      return error(ErrorKind::conflict, fmt::format("subscription `{}` is billed until {} already", id.to_string(),
                                                    to_rfc3339(stored->billed_until)));
    }
    auto interims = CRETO_TRY(billing::invoices_between(tx, ctx.org, id, InvoiceKind::interim, end, *stored->due_at));
    std::erase_if(interims, [](const StoredInvoice& one) { return one.invoice.status == InvoiceStatus::voided; });
    if (!interims.empty()) {
      return error(ErrorKind::conflict, fmt::format("subscription `{}` is billed until {} already", id.to_string(),
                                                    to_rfc3339(interims.back().invoice.period.end)));
    }
    return biller.bill_interim(*stored, end);
  };
  const auto write = [&](sql::Tx& tx) -> Result<Invoice> {
    return io::once(
        tx, ctx, "metering.issue_invoice", std::chrono::hours(24), [&] { return make(tx); },
        [](const Invoice& invoice) { return invoice.id.to_string(); },
        [&](std::string_view text) -> Result<Invoice> {
          const InvoiceId first = CRETO_TRY(InvoiceId::parse(text));
          StoredInvoice stored = CRETO_TRY(stored_invoice(tx, ctx.org, first));
          return std::move(stored.invoice);
        });
  };
  const Invoice issued = CRETO_TRY(with_facts(source, [&] { return sql::write(database_, ctx, write); }));
  CRETO_TRY(sign_invoices(ctx));
  return get_invoice(ctx, issued.id);
}

void MeteringService::log_failure(const Context& ctx, const std::string& of, const Error& why) {
  telemetry_.log(LogLevel::error, "metering", "invoice_failed", &ctx, {{"of", of}, {"error", why.to_string()}});
}

/// Everything that has become due, `chunk` at a time. A subscription that cannot be billed holds up no other: it is
/// tried again later, and said so.
Result<> MeteringService::bill_due() {
  Context ctx = Context::of_service(self_);
  const Instant now = clock_.now();
  std::size_t ahead = chunk;
  for (std::size_t done = 1; done > 0;) {
    FactSource source = facts();
    CRETO_TRY(ask_ahead(source, now, ahead));
    std::size_t billed = 0;
    for (done = 1; done > 0 && billed < ahead; billed += done) done = CRETO_TRY(bill_some(ctx, source, now));
    // Each pass over the log should be for many subscriptions, but what is kept of each has to lie in memory.
    const std::size_t each = source.kept() / std::max<std::size_t>(billed, 1) + 1;
    ahead = std::clamp(kept_ahead / each, chunk, 4 * ahead);
  }
  for (std::size_t done = 1; done > 0;) done = CRETO_TRY(finalize_some(ctx, now));
  return {};
}

/// Reads the events of those that will be billed next.
Result<> MeteringService::ask_ahead(FactSource& source, Instant now, std::size_t count) {
  Context ctx = Context::of_service(self_);
  CRETO_TRY(database_.read(ctx, [&](sql::Tx& tx) -> Result<> {
    std::vector<StoredSubscription> due = CRETO_TRY(billing::due_subscriptions(tx, now, count));
    if (due.empty()) return {};
    ctx.org = due.front().org;
    return Biller(tx, ctx, now, source, options_.issuer).ask_ahead(due);
  }));
  return source.fetch();
}

Result<std::size_t> MeteringService::bill_some(Context& ctx, FactSource& source, Instant now) {
  const auto bill = [&](sql::Tx& tx) -> Result<std::size_t> {
    std::vector<StoredSubscription> marked = CRETO_TRY(billing::due_subscriptions(tx, now, chunk));
    if (marked.empty()) return 0U;
    ctx.org = marked.front().org;
    Biller biller(tx, ctx, now, source, options_.issuer);
    std::vector<StoredSubscription> due;
    std::vector<StoredSubscription> closed;
    for (StoredSubscription& one : marked) {
      if (const auto scheduled = biller.schedule(one); !scheduled) {
        log_failure(ctx, one.subscription.id.to_string(), scheduled.error());
        CRETO_TRY(billing::postpone(tx, ctx.org, one.subscription.id, now + after_failure));
      } else if (one.due_at && *one.due_at <= now) {
        (Biller::is_closed(one) ? closed : due).push_back(std::move(one));
      } else {  // taken over from earlier tables, it did not know yet when it is due
        CRETO_TRY(billing::put_progress(tx, one));
      }
    }
    const auto answers = CRETO_TRY(biller.bill(due, true));
    for (std::size_t i = 0; i < due.size(); ++i) {
      if (answers[i]) continue;
      log_failure(ctx, due[i].subscription.id.to_string(), answers[i].error());
      CRETO_TRY(billing::postpone(tx, ctx.org, due[i].subscription.id, now + after_failure));
    }
    for (StoredSubscription& one : closed) CRETO_TRY(biller.bill_late(one, *one.due_at));
    return marked.size();
  };
  return with_facts(source, [&] { return sql::write(database_, ctx, bill); });
}

Result<std::size_t> MeteringService::finalize_some(Context& ctx, Instant now) {
  FactSource source = facts();
  const auto finalize = [&](sql::Tx& tx) -> Result<std::size_t> {
    const std::vector<StoredInvoice> drafts = CRETO_TRY(billing::due_drafts(tx, now, chunk, ctx.org));
    if (drafts.empty()) return 0U;
    const auto answers = CRETO_TRY(Biller(tx, ctx, now, source, options_.issuer).finalize(drafts));
    for (std::size_t i = 0; i < drafts.size(); ++i) {
      if (answers[i]) continue;
      log_failure(ctx, drafts[i].invoice.id.to_string(), answers[i].error());
      CRETO_TRY(billing::postpone_draft(tx, ctx.org, drafts[i].invoice.id, now + after_failure));
    }
    return drafts.size();
  };
  return with_facts(source, [&] { return sql::write(database_, ctx, finalize); });
}

Result<> MeteringService::bill_interims() {
  // Only what is used, or agreed on anew, can want one; now and then what was used ahead of time.
  const BlockAddress until = ledger_->position().end;
  const std::uint64_t version = subscriptions_changed_.load();
  const bool same = until == interims_until_ && version == interims_version_;
  if (same && clock_.now() < interims_at_ + options_.event_ahead_max) return {};
  bool all_billed = true;
  Context ctx = Context::of_service(self_);
  const Instant now = clock_.now();
  std::vector<StoredSubscription> watched =
      CRETO_TRY(sql::read(database_, ctx, [](sql::Tx& tx) { return billing::watched_subscriptions(tx); }));
  const auto ask = [&](FactSource& source, std::span<StoredSubscription> of_org, bool ahead) {
    return with_facts(source, [&] {
      return sql::read(database_, ctx, [&](sql::Tx& tx) {
        return Biller(tx, ctx, now, source, options_.issuer).wanting_interim(of_org, ahead);
      });
    });
  };
  if (running_ == nullptr || running_->kept() > kept_running) {
    running_ = std::make_unique<FactSource>(facts());
  } else {
    CRETO_TRY(running_->go_on());
  }
  FactSource source = facts();
  for (std::size_t begin = 0; begin < watched.size();) {
    std::size_t end = begin;
    while (end < watched.size() && watched[end].org == watched[begin].org) ++end;
    const std::span of_org = std::span(watched).subspan(begin, end - begin);
    ctx.org = of_org.front().org;
    // Only what is new is read of all; of the few that may be due, their whole period.
    const std::vector<Biller::Wanting> perhaps = CRETO_TRY(ask(*running_, of_org, true));
    std::vector<StoredSubscription> asked;
    for (const Biller::Wanting& one : perhaps) asked.push_back(of_org[one.subscription]);
    std::vector<Biller::Wanting> wanting;
    if (!asked.empty()) wanting = CRETO_TRY(ask(source, asked, false));
    for (const auto& [i, scope] : wanting) {
      StoredSubscription& stored = asked[i];
      const auto billed = with_facts(source, [&, scope = scope] {
        return sql::write(database_, ctx, [&](sql::Tx& tx) {
          return Biller(tx, ctx, now, source, options_.issuer).bill_interim(stored, now, scope);
        });
      });
      if (billed) continue;
      all_billed = false;
      log_failure(ctx, stored.subscription.id.to_string(), billed.error());
    }
    begin = end;
  }
  if (all_billed) {
    interims_until_ = until;
    interims_version_ = version;
    interims_at_ = now;
  }
  return {};
}

/// A balance also falls where no invoice takes of it: by time, or by a human.
Result<> MeteringService::top_up_low() {
  Context ctx = Context::of_service(self_);
  const Instant now = clock_.now();
  FactSource source = facts();
  const auto low = CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) -> Result<std::vector<billing::OpenTopUp>> {
    std::vector<billing::OpenTopUp> open = CRETO_TRY(billing::open_top_ups(tx));
    std::vector<billing::OpenTopUp> found;
    for (billing::OpenTopUp& one : open) {
      ctx.org = one.org;
      const bool is_low = CRETO_TRY(Biller(tx, ctx, now, source, options_.issuer).is_low(one.top_up));
      if (is_low) found.push_back(std::move(one));
    }
    return found;
  }));
  for (const billing::OpenTopUp& one : low) {
    ctx.org = one.org;
    const auto bought = database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
      const auto rule = CRETO_TRY(billing::find_top_up(tx, ctx.org, one.top_up.agent));
      if (!rule || !rule->pending.empty()) return {};  // changed meanwhile
      Biller biller(tx, ctx, now, source, options_.issuer);
      const bool still = CRETO_TRY(biller.is_low(rule->top_up));
      const auto all = CRETO_TRY(billing::list_subscriptions(tx, ctx.org, one.top_up.agent));
      const auto active = std::ranges::find_if(all, [&](const Subscription& known) { return !known.has_ended(now); });
      if (!still || active == all.end()) return {};
      auto stored = CRETO_TRY(billing::find_subscription(tx, ctx.org, active->id));
      return stored ? biller.top_up(*stored, rule->top_up) : Result<>();
    });
    if (!bought) log_failure(ctx, one.top_up.agent, bought.error());
  }
  return {};
}

/// Signs what the organization's invoices lack: one alone, more as one batch. Outside the transaction that made them
/// (signing asks nhi, which has its own); a crash in between is made good by `tick`. With the signature an invoice goes
/// out.
Result<> MeteringService::sign_invoices(const Context& ctx) {
  const std::scoped_lock lock(signing_mutex_);
  std::vector<InvoiceId> ids;
  std::vector<Hash256> leaves;
  std::string only;
  for (std::int64_t after = 0;;) {
    const auto page = CRETO_TRY(sql::read(
        database_, ctx, [&](sql::Tx& tx) { return billing::unsigned_invoices(tx, ctx.org, after, signed_chunk); }));
    for (const billing::UnsignedInvoice& one : page) {
      ids.push_back(one.id);
      leaves.push_back(InvoiceBatch::leaf_hash(one.document));
      only = one.document;
      after = one.number;
    }
    if (page.size() < signed_chunk) break;
  }
  if (ids.empty()) return {};
  CRETO_TRY(ensure_identity(ctx));
  const auto published = [&](sql::Tx& tx, const InvoiceId& id) {
    return bus::publish(tx, ctx, "metering.invoices", id.to_string(), id.to_string());
  };
  const std::size_t count = ids.size();
  if (count == 1) {
    const std::string leaf = invoice_leaf(only);
    const Signature signature = CRETO_TRY(nhi_.sign(own(ctx), self_, as_bytes(leaf), invoice_signature_context));
    CRETO_TRY(database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
      CRETO_TRY(billing::sign_invoice(tx, ctx.org, ids.front(), signature));
      return published(tx, ids.front());
    }));
    probe_.invoiced();
    return {};
  }
  const InvoiceBatch batch(std::move(leaves));
  const std::string text = batch_text(batch.size(), batch.root());
  const Signature signature = CRETO_TRY(nhi_.sign(own(ctx), self_, as_bytes(text), invoice_signature_context));
  const std::string name = hex(batch.root());
  for (std::size_t begin = 0; begin < count; begin += signed_chunk) {
    CRETO_TRY(database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
      if (begin == 0) {
        CRETO_TRY(billing::insert_batch(tx, ctx.org, name, batch.size(), batch.root(), signature));
        CRETO_TRY(audit_change(tx, ctx, "invoices_signed", "metering:invoice_batch:" + name,
                               fmt::format(R"({{"size":"{}"}})", batch.size())));
      }
      for (std::size_t i = begin; i < std::min(count, begin + signed_chunk); ++i) {
        CRETO_TRY(billing::sign_invoice_in(tx, ctx.org, ids[i], name, batch.proof(i)));
        CRETO_TRY(published(tx, ids[i]));
      }
      return {};
    }));
  }
  for (std::size_t i = 0; i < count; ++i) probe_.invoiced();
  return {};
}

Result<> MeteringService::run_billing() {
  CRETO_TRY(bill_due());
  CRETO_TRY(bill_interims());
  CRETO_TRY(top_up_low());
  Context ctx = Context::of_service(self_);
  const auto orgs = CRETO_TRY(sql::read(database_, ctx, [](sql::Tx& tx) { return billing::orgs_with_unsigned(tx); }));
  for (const std::string& org : orgs) {
    ctx.org = org;
    CRETO_TRY(sign_invoices(ctx));
  }
  return {};
}

// --- reading, settling, sending them

Result<Invoice> MeteringService::get_invoice(const Context& ctx, const InvoiceId& id) {
  FactSource source = facts();
  const auto read = [&](sql::Tx& tx) -> Result<Invoice> {
    StoredInvoice stored = CRETO_TRY(stored_invoice(tx, ctx.org, id));
    if (stored.invoice.status != InvoiceStatus::draft) return std::move(stored.invoice);
    return Biller(tx, ctx, clock_.now(), source, options_.issuer).preview(stored);
  };
  return with_facts(source, [&] { return sql::read(database_, ctx, read); });
}

Result<std::vector<Invoice>> MeteringService::list_invoices(const Context& ctx,
                                                            const std::optional<SubscriptionId>& subscription) {
  auto stored = CRETO_TRY(
      sql::read(database_, ctx, [&](sql::Tx& tx) { return billing::list_invoices(tx, ctx.org, subscription); }));
  std::vector<Invoice> invoices;
  for (StoredInvoice& one : stored) invoices.push_back(std::move(one.invoice));
  return invoices;
}

Result<Bytes> MeteringService::invoice_pdf(const Context& ctx, const InvoiceId& id) {
  const Invoice invoice = CRETO_TRY(get_invoice(ctx, id));
  return render_pdf(invoice, options_.fonts);
}

Result<Invoice> MeteringService::settle_invoice(const Context& ctx, const InvoiceId& id, InvoiceStatus status,
                                                std::string_view settlement) {
  if (status != InvoiceStatus::paid && status != InvoiceStatus::voided) {
    return error(ErrorKind::invalid_input, "status: must be paid or voided");
  }
  CRETO_TRY(check_reason("settlement", settlement));
  return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Invoice> {
    StoredInvoice stored = CRETO_TRY(stored_invoice(tx, ctx.org, id));
    Invoice& invoice = stored.invoice;
    if (invoice.status == status) return std::move(invoice);
    if (invoice.status != InvoiceStatus::finalized) {
      return error(ErrorKind::conflict, fmt::format("invoice `{}` is {}", id.to_string(), to_string(invoice.status)));
    }
    if (status == InvoiceStatus::voided) {
      const auto notes = CRETO_TRY(billing::list_notes(tx, ctx.org, id));
      if (!notes.empty() || !invoice.credited.is_zero()) {
        return error(
            ErrorKind::conflict,
            fmt::format("invoice `{}` gave a credit already and cannot be voided; owe the rest by a credit note",
                        id.to_string()));
      }
    }
    invoice.status = status;
    invoice.settlement = settlement;
    CRETO_TRY(billing::set_settlement(tx, ctx.org, invoice));
    if (status == InvoiceStatus::voided) CRETO_TRY(give_back_credits(tx, ctx, invoice));
    if (invoice.kind == InvoiceKind::top_up) CRETO_TRY(finish_top_up(tx, ctx, invoice));
    CRETO_TRY(audit_change(tx, ctx, fmt::format("invoice_{}", to_string(status)), resource_of(id)));
    return std::move(invoice);
  });
}

Result<> MeteringService::deliver(const Context& ctx, const InvoiceId& id) {
  Invoice invoice = CRETO_TRY(get_invoice(ctx, id));
  if (invoice.sent) return {};
  const Bytes pdf = CRETO_TRY(render_pdf(invoice, options_.fonts));
  const Context self = own(ctx);
  if (invoice.pdf_object.empty()) {
    invoice.pdf_object = CRETO_TRY(delivery_.keep(self, invoice, pdf));
    CRETO_TRY(database_.transaction(self, [&](sql::Tx& tx) { return billing::set_delivery(tx, ctx.org, invoice); }));
  }
  CRETO_TRY(delivery_.send(self, invoice, pdf));
  invoice.sent = true;
  return database_.transaction(self, [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(billing::set_delivery(tx, ctx.org, invoice));
    return audit_change(tx, self, "invoice_sent", resource_of(invoice.id));
  });
}

}  // namespace creto::metering

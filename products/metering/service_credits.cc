#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "billing/billing_store.h"
#include "billing/credits.h"
#include "creto/common/json.h"
#include "creto/io/idempotency.h"
#include "names.h"
#include "service.h"
#include "service_words.h"

namespace creto::metering {
namespace {

constexpr Nanos repeat_window = std::chrono::hours(24);
constexpr std::size_t text_bytes_max = 256;
constexpr std::size_t credits_max = 1'000;
constexpr int owed_priority = 0;

std::string resource_of(const CreditId& id) { return "metering:credit:" + id.to_string(); }

Result<> check_amount(std::string_view field, const Money& money) {
  const Money rounded = CRETO_TRY(money.rounded());
  if (money.amount <= Decimal() || rounded != money) {
    return error(ErrorKind::invalid_input,
                 fmt::format("{}: must be positive, with at most the places of its currency", field));
  }
  return {};
}

Result<> check_text(std::string_view field, std::string_view text) {
  if (text.empty() || text.size() > text_bytes_max || !is_valid_utf8(text)) {
    return error(ErrorKind::invalid_input, fmt::format("{}: must have 1 to {} bytes of UTF-8", field, text_bytes_max));
  }
  return {};
}

Result<StoredCredit> stored_credit(sql::Tx& tx, const std::string& org, const CreditId& id) {
  auto found = CRETO_TRY(billing::find_credit(tx, org, id));
  if (!found) return not_found("credit", id.to_string());
  return *std::move(found);
}

Result<std::string> note_document(const CreditNote& note, const Invoice& invoice) {
  return canonical_json({{"schema_version", 1},
                         {"id", note.id.to_string()},
                         {"number", std::to_string(note.number)},
                         {"invoice", note.invoice.to_string()},
                         {"invoice_number", std::to_string(invoice.number)},
                         {"agent", invoice.agent},
                         {"amount", note.amount.to_fixed(invoice.currency.places())},
                         {"currency", invoice.currency.code()},
                         {"reason", note.reason},
                         {"issued_at", to_rfc3339(note.issued_at)}});
}

}  // namespace

Result<Credit> MeteringService::grant_credit(const Context& ctx, const NewCredit& wanted) {
  const Identity agent = CRETO_TRY(Identity::parse(wanted.agent));
  CRETO_TRY(check_amount("amount", wanted.amount));
  CRETO_TRY(check_text("description", wanted.description));
  if (wanted.priority < 0 || wanted.priority > 100) {
    return error(ErrorKind::invalid_input, "priority: must be 0 to 100");
  }
  const Instant now = clock_.now();
  if (wanted.expires_at && *wanted.expires_at <= std::max(now, wanted.effective_at.value_or(now))) {
    return error(ErrorKind::invalid_input, "expires_at: must be in the future, after effective_at");
  }
  if (wanted.reset &&
      (wanted.reset->rollover_min.is_negative() || wanted.reset->rollover_max < wanted.reset->rollover_min)) {
    return error(ErrorKind::invalid_input, "reset: must have 0 <= rollover_min <= rollover_max");
  }
  const bool known = CRETO_TRY(nhi_.is_registered(ctx, agent));
  if (!known) return not_found("agent", wanted.agent);
  const auto make = [&](sql::Tx& tx) -> Result<Credit> {
    const auto there = CRETO_TRY(billing::list_credits(tx, ctx.org, agent.text()));
    if (there.size() >= credits_max) {
      return error(ErrorKind::resource_exhausted, fmt::format("an agent has at most {} credits", credits_max));
    }
    StoredCredit stored{{.id = CreditId::fresh(now),
                         .agent = agent.text(),
                         .description = wanted.description,
                         .currency = wanted.amount.currency,
                         .amount = wanted.amount.amount,
                         .balance = wanted.amount.amount,
                         .priority = wanted.priority,
                         .effective_at = wanted.effective_at.value_or(now),
                         .expires_at = wanted.expires_at,
                         .reset = wanted.reset},
                        {}};
    if (wanted.reset) stored.reset_at = next_reset(*wanted.reset, stored.credit.effective_at);
    CRETO_TRY(billing::put_credit(tx, ctx.org, stored));
    CRETO_TRY(audit_change(tx, ctx, "credit_granted", resource_of(stored.credit.id)));
    return std::move(stored.credit);
  };
  return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Credit> {
    return io::once(
        tx, ctx, "metering.grant_credit", repeat_window, [&] { return make(tx); },
        [](const Credit& credit) { return credit.id.to_string(); },
        [&](std::string_view text) -> Result<Credit> {
          const CreditId first = CRETO_TRY(CreditId::parse(text));
          StoredCredit stored = CRETO_TRY(stored_credit(tx, ctx.org, first));
          return std::move(stored.credit);
        });
  });
}

Result<Credit> MeteringService::void_credit(const Context& ctx, const CreditId& id) {
  return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Credit> {
    StoredCredit stored = CRETO_TRY(stored_credit(tx, ctx.org, id));
    if (stored.credit.voided_at) return std::move(stored.credit);
    stored.credit.voided_at = clock_.now();
    stored.credit.balance = Decimal();
    stored.reset_at.reset();
    CRETO_TRY(billing::put_credit(tx, ctx.org, stored));
    CRETO_TRY(audit_change(tx, ctx, "credit_voided", resource_of(id)));
    return std::move(stored.credit);
  });
}

Result<std::vector<Credit>> MeteringService::list_credits(const Context& ctx, std::string_view agent) {
  auto stored =
      CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return billing::list_credits(tx, ctx.org, agent); }));
  std::vector<Credit> credits;
  for (StoredCredit& one : stored) {
    CRETO_TRY(catch_up(one.credit, one.reset_at, clock_.now()));
    credits.push_back(std::move(one.credit));
  }
  return credits;
}

Result<TopUp> MeteringService::set_top_up(const Context& ctx, const TopUp& top_up) {
  const Identity agent = CRETO_TRY(Identity::parse(top_up.agent));
  if (!top_up.amount.amount.is_zero()) CRETO_TRY(check_amount("amount", top_up.amount));
  if (top_up.below.is_negative()) return error(ErrorKind::invalid_input, "below: must not be negative");
  const bool known = CRETO_TRY(nhi_.is_registered(ctx, agent));
  if (!known) return not_found("agent", top_up.agent);
  return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<TopUp> {
    TopUp set = top_up;
    set.agent = agent.text();
    CRETO_TRY(billing::put_top_up(tx, ctx.org, set));
    CRETO_TRY(audit_change(tx, ctx, "top_up_set", "metering:top_up:" + set.agent));
    return set;
  });
}

/// What a voided invoice took.
Result<> MeteringService::give_back_credits(sql::Tx& tx, const Context& ctx, const Invoice& invoice) {
  for (const InvoiceEntry& entry : invoice.entries) {
    if (entry.kind != InvoiceEntryKind::credit) continue;
    const CreditId id = CRETO_TRY(CreditId::parse(entry.id));
    StoredCredit stored = CRETO_TRY(stored_credit(tx, ctx.org, id));
    if (stored.credit.voided_at) continue;
    stored.credit.balance = CRETO_TRY(Decimal::subtract(stored.credit.balance, entry.amount));
    CRETO_TRY(billing::put_credit(tx, ctx.org, stored));
  }
  return {};
}

/// Credits that were bought are there when they are paid.
Result<> MeteringService::finish_top_up(sql::Tx& tx, const Context& ctx, const Invoice& invoice) {
  CRETO_TRY(billing::set_top_up_pending(tx, ctx.org, invoice.agent, ""));
  if (invoice.status != InvoiceStatus::paid) return {};
  const Instant now = clock_.now();
  const Credit bought{.id = CreditId::fresh(now),
                      .agent = invoice.agent,
                      .description = "Bought with " + invoice_number_text(invoice.number),
                      .currency = invoice.currency,
                      .amount = invoice.fees,
                      .balance = invoice.fees,
                      .effective_at = now};
  return billing::put_credit(tx, ctx.org, {bought, {}});
}

Result<CreditNote> MeteringService::issue_credit_note(const Context& ctx, const InvoiceId& id, const Decimal& amount,
                                                      std::string_view reason) {
  CRETO_TRY(check_text("reason", reason));
  const auto make = [&](sql::Tx& tx) -> Result<CreditNote> {
    const auto stored = CRETO_TRY(billing::find_invoice(tx, ctx.org, id));
    if (!stored) return not_found("invoice", id.to_string());
    const Invoice& invoice = stored->invoice;
    if (invoice.status != InvoiceStatus::finalized && invoice.status != InvoiceStatus::paid) {
      return error(ErrorKind::conflict, fmt::format("invoice `{}` is {}", id.to_string(), to_string(invoice.status)));
    }
    CRETO_TRY(check_amount("amount", {amount, invoice.currency}));
    Decimal owed = amount;
    const auto notes = CRETO_TRY(billing::list_notes(tx, ctx.org, id));
    for (const CreditNote& one : notes) owed = CRETO_TRY(Decimal::add(owed, one.amount));
    if (owed > invoice.total) {
      return error(ErrorKind::conflict, fmt::format("amount: all credit notes of `{}` must not exceed its total of {}",
                                                    id.to_string(), invoice.total.to_string()));
    }
    const Instant now = clock_.now();
    CreditNote note{.id = CreditNoteId::fresh(now), .invoice = id, .amount = amount, .issued_at = now};
    note.reason = reason;
    note.number = CRETO_TRY(billing::next_numbers(tx, ctx.org, "credit_note", 1));
    note.document = CRETO_TRY(note_document(note, invoice));
    CRETO_TRY(billing::insert_note(tx, ctx.org, note));
    const Credit credit{.id = CreditId::fresh(now),
                        .agent = invoice.agent,
                        .description = fmt::format("Credit note CN-{:06}", note.number),
                        .currency = invoice.currency,
                        .amount = amount,
                        .balance = amount,
                        .priority = owed_priority,
                        .effective_at = now};
    CRETO_TRY(billing::put_credit(tx, ctx.org, {credit, {}}));
    CRETO_TRY(audit_change(tx, ctx, "credit_note_issued", "metering:credit_note:" + note.id.to_string()));
    return note;
  };
  return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<CreditNote> {
    return io::once(
        tx, ctx, "metering.issue_credit_note", repeat_window, [&] { return make(tx); },
        [](const CreditNote& note) { return note.id.to_string(); },
        [&](std::string_view text) -> Result<CreditNote> {
          auto notes = CRETO_TRY(billing::list_notes(tx, ctx.org, id));
          for (CreditNote& one : notes) {
            if (one.id.to_string() == text) return std::move(one);
          }
          return not_found("credit note", text);
        });
  });
}

Result<std::vector<CreditNote>> MeteringService::list_credit_notes(const Context& ctx, const InvoiceId& invoice) {
  return sql::read(database_, ctx, [&](sql::Tx& tx) { return billing::list_notes(tx, ctx.org, invoice); });
}

Result<BillingProfile> MeteringService::set_billing_profile(const Context& ctx, const BillingProfile& profile) {
  const std::string text = CRETO_TRY(to_json(profile));
  const BillingProfile checked = CRETO_TRY(billing_profile_from_json(text));
  return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<BillingProfile> {
    CRETO_TRY(billing::put_profile(tx, ctx.org, checked));
    CRETO_TRY(audit_change(tx, ctx, "billing_profile_set", "metering:billing_profile:" + checked.subject));
    return checked;
  });
}

Result<> MeteringService::delete_billing_profile(const Context& ctx, std::string_view subject) {
  return database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    const bool gone = CRETO_TRY(billing::delete_profile(tx, ctx.org, subject));
    if (!gone) return not_found("billing profile", subject);
    return audit_change(tx, ctx, "billing_profile_deleted", fmt::format("metering:billing_profile:{}", subject));
  });
}

Result<std::vector<BillingProfile>> MeteringService::list_billing_profiles(const Context& ctx,
                                                                           std::string_view subject) {
  return sql::read(database_, ctx, [&](sql::Tx& tx) { return billing::list_profiles(tx, ctx.org, subject); });
}

Result<Coupon> MeteringService::put_coupon(const Context& ctx, const Coupon& coupon) {
  const std::string text = CRETO_TRY(to_json(coupon));
  const Coupon checked = CRETO_TRY(coupon_from_json(text));
  return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Coupon> {
    CRETO_TRY(billing::put_coupon(tx, ctx.org, checked));
    CRETO_TRY(audit_change(tx, ctx, "coupon_put", "metering:coupon:" + checked.id));
    return checked;
  });
}

Result<std::vector<Coupon>> MeteringService::list_coupons(const Context& ctx) {
  return sql::read(database_, ctx, [&](sql::Tx& tx) { return billing::list_coupons(tx, ctx.org); });
}

Result<> MeteringService::apply_coupon(const Context& ctx, const SubscriptionId& id, std::string_view name) {
  return database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    return io::once(tx, ctx, "metering.apply_coupon", repeat_window, [&]() -> Result<> {
      const auto coupon = CRETO_TRY(billing::find_coupon(tx, ctx.org, name));
      if (!coupon) return not_found("coupon", name);
      const auto subscription = CRETO_TRY(billing::find_subscription(tx, ctx.org, id));
      if (!subscription) return not_found("subscription", id.to_string());
      const Instant now = clock_.now();
      if (coupon->expires_at && *coupon->expires_at <= now) {
        return error(ErrorKind::conflict, fmt::format("coupon `{}` has expired", coupon->id));
      }
      const bool applied = CRETO_TRY(billing::apply_coupon(tx, ctx.org, id, *coupon, now));
      if (!applied) return error(ErrorKind::already_exists, fmt::format("coupon `{}` is applied", coupon->id));
      return audit_change(tx, ctx, "coupon_applied", "metering:subscription:" + id.to_string());
    });
  });
}

}  // namespace creto::metering

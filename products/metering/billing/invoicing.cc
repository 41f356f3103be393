#include "billing/invoicing.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "billing/credits.h"
#include "creto/audit/tlog.h"
#include "creto/common/assert.h"
#include "names.h"

namespace creto::metering {
namespace {

constexpr std::array billing_times{std::pair{BillingTime::calendar, std::string_view("calendar")},
                                   std::pair{BillingTime::anniversary, std::string_view("anniversary")}};
constexpr std::array invoice_kinds{std::pair{InvoiceKind::period, std::string_view("period")},
                                   std::pair{InvoiceKind::opening, std::string_view("opening")},
                                   std::pair{InvoiceKind::interim, std::string_view("interim")},
                                   std::pair{InvoiceKind::top_up, std::string_view("top_up")}};
constexpr std::array invoice_statuses{std::pair{InvoiceStatus::draft, std::string_view("draft")},
                                      std::pair{InvoiceStatus::finalized, std::string_view("finalized")},
                                      std::pair{InvoiceStatus::paid, std::string_view("paid")},
                                      std::pair{InvoiceStatus::voided, std::string_view("voided")}};
constexpr std::array line_kinds{std::pair{LineKind::base_fee, std::string_view("base_fee")},
                                std::pair{LineKind::usage, std::string_view("usage")},
                                std::pair{LineKind::minimum, std::string_view("minimum")},
                                std::pair{LineKind::commitment, std::string_view("commitment")},
                                std::pair{LineKind::proration, std::string_view("proration")},
                                std::pair{LineKind::adjustment, std::string_view("adjustment")},
                                std::pair{LineKind::purchase, std::string_view("purchase")}};
constexpr std::array entry_kinds{std::pair{InvoiceEntryKind::billed, std::string_view("billed")},
                                 std::pair{InvoiceEntryKind::coupon, std::string_view("coupon")},
                                 std::pair{InvoiceEntryKind::tax, std::string_view("tax")},
                                 std::pair{InvoiceEntryKind::credit, std::string_view("credit")}};

/// amount * percent / 100, rounded once.
Result<Decimal> percent_of(const Decimal& amount, const Decimal& percent, const Currency& currency) {
  const Decimal product = CRETO_TRY(Decimal::multiply(amount, percent));
  const Decimal exact = CRETO_TRY(Decimal::multiply(product, Decimal::literal("0.01")));
  const Money unrounded{exact, currency};
  const Money money = CRETO_TRY(unrounded.rounded());
  return money.amount;
}

Result<Decimal> coupon_amount(const Coupon& coupon, const Decimal& left, const Invoice& invoice) {
  if (left <= Decimal()) return Decimal();
  if (!coupon.amount) return percent_of(left, coupon.percent, invoice.currency);
  if (invoice.kind != InvoiceKind::period || coupon.amount->currency != invoice.currency) return Decimal();
  return std::min(left, coupon.amount->amount);
}

}  // namespace

std::string_view to_string(BillingTime billing_time) { return name_of(billing_times, billing_time); }
Result<BillingTime> billing_time_from_string(std::string_view text) {
  return value_of(billing_times, text, "billing_time");
}
std::string_view to_string(InvoiceKind kind) { return name_of(invoice_kinds, kind); }
Result<InvoiceKind> invoice_kind_from_string(std::string_view text) { return value_of(invoice_kinds, text, "kind"); }
std::string_view to_string(InvoiceStatus status) { return name_of(invoice_statuses, status); }
Result<InvoiceStatus> invoice_status_from_string(std::string_view text) {
  return value_of(invoice_statuses, text, "status");
}
std::string_view to_string(LineKind kind) { return name_of(line_kinds, kind); }
Result<LineKind> line_kind_from_string(std::string_view text) { return value_of(line_kinds, text, "kind"); }
std::string_view to_string(InvoiceEntryKind kind) { return name_of(entry_kinds, kind); }
Result<InvoiceEntryKind> entry_kind_from_string(std::string_view text) { return value_of(entry_kinds, text, "kind"); }

const SubscriptionTerms& Subscription::terms_at(Instant when) const {
  CRETO_ASSERT(!terms.empty());
  const auto next = std::ranges::upper_bound(terms, when, {}, &SubscriptionTerms::from);
  return next == terms.begin() ? *next : *std::prev(next);
}

std::string invoice_number_text(std::int64_t number) { return fmt::format("INV-{:06}", number); }

Result<> total_up(Invoice& invoice, const Reckoning& reckoning) {
  invoice.entries.clear();
  invoice.fees = Decimal();
  for (const InvoiceLine& line : invoice.lines) invoice.fees = CRETO_TRY(Decimal::add(invoice.fees, line.amount));
  Decimal total = invoice.fees;
  const auto enter = [&](InvoiceEntry entry) -> Result<> {
    total = CRETO_TRY(Decimal::add(total, entry.amount));
    invoice.entries.push_back(std::move(entry));
    return {};
  };

  for (const InvoiceEntry& entry : reckoning.billed) CRETO_TRY(enter(entry));
  for (const AppliedCoupon& applied : reckoning.coupons) {
    const Coupon& coupon = applied.coupon;
    const Decimal amount = CRETO_TRY(coupon_amount(coupon, total, invoice));
    if (amount.is_zero()) continue;
    CRETO_TRY(enter({InvoiceEntryKind::coupon, coupon.id, coupon.name, total, coupon.percent, amount.negated()}));
  }
  const Decimal taxed = total;
  for (const Tax& tax : reckoning.taxes) {
    const Decimal amount = CRETO_TRY(percent_of(taxed, tax.rate, invoice.currency));
    CRETO_TRY(enter({InvoiceEntryKind::tax, tax.id, tax.name, taxed, tax.rate, amount}));
  }
  invoice.credited = total.is_negative() ? total.negated() : Decimal();
  if (total.is_negative()) {
    invoice.total = Decimal();
    return {};
  }
  const Burned burned = CRETO_TRY(burn(reckoning.credits, total, invoice.currency, reckoning.when));
  for (const Burned::Part& part : burned.parts) {
    const auto credit = std::ranges::find(reckoning.credits, part.id, &Credit::id);
    CRETO_TRY(
        enter({InvoiceEntryKind::credit, part.id.to_string(), credit->description, total, {}, part.amount.negated()}));
  }
  invoice.total = total;
  return {};
}

Result<Decimal> billed_by(const Invoice& invoice) {
  Decimal billed = invoice.fees;
  for (const InvoiceEntry& entry : invoice.entries) {
    if (entry.kind == InvoiceEntryKind::billed) billed = CRETO_TRY(Decimal::add(billed, entry.amount));
  }
  return billed;
}

// --- signatures

std::string invoice_leaf(std::string_view document) { return std::string("creto.invoice.v1\n").append(document); }

std::string batch_text(std::uint64_t size, const Hash256& root) {
  return fmt::format("creto.invoice-batch.v1\n{}\n{}\n", size, hex(root));
}

Result<std::string> signed_text(const Invoice& invoice) {
  std::string leaf = invoice_leaf(invoice.document);
  if (!invoice.proof) return leaf;
  const InvoiceProof& proof = *invoice.proof;
  CRETO_TRY(tlog::verify_inclusion(proof.index, proof.size, tlog::leaf_hash(as_bytes(leaf)), proof.path, proof.root));
  return batch_text(proof.size, proof.root);
}

InvoiceBatch::InvoiceBatch(std::vector<Hash256> leaf_hashes) {
  levels_.push_back(std::move(leaf_hashes));
  while (levels_.back().size() > 1) {
    const std::vector<Hash256>& below = levels_.back();
    std::vector<Hash256> level(below.size() / 2);
    for (std::size_t i = 0; i < level.size(); ++i) level[i] = tlog::node_hash(below[2 * i], below[2 * i + 1]);
    levels_.push_back(std::move(level));
  }
  const auto nodes = [this](int level, std::uint64_t index) -> Result<Hash256> {
    return levels_[static_cast<std::size_t>(level)][index];
  };
  root_ = tlog::tree_root(size(), nodes).value();
}

Hash256 InvoiceBatch::leaf_hash(std::string_view document) { return tlog::leaf_hash(as_bytes(invoice_leaf(document))); }

InvoiceProof InvoiceBatch::proof(std::uint64_t index) const {
  const auto nodes = [this](int level, std::uint64_t at) -> Result<Hash256> {
    return levels_[static_cast<std::size_t>(level)][at];
  };
  return {size(), index, root_, tlog::inclusion_path(index, size(), nodes).value()};
}

}  // namespace creto::metering

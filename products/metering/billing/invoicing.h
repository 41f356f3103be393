#pragma once

#include <filesystem>
#include <span>
#include <vector>

#include "creto/metering/billing.h"

namespace creto::metering {

/// A coupon as it was when it was applied to a subscription.
struct AppliedCoupon {
  Coupon coupon;
  std::optional<int> periods_left{};  ///< none: forever
};

/// What stands between an invoice's fees and its total.
struct Reckoning {
  std::vector<InvoiceEntry> billed{};  ///< of interim invoices; amounts not positive
  std::span<const AppliedCoupon> coupons{};
  std::span<const Tax> taxes{};
  std::span<Credit> credits{};  ///< of who is billed; their balances are lowered
  Instant when{};
};

/// Fills `fees`, `entries`, `total` and `credited` from the lines. The order: fees, what is billed already, coupons,
/// taxes, credits. Percentages are rounded once each, half up. Fixed coupons are for period invoices only.
Result<> total_up(Invoice& invoice, const Reckoning& reckoning);

/// What interim invoices after this one have to take off: its fees and what it took off itself.
Result<Decimal> billed_by(const Invoice& invoice);

/// The canonical JSON of everything but status, signature and delivery (docs/formats.md, "Invoice").
Result<std::string> invoice_document(const Invoice& invoice);
/// The inverse, for what the store kept; reads every version there was. The status is `finalized`.
Result<Invoice> invoice_from_document(std::string document);

/// The invoice on A4, for people. The same invoice gives the same bytes. Texts beyond Latin-1 are set in DejaVuSans.ttf
/// and DejaVuSans-Bold.ttf of `fonts`; where these are not there, they have question marks. Errors: internal where the
/// PDF library fails.
Result<Bytes> render_pdf(const Invoice& invoice, const std::filesystem::path& fonts);

/// The bytes of an invoice that are signed, or are the leaf of a batch.
std::string invoice_leaf(std::string_view document);
/// What the signature of a batch is over.
std::string batch_text(std::uint64_t size, const Hash256& root);
/// The Merkle tree (RFC 6962, SHA-256) over invoices' leaves, in their order.
class InvoiceBatch {
 public:
  /// Requires: at least one.
  explicit InvoiceBatch(std::vector<Hash256> leaf_hashes);
  static Hash256 leaf_hash(std::string_view document);
  std::uint64_t size() const { return levels_.front().size(); }
  const Hash256& root() const { return root_; }
  InvoiceProof proof(std::uint64_t index) const;

 private:
  std::vector<std::vector<Hash256>> levels_;  ///< complete subtrees of 2^level leaves
  Hash256 root_{};
};

}  // namespace creto::metering

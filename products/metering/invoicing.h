#pragma once

#include <span>
#include <vector>

#include "aggregation.h"
#include "creto/metering/metering.h"

namespace creto::metering {

/// Adds up a period's events and prices them: the one path from usage to money.
class InvoiceDraft {
 public:
  /// `active_from`: the subscription's start; the base fee is due for each calendar month whose first active moment
  /// lies in `period`.
  InvoiceDraft(const Plan& plan, Period period, Instant active_from);

  /// Each accepted event once, in any order. Errors: those of Aggregator; the event then counts for no charge.
  Result<> add(const UsageFact& fact);

  struct Priced {
    std::vector<InvoiceLine> lines;
    Decimal total;
  };
  Result<Priced> finish() const;

 private:
  const Plan& plan_;
  Period period_;
  Instant active_from_;
  std::vector<Aggregator> aggregators_;  ///< one per charge
};

/// How many calendar months (UTC) have their first moment at or after `active_from` inside `period`.
std::int64_t months_begun(Period period, Instant active_from);

/// The canonical JSON of everything but signature and delivery (docs/formats.md, "Invoice").
Result<std::string> invoice_document(const Invoice& invoice);
/// The inverse, for what the store kept.
Result<Invoice> invoice_from_document(std::string document);

/// "INV-000042".
std::string invoice_number_text(std::int64_t number);

/// The invoice on A4, for people. The same invoice gives the same bytes.
/// Errors: internal where the PDF library fails.
Result<Bytes> render_pdf(const Invoice& invoice, std::string_view issuer);

}  // namespace creto::metering

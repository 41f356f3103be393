#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/money.h"
#include "creto/common/result.h"
#include "creto/common/time.h"
#include "creto/metering/model_price.h"
#include "ledger/usage_record.h"

namespace creto::metering {

/// The uses that have prices.
inline constexpr std::string_view model_usage_type = "inference_tokens";

/// What models cost, by name and date. Immutable; made anew where a price changes.
class PriceTable {
 public:
  /// A price of the same model and date takes the place of an earlier one.
  explicit PriceTable(std::vector<ModelPrice> prices = {});

  /// In force at `when`: of `model`, else of `provider`/`model`. Null where there is none.
  const ModelPrice* find(std::string_view model, std::string_view provider, Instant when) const;
  /// Whether a use like this may have a price.
  static bool may_price(const RecordView& record);
  /// Exact. None where the record is no use of a model that has a price.
  Result<std::optional<Money>> cost_of(const RecordView& record) const;
  /// What it may cost at most, before it is known who answers: where no provider is named, the dearest one of the
  /// model.
  Result<std::optional<Money>> highest_cost_of(const RecordView& record) const;
  /// Of one model by date; empty: of every model the one in force at `now`, else the first.
  std::vector<ModelPrice> list(std::string_view model, Instant now) const;
  /// With these, too.
  PriceTable with(std::vector<ModelPrice> more) const;

 private:
  const ModelPrice* in_force(std::string_view name, Instant when) const;

  std::map<std::string, std::vector<ModelPrice>, std::less<>> prices_;  ///< by model; each by date
  std::multimap<std::string, std::string, std::less<>> with_provider_;  ///< names, by what follows the provider
};

}  // namespace creto::metering

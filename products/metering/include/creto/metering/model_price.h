#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/money.h"
#include "creto/common/result.h"
#include "creto/common/time.h"

namespace creto::metering {

/// What tokens of one kind of request cost, each. What is absent costs as the plain tokens do.
struct TokenPrices {
  std::optional<Decimal> input{};
  std::optional<Decimal> output{};
  std::optional<Decimal> cache_read{};
  std::optional<Decimal> cache_write{};
  std::optional<Decimal> reasoning{};
  friend bool operator==(const TokenPrices&, const TokenPrices&) = default;
};

/// What a model costs from a moment on, in US dollars (docs/formats.md, "Model price").
struct ModelPrice {
  std::string model{};  ///< as events name it, perhaps with its provider and a slash before it
  Instant from{};
  std::string provider{};
  TokenPrices prices{};
  /// Requests with more than `tokens` of input cost this instead, all of them.
  struct Above {
    std::int64_t tokens = 0;
    TokenPrices prices{};
    friend bool operator==(const Above&, const Above&) = default;
  };
  std::vector<Above> above{};  ///< ascending; at most 8
  TokenPrices batch{};         ///< of requests in batches: input and output alone
  friend bool operator==(const ModelPrice&, const ModelPrice&) = default;
};

/// Canonical JSON, and back. Errors: invalid_input naming the member.
Result<std::string> to_json(const ModelPrice& price);
Result<ModelPrice> model_price_from_json(std::string_view text);

/// The public table that gateways to models share (model_prices_and_context_window.json), prices from `effective` on.
/// Entries without a price per token (of images, of seconds) are left out. Errors: too_large over 16 MiB or 20 000
/// models; invalid_input naming model and member.
struct ImportedPrices {
  std::vector<ModelPrice> prices{};
  std::size_t left_out = 0;
};
Result<ImportedPrices> import_model_prices(std::string_view table, Instant effective);

}  // namespace creto::metering

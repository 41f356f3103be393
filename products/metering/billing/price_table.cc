#include "billing/price_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <nlohmann/json.hpp>

#include "creto/common/json.h"

namespace creto::metering {
namespace {

constexpr std::size_t table_bytes_max = 16 << 20;
constexpr std::size_t models_max = 20'000;
constexpr std::size_t name_bytes_max = 256;
constexpr std::size_t above_max = 8;

using Member = std::optional<Decimal> TokenPrices::*;
/// Our names, and those of the public table, to which it adds what they hold for.
struct Kind {
  std::string_view name;
  std::string_view in_table;
  Member member;
};
constexpr std::array kinds{Kind{"input", "input_cost_per_token", &TokenPrices::input},
                           Kind{"output", "output_cost_per_token", &TokenPrices::output},
                           Kind{"cache_read", "cache_read_input_token_cost", &TokenPrices::cache_read},
                           Kind{"cache_write", "cache_creation_input_token_cost", &TokenPrices::cache_write},
                           Kind{"reasoning", "output_cost_per_reasoning_token", &TokenPrices::reasoning}};
constexpr std::string_view batches = "_batches";
constexpr std::string_view above_begin = "_above_";
constexpr std::string_view above_end = "k_tokens";

Error invalid(std::string message) { return Error(Product::metering, ErrorKind::invalid_input, std::move(message)); }

Result<> check_price(const Decimal& price, const std::string& path) {
  if (price.is_negative() || price > Decimal(1'000'000)) return invalid(path + ": must be 0 to 1000000");
  return {};
}

/// A number of the table. Written by programs: what it means is the shortest decimal that is the same number.
Result<Decimal> price_of(const Json& value, const std::string& path) {
  if (!value.is_number() && !value.is_string()) return invalid(path + ": must be a number");
  const auto price = Decimal::parse(value.is_string() ? value.get<std::string>() : value.dump());
  if (!price) return invalid(path + ": must be a decimal number");
  CRETO_TRY(check_price(*price, path));
  return *price;
}

/// Where a member of an entry goes; null where it is no price per token.
std::optional<Decimal>* place_of(std::string_view member, ModelPrice& price) {
  for (const Kind& kind : kinds) {
    if (!member.starts_with(kind.in_table)) continue;
    std::string_view rest = member.substr(kind.in_table.size());
    if (rest.empty()) return &(price.prices.*kind.member);
    if (rest == batches) return &(price.batch.*kind.member);
    if (!rest.starts_with(above_begin) || !rest.ends_with(above_end)) continue;
    rest = rest.substr(above_begin.size());
    rest.remove_suffix(std::min(rest.size(), above_end.size()));
    const auto thousands = small_integer(rest);
    if (!thousands || *thousands == 0 || *thousands > 1'000'000) continue;
    const auto known = std::ranges::find(price.above, *thousands * 1'000, &ModelPrice::Above::tokens);
    if (known != price.above.end()) return &(known->prices.*kind.member);
    if (price.above.size() == above_max) return nullptr;
    return &(price.above.emplace_back(ModelPrice::Above{*thousands * 1'000, {}}).prices.*kind.member);
  }
  return nullptr;
}

Json json_of(const TokenPrices& prices) {
  Json json = Json::object();
  for (const Kind& kind : kinds) {
    if (const auto& price = prices.*kind.member) json[std::string(kind.name)] = price->to_string();
  }
  return json;
}

Result<TokenPrices> prices_from(const Json& json, const std::string& path) {
  if (!json.is_object()) return invalid(path + ": must be an object");
  JsonReader reader(json, path);
  TokenPrices prices;
  for (const Kind& kind : kinds) {
    const Json& member = reader.any(kind.name);
    if (member.is_null()) continue;
    if (!member.is_string()) return invalid(fmt::format("{}.{}: must be a decimal string", path, kind.name));
    prices.*kind.member = CRETO_TRY(price_of(member, fmt::format("{}.{}", path, kind.name)));
  }
  CRETO_TRY(reader.finish());
  return prices;
}

/// A count of tokens; none where there is none. Errors: invalid_input where it is no whole number.
Result<std::int64_t> tokens_of(const RecordView& record, std::string_view name) {
  const std::string_view text = record.property(name);
  if (text.empty()) return 0;
  if (const auto tokens = small_integer(text)) return *tokens;
  return invalid(fmt::format("properties.{}: must be a whole number below 10^17 for its price", name));
}

/// What the tokens of `record` cost. Some providers count what was cached (or reasoned) as a part of the input
/// (output), others beside it: more of it than there is of the whole can only be beside.
Result<Money> cost_at(const ModelPrice& price, const RecordView& record) {
  const std::int64_t input = CRETO_TRY(tokens_of(record, "input_tokens"));
  const std::int64_t output = CRETO_TRY(tokens_of(record, "output_tokens"));
  const std::int64_t read = CRETO_TRY(tokens_of(record, "cached_tokens"));
  const std::int64_t written = CRETO_TRY(tokens_of(record, "cache_write_tokens"));
  const std::int64_t reasoning = CRETO_TRY(tokens_of(record, "reasoning_tokens"));
  const std::int64_t plain_in = read + written > input ? input : input - read - written;
  const std::int64_t plain_out = reasoning > output ? output : output - reasoning;

  TokenPrices each = price.prices;
  const auto change = [&](const TokenPrices& to) {
    for (const Kind& kind : kinds) {
      if (to.*kind.member) each.*kind.member = to.*kind.member;
    }
  };
  for (const ModelPrice::Above& above : price.above) {
    if (plain_in + read + written > above.tokens) change(above.prices);
  }
  if (record.property("batch") == "true") change(price.batch);
  const Decimal price_in = each.input.value_or(Decimal());
  const Decimal price_out = each.output.value_or(Decimal());
  const std::array<std::pair<std::int64_t, Decimal>, 5> parts{{{plain_in, price_in},
                                                               {read, each.cache_read.value_or(price_in)},
                                                               {written, each.cache_write.value_or(price_in)},
                                                               {plain_out, price_out},
                                                               {reasoning, each.reasoning.value_or(price_out)}}};
  Money cost{Decimal(), Currency::usd()};
  for (const auto& [tokens, per_token] : parts) {
    const Decimal part = CRETO_TRY(Decimal::multiply(Decimal(tokens), per_token));
    cost.amount = CRETO_TRY(Decimal::add(cost.amount, part));
  }
  return cost;
}

}  // namespace

Result<std::string> to_json(const ModelPrice& price) {
  Json above = Json::array();
  for (const ModelPrice::Above& one : price.above) {
    Json prices = json_of(one.prices);
    prices["tokens"] = std::to_string(one.tokens);
    above.push_back(std::move(prices));
  }
  return canonical_json({{"schema_version", 1},
                         {"model", price.model},
                         {"from", to_rfc3339(price.from)},
                         {"provider", price.provider},
                         {"currency", "USD"},
                         {"prices", json_of(price.prices)},
                         {"above", std::move(above)},
                         {"batch", json_of(price.batch)}});
}

Result<ModelPrice> model_price_from_json(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text));
  JsonReader reader(json, "model_price");
  if (reader.integer("schema_version") != 1) reader.refuse("schema_version", "must be 1");
  ModelPrice price;
  price.model = reader.text("model");
  if (price.model.empty() || price.model.size() > name_bytes_max)
    reader.refuse("model", fmt::format("must have 1 to {} bytes", name_bytes_max));
  const std::string from = reader.text("from");
  price.provider = reader.text("provider");
  if (reader.text("currency") != "USD") reader.refuse("currency", "must be USD");
  const Json& prices = reader.object("prices");
  const Json& above = reader.array("above");
  const Json& batch = reader.object("batch");
  if (above.size() > above_max) reader.refuse("above", fmt::format("must be at most {}", above_max));
  CRETO_TRY(reader.finish());
  price.from = CRETO_TRY(from_rfc3339(from));
  price.prices = CRETO_TRY(prices_from(prices, "model_price.prices"));
  price.batch = CRETO_TRY(prices_from(batch, "model_price.batch"));
  for (const Json& one : above) {
    const std::string path = fmt::format("model_price.above[{}]", price.above.size());
    if (!one.is_object() || !one.contains("tokens") || !one["tokens"].is_string())
      return invalid(path + ".tokens: must be a decimal string");
    const auto tokens = small_integer(one["tokens"].get<std::string>());
    if (!tokens || (!price.above.empty() && *tokens <= price.above.back().tokens))
      return invalid(path + ".tokens: must be whole numbers that grow");
    Json rest = one;
    rest.erase("tokens");
    TokenPrices of_tokens = CRETO_TRY(prices_from(rest, path));
    price.above.push_back({*tokens, of_tokens});
  }
  return price;
}

Result<ImportedPrices> import_model_prices(std::string_view table, Instant effective) {
  const Json json = CRETO_TRY(parse_json(table, {.bytes_max = table_bytes_max, .depth_max = 16}));
  if (!json.is_object()) return invalid("prices: must be an object by model");
  if (json.size() > models_max)
    return Error(Product::metering, ErrorKind::too_large, fmt::format("prices: must be at most {} models", models_max));
  ImportedPrices imported;
  for (const auto& [model, entry] : json.items()) {
    if (model == "sample_spec") continue;  // says what the others mean
    const std::string path = fmt::format("prices.{}", model.substr(0, 64));
    if (model.empty() || model.size() > name_bytes_max)
      return invalid(fmt::format("{}: a name has 1 to {} bytes", path, name_bytes_max));
    if (!entry.is_object()) return invalid(path + ": must be an object");
    ModelPrice price{.model = model, .from = effective};
    if (const auto provider = entry.find("litellm_provider"); provider != entry.end() && provider->is_string())
      price.provider = provider->get<std::string>().substr(0, name_bytes_max);
    for (const auto& [member, value] : entry.items()) {
      if (value.is_null()) continue;
      std::optional<Decimal>* place = place_of(member, price);
      if (place != nullptr) *place = CRETO_TRY(price_of(value, fmt::format("{}.{}", path, member.substr(0, 64))));
    }
    if (!price.prices.input && !price.prices.output) {
      ++imported.left_out;
      continue;
    }
    std::ranges::sort(price.above, {}, &ModelPrice::Above::tokens);
    imported.prices.push_back(std::move(price));
  }
  return imported;
}

PriceTable::PriceTable(std::vector<ModelPrice> prices) {
  for (ModelPrice& price : prices) {
    auto& of_model = prices_[price.model];
    const auto place = std::ranges::lower_bound(of_model, price.from, {}, &ModelPrice::from);
    if (place != of_model.end() && place->from == price.from) {
      *place = std::move(price);
    } else {
      of_model.insert(place, std::move(price));
    }
  }
  for (const auto& [name, of_model] : prices_) {
    if (const auto slash = name.find('/'); slash != std::string::npos)
      with_provider_.emplace(name.substr(slash + 1), name);
  }
}

const ModelPrice* PriceTable::in_force(std::string_view name, Instant when) const {
  const auto found = prices_.find(name);
  if (found == prices_.end()) return nullptr;
  const auto after = std::ranges::upper_bound(found->second, when, {}, &ModelPrice::from);
  return after == found->second.begin() ? nullptr : &*std::prev(after);
}

const ModelPrice* PriceTable::find(std::string_view model, std::string_view provider, Instant when) const {
  if (const ModelPrice* price = in_force(model, when)) return price;
  return provider.empty() ? nullptr : in_force(fmt::format("{}/{}", provider, model), when);
}

std::vector<ModelPrice> PriceTable::list(std::string_view model, Instant now) const {
  std::vector<ModelPrice> all;
  for (const auto& [name, of_model] : prices_) {
    if (name == model) return of_model;
    if (!model.empty()) continue;
    const ModelPrice* current = find(name, {}, now);
    all.push_back(current == nullptr ? of_model.front() : *current);
  }
  return all;
}

PriceTable PriceTable::with(std::vector<ModelPrice> more) const {
  std::vector<ModelPrice> all;
  for (const auto& [name, of_model] : prices_) all.insert(all.end(), of_model.begin(), of_model.end());
  all.insert(all.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
  return PriceTable(std::move(all));
}

bool PriceTable::may_price(const RecordView& record) { return record.cost.empty() && record.type == model_usage_type; }

Result<std::optional<Money>> PriceTable::cost_of(const RecordView& record) const {
  if (!may_price(record)) return std::optional<Money>();
  const ModelPrice* price = find(record.property("model_id"), record.property("provider"), record.time);
  if (price == nullptr) return std::optional<Money>();
  Money cost = CRETO_TRY(cost_at(*price, record));
  return std::optional(std::move(cost));
}

Result<std::optional<Money>> PriceTable::highest_cost_of(const RecordView& record) const {
  auto cost = CRETO_TRY(cost_of(record));
  if (cost || !may_price(record) || !record.property("provider").empty()) return cost;
  const auto [first, last] = with_provider_.equal_range(record.property("model_id"));
  for (auto name = first; name != last; ++name) {
    const ModelPrice* price = in_force(name->second, record.time);
    if (price == nullptr) continue;
    Money one = CRETO_TRY(cost_at(*price, record));
    if (!cost || one.amount > cost->amount) cost = std::move(one);
  }
  return cost;
}

}  // namespace creto::metering

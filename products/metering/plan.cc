#include "creto/metering/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <set>

#include "creto/common/json.h"
#include "names.h"

namespace creto::metering {
namespace {

constexpr std::size_t charges_max = 100;
constexpr std::size_t tiers_max = 100;
constexpr std::size_t text_bytes_max = 256;
constexpr std::size_t filter_values_max = 100;
constexpr int schema_version = 1;
constexpr std::int64_t whole_number_max = 1LL << 53;  // what canonical JSON holds as a number

constexpr std::array aggregations{std::pair{Aggregation::count, std::string_view("count")},
                                  std::pair{Aggregation::sum, std::string_view("sum")},
                                  std::pair{Aggregation::max, std::string_view("max")},
                                  std::pair{Aggregation::unique_count, std::string_view("unique_count")},
                                  std::pair{Aggregation::latest, std::string_view("latest")}};
constexpr std::array unit_roundings{std::pair{UnitRounding::none, std::string_view("none")},
                                    std::pair{UnitRounding::half_up, std::string_view("half_up")},
                                    std::pair{UnitRounding::ceil, std::string_view("ceil")},
                                    std::pair{UnitRounding::floor, std::string_view("floor")}};

Error invalid(const std::string& path, std::string_view rule) {
  return Error(Product::metering, ErrorKind::invalid_input, fmt::format("{}: {}", path, rule));
}

Result<> check_not_negative(const std::string& path, const Decimal& value) {
  if (value.is_negative()) return invalid(path, "must not be negative");
  return {};
}

Result<> check_tiers(const std::string& path, const std::vector<Tier>& tiers) {
  if (tiers.empty() || tiers.size() > tiers_max)
    return invalid(path, fmt::format("must have 1 to {} tiers", tiers_max));
  for (std::size_t i = 0; i < tiers.size(); ++i) {
    const std::string here = fmt::format("{}[{}]", path, i);
    const bool last = i + 1 == tiers.size();
    if (last != !tiers[i].up_to) return invalid(here + ".up_to", "must be given in all but the last tier");
    const Decimal floor = i == 0 ? Decimal() : *tiers[i - 1].up_to;
    if (tiers[i].up_to && *tiers[i].up_to <= floor) return invalid(here + ".up_to", "must grow from tier to tier");
    CRETO_TRY(check_not_negative(here + ".per_unit", tiers[i].per_unit));
    CRETO_TRY(check_not_negative(here + ".flat", tiers[i].flat));
  }
  return {};
}

struct PriceCheck {
  std::string path;
  Result<> operator()(const StandardPrice& price) const {
    return check_not_negative(path + ".per_unit", price.per_unit);
  }
  Result<> operator()(const GraduatedPrice& price) const { return check_tiers(path + ".tiers", price.tiers); }
  Result<> operator()(const GraduatedPercentagePrice& price) const { return check_tiers(path + ".tiers", price.tiers); }
  Result<> operator()(const VolumePrice& price) const { return check_tiers(path + ".tiers", price.tiers); }
  Result<> operator()(const PackagePrice& price) const {
    CRETO_TRY(check_not_negative(path + ".amount", price.amount));
    CRETO_TRY(check_not_negative(path + ".free_units", price.free_units));
    if (price.size <= Decimal()) return invalid(path + ".size", "must be positive");
    return {};
  }
  Result<> operator()(const PercentagePrice& price) const {
    CRETO_TRY(check_not_negative(path + ".rate", price.rate));
    CRETO_TRY(check_not_negative(path + ".fixed", price.fixed));
    if (price.free_events && (*price.free_events < 0 || *price.free_events > whole_number_max))
      return invalid(path + ".free_events", "must be 0 to 2^53");
    if (price.free_value) CRETO_TRY(check_not_negative(path + ".free_value", *price.free_value));
    if (price.event_min) CRETO_TRY(check_not_negative(path + ".event_min", *price.event_min));
    if (price.event_max) CRETO_TRY(check_not_negative(path + ".event_max", *price.event_max));
    if (price.event_min && price.event_max && *price.event_max < *price.event_min) {
      return invalid(path + ".event_max", "must not be below event_min");
    }
    return {};
  }
  Result<> operator()(const DynamicPrice& price) const {
    return check_not_negative(path + ".multiplier", price.multiplier);
  }
};

bool looks_at_values(const Price& price) {
  return std::holds_alternative<PercentagePrice>(price) || std::holds_alternative<DynamicPrice>(price);
}

Result<> check_metric(const std::string& path, const Charge& charge) {
  const Metric& metric = charge.metric;
  if (!is_name(metric.event_type)) return invalid(path + ".event_type", name_rule);
  const bool needs_property = metric.aggregation != Aggregation::count || looks_at_values(charge.price);
  if (needs_property && metric.property.empty()) {
    return invalid(path + ".property", "is required by this aggregation or price");
  }
  if (!metric.property.empty() && !is_name(metric.property)) return invalid(path + ".property", name_rule);
  if (!metric.group_by.empty() && !is_name(metric.group_by)) return invalid(path + ".group_by", name_rule);
  if (metric.multiply_by <= Decimal()) return invalid(path + ".multiply_by", "must be positive");
  if (metric.divide_by <= Decimal()) return invalid(path + ".divide_by", "must be positive");
  if (metric.places < -28 || metric.places > 28) return invalid(path + ".places", "must be -28 to 28");
  std::size_t values = 0;
  for (const auto& [name, wanted] : metric.match) values += wanted.size();
  for (const auto& filter : metric.ignore) {
    for (const auto& [name, wanted] : filter) values += wanted.size();
  }
  if (values > filter_values_max)
    return invalid(path, fmt::format("filters must name at most {} values", filter_values_max));
  return {};
}

// --- JSON: decimals are strings, absent members their defaults
// --------------------------------------------------------

Json filter_json(const std::map<std::string, std::vector<std::string>>& filter) {
  Json json = Json::object();
  for (const auto& [name, values] : filter) json[name] = values;
  return json;
}

Json tiers_json(const std::vector<Tier>& tiers) {
  Json json = Json::array();
  for (const Tier& tier : tiers) {
    Json one = {{"per_unit", tier.per_unit.to_string()}, {"flat", tier.flat.to_string()}};
    if (tier.up_to) one["up_to"] = tier.up_to->to_string();
    json.push_back(std::move(one));
  }
  return json;
}

struct PriceJson {
  Json operator()(const StandardPrice& price) const { return {{"per_unit", price.per_unit.to_string()}}; }
  Json operator()(const GraduatedPrice& price) const { return {{"tiers", tiers_json(price.tiers)}}; }
  Json operator()(const GraduatedPercentagePrice& price) const { return {{"tiers", tiers_json(price.tiers)}}; }
  Json operator()(const VolumePrice& price) const { return {{"tiers", tiers_json(price.tiers)}}; }
  Json operator()(const PackagePrice& price) const {
    return {{"amount", price.amount.to_string()},
            {"size", price.size.to_string()},
            {"free_units", price.free_units.to_string()}};
  }
  Json operator()(const PercentagePrice& price) const {
    Json json = {{"rate", price.rate.to_string()}, {"fixed", price.fixed.to_string()}};
    if (price.free_events) json["free_events"] = *price.free_events;
    if (price.free_value) json["free_value"] = price.free_value->to_string();
    if (price.event_min) json["event_min"] = price.event_min->to_string();
    if (price.event_max) json["event_max"] = price.event_max->to_string();
    return json;
  }
  Json operator()(const DynamicPrice& price) const { return {{"multiplier", price.multiplier.to_string()}}; }
};

Json metric_json(const Metric& metric) {
  Json json = {{"event_type", metric.event_type},
               {"aggregation", to_string(metric.aggregation)},
               {"multiply_by", metric.multiply_by.to_string()},
               {"divide_by", metric.divide_by.to_string()},
               {"rounding", to_string(metric.rounding)},
               {"places", metric.places}};
  if (!metric.property.empty()) json["property"] = metric.property;
  if (!metric.group_by.empty()) json["group_by"] = metric.group_by;
  if (!metric.match.empty()) json["match"] = filter_json(metric.match);
  for (const auto& filter : metric.ignore) json["ignore"].push_back(filter_json(filter));
  return json;
}

/// A decimal member; refused through the reader, so that its path is told.
Decimal decimal_or(JsonReader& reader, std::string_view key, const Decimal& otherwise) {
  const std::string text = reader.text_or(key, "");
  if (text.empty()) return otherwise;
  const Result<Decimal> value = Decimal::parse(text);
  if (!value) {
    reader.refuse(key, "must be a decimal string");
    return otherwise;
  }
  return *value;
}
std::optional<Decimal> optional_decimal(JsonReader& reader, std::string_view key) {
  if (reader.any(key).is_null()) return std::nullopt;
  return decimal_or(reader, key, Decimal());
}
Decimal required_decimal(JsonReader& reader, std::string_view key) {
  if (reader.any(key).is_null()) reader.refuse(key, "is required");
  return decimal_or(reader, key, Decimal());
}

Result<std::map<std::string, std::vector<std::string>>> filter_from(const Json& json, const std::string& path) {
  std::map<std::string, std::vector<std::string>> filter;
  for (const auto& [name, values] : json.items()) {
    if (!values.is_array()) return invalid(path + "." + name, "must be an array of strings");
    for (const Json& value : values) {
      if (!value.is_string()) return invalid(path + "." + name, "must be an array of strings");
      filter[name].push_back(value.get<std::string>());
    }
  }
  return filter;
}

Result<Metric> metric_from(const Json& json, const std::string& path) {
  JsonReader reader(json, path);
  Metric metric;
  metric.event_type = reader.text("event_type");
  const std::string aggregation = reader.text_or("aggregation", "count");
  metric.property = reader.text_or("property", "");
  metric.group_by = reader.text_or("group_by", "");
  metric.multiply_by = decimal_or(reader, "multiply_by", Decimal(1));
  metric.divide_by = decimal_or(reader, "divide_by", Decimal(1));
  const std::string rounding = reader.text_or("rounding", "none");
  const std::int64_t places = reader.integer_or("places", 0);
  if (places < -28 || places > 28) reader.refuse("places", "must be -28 to 28");
  const Json& match = reader.object("match");
  const Json& ignore = reader.array("ignore");
  CRETO_TRY(reader.finish());
  metric.places = static_cast<int>(places);
  metric.aggregation = CRETO_TRY(aggregation_from_string(aggregation));
  metric.rounding = CRETO_TRY(unit_rounding_from_string(rounding));
  metric.match = CRETO_TRY(filter_from(match, path + ".match"));
  for (const Json& one : ignore) {
    if (!one.is_object()) return invalid(path + ".ignore", "must be an array of objects");
    auto filter = CRETO_TRY(filter_from(one, path + ".ignore"));
    metric.ignore.push_back(std::move(filter));
  }
  return metric;
}

Result<std::vector<Tier>> tiers_from(const Json& json, const std::string& path) {
  if (json.size() > tiers_max) return invalid(path, fmt::format("must have 1 to {} tiers", tiers_max));
  std::vector<Tier> tiers;
  for (const Json& one : json) {
    if (!one.is_object()) return invalid(path, "must be an array of objects");
    JsonReader reader(one, fmt::format("{}[{}]", path, tiers.size()));
    Tier tier;
    tier.up_to = optional_decimal(reader, "up_to");
    tier.per_unit = decimal_or(reader, "per_unit", Decimal());
    tier.flat = decimal_or(reader, "flat", Decimal());
    CRETO_TRY(reader.finish());
    tiers.push_back(tier);
  }
  return tiers;
}

Result<Price> price_from(const Json& json, std::string_view kind, const std::string& path) {
  JsonReader reader(json, path);
  if (kind == "standard") {
    const StandardPrice price{required_decimal(reader, "per_unit")};
    CRETO_TRY(reader.finish());
    return Price(price);
  }
  if (kind == "package") {
    PackagePrice price;
    price.amount = required_decimal(reader, "amount");
    price.size = required_decimal(reader, "size");
    price.free_units = decimal_or(reader, "free_units", Decimal());
    CRETO_TRY(reader.finish());
    return Price(price);
  }
  if (kind == "percentage") {
    PercentagePrice price;
    price.rate = required_decimal(reader, "rate");
    price.fixed = decimal_or(reader, "fixed", Decimal());
    if (!reader.any("free_events").is_null()) price.free_events = reader.integer("free_events");
    price.free_value = optional_decimal(reader, "free_value");
    price.event_min = optional_decimal(reader, "event_min");
    price.event_max = optional_decimal(reader, "event_max");
    CRETO_TRY(reader.finish());
    return Price(price);
  }
  if (kind == "dynamic") {
    const DynamicPrice price{decimal_or(reader, "multiplier", Decimal(1))};
    CRETO_TRY(reader.finish());
    return Price(price);
  }
  if (kind != "graduated" && kind != "graduated_percentage" && kind != "volume") {
    return invalid(path, fmt::format("`{}` is no kind of charge", kind));
  }
  const Json& tiers_json = reader.array("tiers");
  CRETO_TRY(reader.finish());
  std::vector<Tier> tiers = CRETO_TRY(tiers_from(tiers_json, path + ".tiers"));
  if (kind == "graduated") return Price(GraduatedPrice{std::move(tiers)});
  if (kind == "volume") return Price(VolumePrice{std::move(tiers)});
  return Price(GraduatedPercentagePrice{std::move(tiers)});
}

Result<Charge> charge_from(const Json& json, const std::string& path) {
  if (!json.is_object()) return invalid(path, "must be an object");
  JsonReader reader(json, path);
  Charge charge;
  charge.id = reader.text("id");
  charge.description = reader.text_or("description", charge.id);
  const std::string model = reader.text("model");
  const Json& metric = reader.object("metric");
  const Json& price = reader.object("price");
  charge.minimum = decimal_or(reader, "minimum", Decimal());
  CRETO_TRY(reader.finish());
  charge.metric = CRETO_TRY(metric_from(metric, path + ".metric"));
  charge.price = CRETO_TRY(price_from(price, model, path + ".price"));
  return charge;
}

}  // namespace

std::string_view to_string(Aggregation aggregation) { return name_of(aggregations, aggregation); }
Result<Aggregation> aggregation_from_string(std::string_view text) {
  return value_of(aggregations, text, "aggregation");
}
std::string_view to_string(UnitRounding rounding) { return name_of(unit_roundings, rounding); }
Result<UnitRounding> unit_rounding_from_string(std::string_view text) {
  return value_of(unit_roundings, text, "rounding");
}

std::string_view to_string(const Price& price) {
  static constexpr std::array<std::string_view, std::variant_size_v<Price>> names = {
      "standard", "graduated", "graduated_percentage", "volume", "package", "percentage", "dynamic"};
  return names[price.index()];
}

Result<> validate(const Plan& plan) {
  if (!is_name(plan.id)) return invalid("plan.id", name_rule);
  if (plan.name.size() > text_bytes_max)
    return invalid("plan.name", fmt::format("must be at most {} bytes", text_bytes_max));
  CRETO_TRY(check_not_negative("plan.base_fee", plan.base_fee));
  if (plan.charges.size() > charges_max) {
    return invalid("plan.charges", fmt::format("must be at most {}", charges_max));
  }
  std::set<std::string_view> ids;
  for (std::size_t i = 0; i < plan.charges.size(); ++i) {
    const Charge& charge = plan.charges[i];
    const std::string path = fmt::format("plan.charges[{}]", i);
    if (!is_name(charge.id)) return invalid(path + ".id", name_rule);
    if (!ids.insert(charge.id).second) return invalid(path + ".id", "must be unique in the plan");
    if (charge.description.size() > text_bytes_max) {
      return invalid(path + ".description", fmt::format("must be at most {} bytes", text_bytes_max));
    }
    CRETO_TRY(check_not_negative(path + ".minimum", charge.minimum));
    CRETO_TRY(check_metric(path + ".metric", charge));
    CRETO_TRY(std::visit(PriceCheck{path + ".price"}, charge.price));
  }
  return {};
}

Result<std::string> to_json(const Plan& plan) {
  Json charges = Json::array();
  for (const Charge& charge : plan.charges) {
    charges.push_back({{"id", charge.id},
                       {"description", charge.description},
                       {"metric", metric_json(charge.metric)},
                       {"model", to_string(charge.price)},
                       {"price", std::visit(PriceJson(), charge.price)},
                       {"minimum", charge.minimum.to_string()}});
  }
  return canonical_json({{"schema_version", schema_version},
                         {"id", plan.id},
                         {"version", plan.version},
                         {"name", plan.name},
                         {"currency", plan.currency.code()},
                         {"base_fee", plan.base_fee.to_string()},
                         {"charges", std::move(charges)}});
}

Result<Plan> plan_from_json(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text, {.bytes_max = 256 << 10, .depth_max = 16}));
  JsonReader reader(json, "plan");
  Plan plan;
  if (reader.integer_or("schema_version", schema_version) != schema_version)
    reader.refuse("schema_version", "must be 1");
  plan.id = reader.text("id");
  plan.version = reader.integer_or("version", 0);
  if (plan.version < 0 || plan.version > whole_number_max) reader.refuse("version", "must be 0 to 2^53");
  plan.name = reader.text_or("name", plan.id);
  const std::string currency = reader.text_or("currency", "USD");
  plan.base_fee = decimal_or(reader, "base_fee", Decimal());
  const Json& charges = reader.array("charges");
  CRETO_TRY(reader.finish());
  plan.currency = CRETO_TRY(Currency::parse(currency));
  for (std::size_t i = 0; i < charges.size() && i <= charges_max; ++i) {
    Charge charge = CRETO_TRY(charge_from(charges[i], fmt::format("plan.charges[{}]", i)));
    plan.charges.push_back(std::move(charge));
  }
  CRETO_TRY(validate(plan));
  return plan;
}

}  // namespace creto::metering

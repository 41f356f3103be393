#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "creto/common/json.h"
#include "creto/metering/plan.h"

/// A plan as a document (docs/formats.md, "Plan"): decimals are strings, absent members their defaults.
namespace creto::metering {
namespace {

constexpr int schema_version = 2;                     // 1 had fewer members
constexpr std::int64_t whole_number_max = 1LL << 53;  // what canonical JSON holds as a number
constexpr std::size_t charges_max = 100;
constexpr std::size_t tiers_max = 100;
constexpr std::size_t taxes_max = 10;
constexpr std::size_t thresholds_max = 20;

Error invalid(const std::string& path, std::string_view rule) {
  return Error(Product::metering, ErrorKind::invalid_input, fmt::format("{}: {}", path, rule));
}

Json filter_json(const std::map<std::string, std::vector<std::string>>& filter) {
  Json json = Json::object();
  for (const auto& [name, values] : filter) json[name] = values;
  return json;
}

Json tiers_json(const std::vector<Tier>& tiers, TierConvention convention) {
  Json json = Json::array();
  Decimal from;
  for (const Tier& tier : tiers) {
    Json one = {{"per_unit", tier.per_unit.to_string()}, {"flat", tier.flat.to_string()}};
    const bool ranges = convention == TierConvention::ranges;
    if (ranges) one["from"] = from.to_string();
    if (tier.up_to) one[ranges ? "to" : "up_to"] = tier.up_to->to_string();
    if (ranges && tier.up_to) from = Decimal::add(*tier.up_to, Decimal(1)).value();
    json.push_back(std::move(one));
  }
  return json;
}

struct PriceJson {
  TierConvention convention;
  Json operator()(const StandardPrice& price) const { return {{"per_unit", price.per_unit.to_string()}}; }
  Json operator()(const GraduatedPrice& price) const { return {{"tiers", tiers_json(price.tiers, convention)}}; }
  Json operator()(const GraduatedPercentagePrice& price) const {
    return {{"tiers", tiers_json(price.tiers, convention)}};
  }
  Json operator()(const VolumePrice& price) const { return {{"tiers", tiers_json(price.tiers, convention)}}; }
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
  if (!metric.expression.empty()) json["expression"] = metric.expression;
  if (!metric.percentile.is_zero()) json["percentile"] = metric.percentile.to_string();
  if (metric.carried) json["carried"] = true;
  if (metric.prorated) json["prorated"] = true;
  if (!metric.group_by.empty()) json["group_by"] = metric.group_by;
  if (!metric.match.empty()) json["match"] = filter_json(metric.match);
  for (const auto& filter : metric.ignore) json["ignore"].push_back(filter_json(filter));
  return json;
}

int small_or_zero(JsonReader& reader, std::string_view key) {
  const std::int64_t value = reader.integer_or(key, 0);
  if (value < 0 || value > 1000) reader.refuse(key, "must be 0 to 1000");
  return static_cast<int>(std::clamp<std::int64_t>(value, 0, 1000));
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
  metric.expression = reader.text_or("expression", "");
  metric.percentile = decimal_or(reader, "percentile", Decimal());
  metric.carried = reader.boolean_or("carried", false);
  metric.prorated = reader.boolean_or("prorated", false);
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

Result<std::vector<Tier>> tiers_from(const Json& json, const std::string& path, TierConvention convention) {
  if (json.size() > tiers_max) return invalid(path, fmt::format("must have 1 to {} tiers", tiers_max));
  std::vector<Tier> tiers;
  for (const Json& one : json) {
    if (!one.is_object()) return invalid(path, "must be an array of objects");
    JsonReader reader(one, fmt::format("{}[{}]", path, tiers.size()));
    Tier tier;
    if (convention == TierConvention::ranges) {
      const Decimal from = required_decimal(reader, "from");
      const Decimal one_before = tiers.empty() ? Decimal(-1) : tiers.back().up_to.value_or(Decimal(-1));
      const auto expected = Decimal::add(one_before, Decimal(1));
      if (!expected || from != *expected) reader.refuse("from", "must follow the range before; the first is 0");
      tier.up_to = optional_decimal(reader, "to");
    } else {
      tier.up_to = optional_decimal(reader, "up_to");
    }
    tier.per_unit = decimal_or(reader, "per_unit", Decimal());
    tier.flat = decimal_or(reader, "flat", Decimal());
    CRETO_TRY(reader.finish());
    tiers.push_back(tier);
  }
  return tiers;
}

Result<Price> price_from(const Json& json, std::string_view kind, const std::string& path, TierConvention convention) {
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
  std::vector<Tier> tiers = CRETO_TRY(tiers_from(tiers_json, path + ".tiers", convention));
  if (kind == "graduated") return Price(GraduatedPrice{std::move(tiers)});
  if (kind == "volume") return Price(VolumePrice{std::move(tiers)});
  return Price(GraduatedPercentagePrice{std::move(tiers)});
}

Result<Charge> charge_from(const Json& json, const std::string& path, TierConvention convention) {
  if (!json.is_object()) return invalid(path, "must be an object");
  JsonReader reader(json, path);
  Charge charge;
  charge.id = reader.text("id");
  charge.description = reader.text_or("description", charge.id);
  const std::string model = reader.text("model");
  const Json& metric = reader.object("metric");
  const Json& price = reader.object("price");
  charge.free_units = decimal_or(reader, "free_units", Decimal());
  charge.discount_percent = decimal_or(reader, "discount_percent", Decimal());
  charge.maximum = optional_decimal(reader, "maximum");
  charge.minimum = decimal_or(reader, "minimum", Decimal());
  charge.in_advance = reader.boolean_or("in_advance", false);
  CRETO_TRY(reader.finish());
  charge.metric = CRETO_TRY(metric_from(metric, path + ".metric"));
  charge.price = CRETO_TRY(price_from(price, model, path + ".price", convention));
  return charge;
}

Json charge_json(const Charge& charge, TierConvention convention) {
  Json json = {{"id", charge.id},
               {"description", charge.description},
               {"metric", metric_json(charge.metric)},
               {"model", to_string(charge.price)},
               {"price", std::visit(PriceJson{convention}, charge.price)},
               {"minimum", charge.minimum.to_string()}};
  if (!charge.free_units.is_zero()) json["free_units"] = charge.free_units.to_string();
  if (!charge.discount_percent.is_zero()) json["discount_percent"] = charge.discount_percent.to_string();
  if (charge.maximum) json["maximum"] = charge.maximum->to_string();
  if (charge.in_advance) json["in_advance"] = true;
  return json;
}

Result<std::vector<Tax>> taxes_from(const Json& json) {
  if (json.size() > taxes_max) return invalid("plan.taxes", fmt::format("must be at most {}", taxes_max));
  std::vector<Tax> taxes;
  for (const Json& one : json) {
    if (!one.is_object()) return invalid("plan.taxes", "must be an array of objects");
    JsonReader reader(one, fmt::format("plan.taxes[{}]", taxes.size()));
    Tax tax;
    tax.id = reader.text("id");
    tax.name = reader.text_or("name", tax.id);
    tax.rate = required_decimal(reader, "rate");
    CRETO_TRY(reader.finish());
    taxes.push_back(std::move(tax));
  }
  return taxes;
}

Result<std::vector<Decimal>> thresholds_from(const Json& json) {
  const std::string path = "plan.progressive_thresholds";
  if (json.size() > thresholds_max) return invalid(path, fmt::format("must be at most {}", thresholds_max));
  std::vector<Decimal> thresholds;
  for (const Json& one : json) {
    const auto value = one.is_string() ? Decimal::parse(one.get<std::string>()) : Result<Decimal>(invalid(path, ""));
    if (!value) return invalid(path, "must be decimal strings");
    thresholds.push_back(*value);
  }
  return thresholds;
}

}  // namespace

Result<std::string> to_json(const Plan& plan) {
  Json json = {{"schema_version", schema_version},
               {"id", plan.id},
               {"version", plan.version},
               {"name", plan.name},
               {"currency", plan.currency.code()},
               {"interval", to_string(plan.interval)},
               {"base_fee", plan.base_fee.to_string()},
               {"charges", Json::array()}};
  for (const Charge& charge : plan.charges) json["charges"].push_back(charge_json(charge, plan.tiers));
  if (plan.base_fee_in_advance) json["base_fee_in_advance"] = true;
  if (plan.trial_days != 0) json["trial_days"] = plan.trial_days;
  if (!plan.minimum_commitment.is_zero()) json["minimum_commitment"] = plan.minimum_commitment.to_string();
  if (plan.tiers != TierConvention::up_to) json["tiers"] = to_string(plan.tiers);
  for (const Tax& tax : plan.taxes) {
    json["taxes"].push_back({{"id", tax.id}, {"name", tax.name}, {"rate", tax.rate.to_string()}});
  }
  for (const Decimal& one : plan.progressive_thresholds) json["progressive_thresholds"].push_back(one.to_string());
  if (!plan.progressive_step.is_zero()) json["progressive_step"] = plan.progressive_step.to_string();
  if (plan.grace_days != 0) json["grace_days"] = plan.grace_days;
  if (plan.payment_days != 0) json["payment_days"] = plan.payment_days;
  return canonical_json(json);
}

Result<Plan> plan_from_json(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text, {.bytes_max = 256 << 10, .depth_max = 16}));
  JsonReader reader(json, "plan");
  Plan plan;
  const std::int64_t schema = reader.integer_or("schema_version", schema_version);
  if (schema < 1 || schema > schema_version) reader.refuse("schema_version", "must be 1 or 2");
  plan.id = reader.text("id");
  plan.version = reader.integer_or("version", 0);
  if (plan.version < 0 || plan.version > whole_number_max) reader.refuse("version", "must be 0 to 2^53");
  plan.name = reader.text_or("name", plan.id);
  const std::string currency = reader.text_or("currency", "USD");
  const std::string interval = reader.text_or("interval", "monthly");
  const std::string tiers = reader.text_or("tiers", "up_to");
  plan.base_fee = decimal_or(reader, "base_fee", Decimal());
  plan.base_fee_in_advance = reader.boolean_or("base_fee_in_advance", false);
  plan.trial_days = small_or_zero(reader, "trial_days");
  plan.minimum_commitment = decimal_or(reader, "minimum_commitment", Decimal());
  const Json& charges = reader.array("charges");
  const Json& taxes = reader.array("taxes");
  const Json& thresholds = reader.array("progressive_thresholds");
  plan.progressive_step = decimal_or(reader, "progressive_step", Decimal());
  plan.grace_days = small_or_zero(reader, "grace_days");
  plan.payment_days = small_or_zero(reader, "payment_days");
  CRETO_TRY(reader.finish());
  plan.currency = CRETO_TRY(Currency::parse(currency));
  plan.interval = CRETO_TRY(interval_from_string(interval));
  plan.tiers = CRETO_TRY(tier_convention_from_string(tiers));
  for (std::size_t i = 0; i < charges.size() && i <= charges_max; ++i) {
    Charge charge = CRETO_TRY(charge_from(charges[i], fmt::format("plan.charges[{}]", i), plan.tiers));
    plan.charges.push_back(std::move(charge));
  }
  plan.taxes = CRETO_TRY(taxes_from(taxes));
  plan.progressive_thresholds = CRETO_TRY(thresholds_from(thresholds));
  CRETO_TRY(validate(plan));
  return plan;
}

}  // namespace creto::metering

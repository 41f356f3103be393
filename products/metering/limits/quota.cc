#include "creto/metering/quota.h"

#include <fmt/format.h>

#include <array>
#include <nlohmann/json.hpp>

#include "amounts.h"
#include "creto/common/json.h"
#include "creto/common/time_zone.h"
#include "limits/account_names.h"
#include "names.h"

namespace creto::metering {
namespace {

constexpr std::size_t approvers_max = 16;
constexpr std::size_t subject_bytes_max = 300;
constexpr std::size_t approver_bytes_max = 256;
constexpr std::size_t matches_max = 4;
constexpr std::size_t values_max = 32;
constexpr std::size_t value_bytes_max = 128;
constexpr int schema_version = 1;

constexpr std::array window_kinds{std::pair{WindowKind::rolling, std::string_view("rolling")},
                                  std::pair{WindowKind::hour, std::string_view("hour")},
                                  std::pair{WindowKind::day, std::string_view("day")},
                                  std::pair{WindowKind::week, std::string_view("week")},
                                  std::pair{WindowKind::month, std::string_view("month")},
                                  std::pair{WindowKind::lifetime, std::string_view("lifetime")},
                                  std::pair{WindowKind::transaction, std::string_view("transaction")},
                                  std::pair{WindowKind::concurrent, std::string_view("concurrent")}};
constexpr std::array measures{std::pair{Measure::units, std::string_view("units")},
                              std::pair{Measure::events, std::string_view("events")},
                              std::pair{Measure::cost, std::string_view("cost")}};
constexpr std::array overflows{
    std::pair{Overflow::block, std::string_view("block")},
    std::pair{Overflow::allow_with_notification, std::string_view("allow_with_notification")},
    std::pair{Overflow::oversight, std::string_view("oversight")}};

Error invalid(std::string_view path, std::string_view rule) {
  return Error(Product::metering, ErrorKind::invalid_input, fmt::format("{}: {}", path, rule));
}

Result<> check_subject(std::string_view path, const std::string& subject) {
  if (subject.size() > subject_bytes_max)
    return invalid(path, fmt::format("must be at most {} bytes", subject_bytes_max));
  if (each_of(subject) || SubscriptionId::parse(subject) || Identity::parse(subject)) return {};
  if (subject_kind(subject) == SubjectKind::session && is_valid_utf8(subject)) return {};
  return invalid(path, "must be an identity, a subscription id, \"session:<name>\", or \"agent:*\" for each agent");
}

Result<> check_match(const std::vector<PropertyMatch>& match) {
  if (match.size() > matches_max)
    return invalid("quota.match", fmt::format("must be at most {} properties", matches_max));
  for (std::size_t i = 0; i < match.size(); ++i) {
    if (!is_name(match[i].property)) return invalid("quota.match", fmt::format("a property {}", name_rule));
    for (std::size_t j = 0; j < i; ++j) {
      if (match[j].property == match[i].property) return invalid("quota.match", "names a property twice");
    }
    const std::vector<std::string>& values = match[i].values;
    if (values.empty() || values.size() > values_max)
      return invalid("quota.match", fmt::format("each property must have 1 to {} values", values_max));
    for (const std::string& value : values) {
      if (value.empty() || value.size() > value_bytes_max || !is_valid_utf8(value))
        return invalid("quota.match", fmt::format("each value must be 1 to {} bytes of text", value_bytes_max));
    }
  }
  return {};
}

Result<> check_time_zone(std::string_view path, const std::string& zone, bool has_days) {
  if (zone.empty()) return {};
  if (!has_days) return invalid(path, "belongs to days, weeks and months only");
  if (auto known = TimeZone::load(zone); !known) return invalid(path, known.error().message());
  return {};
}

Result<> check_approvers(std::string_view path, const std::vector<std::string>& approvers) {
  if (approvers.size() > approvers_max) return invalid(path, fmt::format("must be at most {}", approvers_max));
  for (const std::string& approver : approvers) {
    if (approver.empty() || approver.size() > approver_bytes_max || !is_valid_utf8(approver)) {
      return invalid(path, fmt::format("each must be 1 to {} bytes of text", approver_bytes_max));
    }
  }
  return {};
}

Result<std::vector<std::string>> texts_from(const Json& json, std::string_view path) {
  std::vector<std::string> texts;
  for (const Json& one : json) {
    if (!one.is_string()) return invalid(path, "must be an array of strings");
    texts.push_back(one.get<std::string>());
  }
  return texts;
}

}  // namespace

std::string_view to_string(WindowKind kind) { return name_of(window_kinds, kind); }
Result<WindowKind> window_kind_from_string(std::string_view text) { return value_of(window_kinds, text, "window"); }
std::string_view to_string(Measure measure) { return name_of(measures, measure); }
Result<Measure> measure_from_string(std::string_view text) { return value_of(measures, text, "measure"); }
std::string_view to_string(Overflow overflow) { return name_of(overflows, overflow); }
Result<Overflow> overflow_from_string(std::string_view text) { return value_of(overflows, text, "overflow"); }

Result<> validate(const Quota& quota) {
  if (!is_name(quota.id)) return invalid("quota.id", name_rule);
  CRETO_TRY(check_subject("quota.subject", quota.subject));
  if (quota.event_type.empty() ? quota.measure == Measure::units : !is_name(quota.event_type))
    return invalid("quota.event_type", name_rule);
  if (!quota.currency.empty()) {
    if (quota.measure != Measure::cost) return invalid("quota.currency", "belongs to quotas of cost only");
    if (auto known = Currency::parse(quota.currency); !known) return invalid("quota.currency", known.error().message());
  }
  CRETO_TRY(check_match(quota.match));
  const bool rolling = quota.window == WindowKind::rolling;
  if (rolling && (quota.rolling_length < std::chrono::seconds(1) || quota.rolling_length > std::chrono::days(366))) {
    return invalid("quota.rolling_length", "must be 1s to 366d");
  }
  if (!rolling && quota.rolling_length != Nanos(0))
    return invalid("quota.rolling_length", "belongs to a rolling window only");
  CRETO_TRY(check_time_zone(
      "quota.time_zone", quota.time_zone,
      quota.window == WindowKind::day || quota.window == WindowKind::week || quota.window == WindowKind::month));
  if (quota.limit < 0 || quota.limit > limit_max) return invalid("quota.limit", "must be 0 to 10^18");
  if (quota.soft_percent < 1 || quota.soft_percent > 100) return invalid("quota.soft_percent", "must be 1 to 100");
  return check_approvers("quota.approvers", quota.approvers);
}

std::string limit_text(const Quota& quota) {
  return quota.measure == Measure::cost ? from_nano_money(quota.limit).to_string() : std::to_string(quota.limit);
}

Result<std::string> to_json(const Quota& quota) {
  Json json = {{"schema_version", schema_version},   {"id", quota.id},
               {"subject", quota.subject},           {"event_type", quota.event_type},
               {"window", to_string(quota.window)},  {"limit", limit_text(quota)},
               {"soft_percent", quota.soft_percent}, {"overflow", to_string(quota.overflow)},
               {"approvers", quota.approvers}};
  if (quota.measure != Measure::units) json["measure"] = to_string(quota.measure);
  if (!quota.currency.empty()) json["currency"] = quota.currency;
  for (const PropertyMatch& match : quota.match) json["match"][match.property] = match.values;
  if (!quota.time_zone.empty()) json["time_zone"] = quota.time_zone;
  if (quota.window == WindowKind::rolling) json["rolling_length"] = creto::to_string(quota.rolling_length);
  return canonical_json(json);
}

Result<Quota> quota_from_json(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text, {.bytes_max = 16 << 10, .depth_max = 8}));
  JsonReader reader(json, "quota");
  Quota quota;
  if (reader.integer_or("schema_version", schema_version) != schema_version)
    reader.refuse("schema_version", "must be 1");
  quota.id = reader.text("id");
  quota.subject = reader.text("subject");
  quota.event_type = reader.text_or("event_type", "");
  const std::string measure = reader.text_or("measure", "units");
  const Json& match = reader.object("match");
  quota.currency = reader.text_or("currency", "");
  quota.time_zone = reader.text_or("time_zone", "");
  const std::string window = reader.text_or("window", "month");
  const std::string length = reader.text_or("rolling_length", "");
  const std::string money = measure == "cost" ? reader.text("limit") : std::string();
  if (measure != "cost") quota.limit = reader.integer("limit");
  const std::int64_t soft = reader.integer_or("soft_percent", 95);
  if (soft < 1 || soft > 100) reader.refuse("soft_percent", "must be 1 to 100");
  const std::string overflow = reader.text_or("overflow", "block");
  const Json& approvers = reader.array("approvers");
  CRETO_TRY(reader.finish());
  quota.soft_percent = static_cast<int>(soft);
  quota.measure = CRETO_TRY(measure_from_string(measure));
  if (quota.measure == Measure::cost) {
    const Decimal limit = CRETO_TRY(Decimal::parse(money));
    quota.limit = CRETO_TRY(to_nano_money(limit));
  }
  for (const auto& [property, values] : match.items()) {
    if (!values.is_array()) return invalid("quota.match", "must have an array of values for each property");
    PropertyMatch one{property, {}};
    one.values = CRETO_TRY(texts_from(values, "quota.match"));
    quota.match.push_back(std::move(one));
  }
  quota.window = CRETO_TRY(window_kind_from_string(window));
  quota.overflow = CRETO_TRY(overflow_from_string(overflow));
  if (!length.empty()) quota.rolling_length = CRETO_TRY(parse_duration(length));
  quota.approvers = CRETO_TRY(texts_from(approvers, "quota.approvers"));
  CRETO_TRY(validate(quota));
  return quota;
}

Result<> validate(const SubjectThreshold& threshold) {
  if (!is_name(threshold.threshold.threshold_id)) return invalid("threshold.id", name_rule);
  CRETO_TRY(check_subject("threshold.subject", threshold.subject));
  if (threshold.threshold.limit.amount.is_negative()) return invalid("threshold.limit", "must not be negative");
  const contracts::BillingPeriod period = threshold.threshold.period;
  CRETO_TRY(check_time_zone("threshold.time_zone", threshold.time_zone,
                            period == contracts::BillingPeriod::day || period == contracts::BillingPeriod::month));
  return check_approvers("threshold.approvers", threshold.threshold.approvers);
}

Result<std::string> to_json(const SubjectThreshold& threshold) {
  const contracts::CostThreshold& inner = threshold.threshold;
  Json json = {{"schema_version", schema_version},
               {"id", inner.threshold_id},
               {"subject", threshold.subject},
               {"period", contracts::to_string(inner.period)},
               {"limit", inner.limit.amount.to_string()},
               {"currency", inner.limit.currency.code()},
               {"action", contracts::to_string(inner.action)},
               {"approvers", inner.approvers}};
  if (!threshold.time_zone.empty()) json["time_zone"] = threshold.time_zone;
  return canonical_json(json);
}

Result<SubjectThreshold> threshold_from_json(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text, {.bytes_max = 16 << 10, .depth_max = 8}));
  JsonReader reader(json, "threshold");
  SubjectThreshold threshold;
  if (reader.integer_or("schema_version", schema_version) != schema_version)
    reader.refuse("schema_version", "must be 1");
  threshold.threshold.threshold_id = reader.text("id");
  threshold.subject = reader.text("subject");
  threshold.time_zone = reader.text_or("time_zone", "");
  const std::string period = reader.text_or("period", "month");
  const std::string limit = reader.text("limit");
  const std::string currency = reader.text_or("currency", "USD");
  const std::string action = reader.text_or("action", "require_approval");
  const Json& approvers = reader.array("approvers");
  CRETO_TRY(reader.finish());
  threshold.threshold.period = CRETO_TRY(contracts::billing_period_from_string(period));
  threshold.threshold.limit.amount = CRETO_TRY(Decimal::parse(limit));
  threshold.threshold.limit.currency = CRETO_TRY(Currency::parse(currency));
  threshold.threshold.action = CRETO_TRY(contracts::threshold_action_from_string(action));
  threshold.threshold.approvers = CRETO_TRY(texts_from(approvers, "threshold.approvers"));
  CRETO_TRY(validate(threshold));
  return threshold;
}

}  // namespace creto::metering

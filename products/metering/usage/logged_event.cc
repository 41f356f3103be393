#include "usage/logged_event.h"

#include <nlohmann/json.hpp>

#include "creto/common/json.h"

namespace creto::metering {

LoggedEvent logged_event_of(const Subjects& subjects, const StoredEvent& event,
                            std::vector<std::string_view>& ancestors) {
  const Attribution& attribution = subjects.attribution(event.attribution);
  const Subjects::Subject agent = subjects.subject(attribution.agent);
  ancestors.clear();
  for (const SubjectNumber ancestor : attribution.ancestors) ancestors.push_back(subjects.subject(ancestor).name);
  const RecordView& record = event.record;
  LoggedEvent logged{.id = event.id,
                     .arrived = event.arrived,
                     .org = agent.org,
                     .agent = agent.name,
                     .ancestors = ancestors,
                     .source = record.source,
                     .usage_type = record.type,
                     .idempotency_key = record.key,
                     .time = record.time,
                     .units = record.units,
                     .cost = record.cost,
                     .currency = record.currency,
                     .replaces = record.replaces,
                     .voids = record.voids,
                     .envelope = event.envelope,
                     .properties = record.properties};
  if (event.reporter != 0) logged.reporter = subjects.subject(event.reporter).name;
  if (attribution.subscription != 0) logged.subscription = subjects.subject(attribution.subscription).name;
  return logged;
}

Result<std::string> json_of(const LoggedEvent& event) {
  Json json{{"id", event.id.to_string()},
            {"arrived", to_rfc3339(event.arrived)},
            {"org", event.org},
            {"agent", event.agent},
            {"usage_type", event.usage_type},
            {"idempotency_key", event.idempotency_key},
            {"time", to_rfc3339(event.time)},
            {"units", event.units}};
  Json ancestors = Json::array();
  for (const std::string_view ancestor : event.ancestors) ancestors.push_back(ancestor);
  json["ancestors"] = std::move(ancestors);
  const auto optional = [&](const char* name, std::string_view value) {
    if (!value.empty()) json[name] = value;
  };
  optional("reporter", event.reporter);
  optional("source", event.source);
  optional("cost", event.cost);
  optional("currency", event.currency);
  optional("replaces", event.replaces);
  optional("voids", event.voids);
  optional("envelope", event.envelope);
  optional("subscription", event.subscription);
  Json properties = Json::object();
  for (const auto& [name, value] : event.properties) properties[std::string(name)] = value;
  json["properties"] = std::move(properties);
  return canonical_json(json);
}

}  // namespace creto::metering

#include "creto/metering/usage_log.h"

#include <nlohmann/json.hpp>

#include "creto/common/json.h"
#include "ledger/block_reader.h"

namespace creto::metering {
namespace {

Result<std::string> line_of(const LoggedEvent& event) {
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

}  // namespace

Result<UsageLogSummary> read_usage_log(io::FileSystem& files, const std::filesystem::path& directory,
                                       const UsageLogFilter& filter,
                                       const std::function<Result<>(const LoggedEvent&)>& visit) {
  const auto log = CRETO_TRY(read_block_files(files, directory));
  const Bytes first = CRETO_TRY(log->read(log->begin()));
  const KeyHasher hasher = CRETO_TRY(KeyHasher::of_beginning(log->begin(), first));
  UsageLogSummary summary{.events = 0, .segments = log->end().segment, .head = log->head()};
  Subjects subjects;
  RecordScratch scratch;
  std::vector<std::string_view> ancestors;
  CRETO_TRY(log->scan({}, [&](BlockAddress address, BytesView content) -> Result<> {
    if (address == log->begin()) return {};
    BlockReader block(address, content);
    CRETO_TRY(block.head());
    CRETO_TRY(block.definitions(subjects));
    if (block.arrived() < filter.from || block.arrived() >= filter.until) return {};
    return block.entries(scratch, [&](const BlockReader::Entry& entry) -> Result<> {
      const Attribution& attribution = subjects.attribution(entry.attribution);
      const Subjects::Subject agent = subjects.subject(attribution.agent);
      if (!filter.org.empty() && agent.org != filter.org) return {};
      if (!filter.subject.empty() && !attribution.counts_for(subjects.find(agent.org, filter.subject))) return {};
      ancestors.clear();
      for (const SubjectNumber ancestor : attribution.ancestors) ancestors.push_back(subjects.subject(ancestor).name);
      const RecordView& record = entry.record;
      LoggedEvent event{
          .id = entry.id ? *entry.id : id_of(hasher(subjects, entry.attribution, record), seconds_of(block.arrived())),
          .arrived = block.arrived(),
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
          .envelope = entry.envelope,
          .properties = record.properties};
      if (attribution.subscription != 0) event.subscription = subjects.subject(attribution.subscription).name;
      ++summary.events;
      return visit(event);
    });
  }));
  return summary;
}

Result<UsageLogSummary> dump_usage_log(io::FileSystem& files, const std::filesystem::path& directory,
                                       const UsageLogFilter& filter,
                                       const std::function<Result<>(std::string_view)>& line) {
  return read_usage_log(files, directory, filter, [&](const LoggedEvent& event) -> Result<> {
    const std::string text = CRETO_TRY(line_of(event));
    return line(text);
  });
}

}  // namespace creto::metering

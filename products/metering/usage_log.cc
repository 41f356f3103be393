#include "creto/metering/usage_log.h"

#include <nlohmann/json.hpp>

#include "creto/common/json.h"
#include "ledger/block_reader.h"

namespace creto::metering {
namespace {

Result<std::string> line_of(const Subjects& subjects, const EventId& id, Instant arrived,
                            const BlockReader::Entry& entry) {
  const Attribution& attribution = subjects.attribution(entry.attribution);
  const RecordView& record = entry.record;
  const Subjects::Subject agent = subjects.subject(attribution.agent);
  Json json{{"id", id.to_string()},
            {"arrived", to_rfc3339(arrived)},
            {"org", agent.org},
            {"agent", agent.name},
            {"usage_type", record.type},
            {"idempotency_key", record.key},
            {"time", to_rfc3339(record.time)},
            {"units", record.units}};
  Json ancestors = Json::array();
  for (const SubjectNumber ancestor : attribution.ancestors) ancestors.push_back(subjects.subject(ancestor).name);
  json["ancestors"] = std::move(ancestors);
  const auto optional = [&](const char* name, std::string_view value) {
    if (!value.empty()) json[name] = value;
  };
  optional("source", record.source);
  optional("cost", record.cost);
  optional("currency", record.currency);
  optional("replaces", record.replaces);
  optional("envelope", entry.envelope);
  if (attribution.subscription != 0) json["subscription"] = subjects.subject(attribution.subscription).name;
  Json properties = Json::object();
  for (const auto& [name, value] : record.properties) properties[std::string(name)] = value;
  json["properties"] = std::move(properties);
  return canonical_json(json);
}

}  // namespace

Result<UsageLogSummary> dump_usage_log(io::FileSystem& files, const std::filesystem::path& directory,
                                       const UsageLogFilter& filter,
                                       const std::function<Result<>(std::string_view)>& line) {
  const auto log = CRETO_TRY(read_block_files(files, directory));
  const Bytes first = CRETO_TRY(log->read(log->begin()));
  const KeyHasher hasher = CRETO_TRY(KeyHasher::of_beginning(log->begin(), first));
  UsageLogSummary summary{.events = 0, .segments = log->end().segment, .head = log->head()};
  Subjects subjects;
  RecordScratch scratch;
  CRETO_TRY(log->scan({}, [&](BlockAddress address, BytesView content) -> Result<> {
    if (address == log->begin()) return {};
    BlockReader block(address, content);
    CRETO_TRY(block.head());
    CRETO_TRY(block.definitions(subjects));
    if (block.arrived() < filter.from || block.arrived() >= filter.until) return {};
    return block.entries(scratch, [&](const BlockReader::Entry& entry) -> Result<> {
      const Attribution& attribution = subjects.attribution(entry.attribution);
      const std::string_view org = subjects.subject(attribution.agent).org;
      if (!filter.org.empty() && org != filter.org) return {};
      if (!filter.subject.empty() && !attribution.counts_for(subjects.find(org, filter.subject))) return {};
      const EventId id =
          entry.id ? *entry.id : id_of(hasher(subjects, entry.attribution, entry.record), seconds_of(block.arrived()));
      const std::string text = CRETO_TRY(line_of(subjects, id, block.arrived(), entry));
      ++summary.events;
      return line(text);
    });
  }));
  return summary;
}

}  // namespace creto::metering

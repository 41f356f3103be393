#include "creto/metering/usage_log.h"

#include "ledger/block_reader.h"
#include "ledger/cut_off.h"
#include "usage/logged_event.h"

namespace creto::metering {
Result<UsageLogSummary> read_usage_log(io::FileSystem& files, const std::filesystem::path& directory,
                                       const UsageLogFilter& filter,
                                       const std::function<Result<>(const LoggedEvent&)>& visit) {
  const auto log = CRETO_TRY(read_block_files(files, directory));
  UsageLogSummary summary{.events = 0, .segments = log->end().segment, .head = log->head()};
  Subjects subjects;
  BlockAddress from = log->begin();
  Bytes first;
  if (const auto base = CRETO_TRY(log->base())) {
    const CutOff cut = CRETO_TRY(read_cut_off(*base));
    from.segment = base->segment;
    first = to_bytes(cut.beginning);
    layout::Reader definitions(cut.rest);
    CRETO_TRY(subjects.read(definitions));
    summary.segments -= base->segment - 1;
    summary.held_since = cut.until;
  } else {
    first = CRETO_TRY(log->read(from));
  }
  const KeyHasher hasher = CRETO_TRY(KeyHasher::of_beginning(log->begin(), first));
  RecordScratch scratch;
  std::vector<std::string_view> ancestors;
  CRETO_TRY(log->scan(from, log->end(), [&](BlockAddress address, BytesView content, const Hash256&) -> Result<> {
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
      const EventId id =
          entry.id ? *entry.id : id_of(hasher(subjects, entry.attribution, entry.record), seconds_of(block.arrived()));
      const StoredEvent event{
          id,           address,        entry.index,   block.arrived(), entry.attribution, entry.reporter,
          entry.record, entry.envelope, entry.corrects};
      ++summary.events;
      return visit(logged_event_of(subjects, event, ancestors));
    });
  }));
  return summary;
}

Result<UsageLogSummary> dump_usage_log(io::FileSystem& files, const std::filesystem::path& directory,
                                       const UsageLogFilter& filter,
                                       const std::function<Result<>(std::string_view)>& line) {
  return read_usage_log(files, directory, filter, [&](const LoggedEvent& event) -> Result<> {
    const std::string text = CRETO_TRY(json_of(event));
    return line(text);
  });
}

}  // namespace creto::metering

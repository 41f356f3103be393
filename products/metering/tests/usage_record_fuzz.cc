#include <cstdlib>

#include "creto/metering/simulation.h"
#include "ledger/usage_record.h"
#include "usage/usage_records.h"

/// What is taken is encoded to the same content again; a report in any form never makes a record that is not taken.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace creto;
  using namespace creto::metering;
  RecordScratch scratch;
  if (const auto record = parse_record({data, size}, scratch)) {
    Bytes again;
    encode_record(*record, again);
    RecordScratch other;
    const auto second = parse_record(again, other);
    const bool same = second && second->corrects() == record->corrects() && second->agent == record->agent &&
                      second->key == record->key && second->time == record->time &&
                      second->whole_units == record->whole_units &&
                      second->properties.size() == record->properties.size();
    if (!same) std::abort();
  }
  const auto takes = [&](const Result<std::string>& encoded) {
    scratch.clear();
    if (encoded && !parse_record(as_bytes(*encoded), scratch)) std::abort();
  };
  v1::UsageReport report;
  if (report.ParseFromArray(data, static_cast<int>(size))) takes(record_of(report));
  GivenUsage usage;
  if (usage.add({reinterpret_cast<const char*>(data), size}) && usage.events() > 1) std::abort();
  google::protobuf::Struct event;
  if (event.ParseFromArray(data, static_cast<int>(size))) takes(record_of(event));
  if (const auto records = records_of_json({reinterpret_cast<const char*>(data), size}, 100)) {
    for (const auto& record : *records) takes(record);
  }
  return 0;
}

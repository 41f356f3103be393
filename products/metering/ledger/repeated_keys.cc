#include "repeated_keys.h"

#include <algorithm>

namespace creto::metering {

Result<std::vector<Instant>> repeated_keys(const Ledger& ledger, BlockAddress until, std::uint64_t events, Nanos window,
                                           std::uint64_t at_once) {
  struct Key {
    KeyHash hash;
    std::int64_t arrived_ns;
    auto operator<=>(const Key&) const = default;
  };
  const Subjects& subjects = ledger.subjects();
  std::vector<Instant> repeated;
  const std::uint64_t parts = 1 + events / at_once;
  std::vector<Key> keys;
  for (std::uint64_t part = 0; part < parts; ++part) {
    keys.clear();
    CRETO_TRY(ledger.scan({}, until, [&](const StoredEvent& event) -> Result<> {
      const Subjects::Subject agent = subjects.subject(subjects.attribution(event.attribution).agent);
      const std::string_view source = event.record.source.empty() ? event.record.agent : event.record.source;
      const KeyHash hash = ledger.key_hash(agent.org, source, event.record.key);
      if (hash.high % parts == part) keys.push_back({hash, unix_ns(event.arrived)});
      return {};
    }));
    std::ranges::sort(keys);
    for (std::size_t i = 1; i < keys.size(); ++i) {
      if (keys[i].hash == keys[i - 1].hash && keys[i].arrived_ns - keys[i - 1].arrived_ns < window.count())
        repeated.push_back(from_unix_ns(keys[i].arrived_ns));
    }
  }
  return repeated;
}

}  // namespace creto::metering

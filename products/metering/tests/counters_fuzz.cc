#include <cstddef>
#include <cstdint>
#include <memory>

#include "creto/common/assert.h"
#include "creto/testing/fuzz_seeds.h"
#include "limits/counters.h"

/// A copy of counters that anybody may have written is taken or refused; what was taken can be counted on, copied
/// again, and taken again.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace creto;
  using namespace creto::metering;
  const Instant now = from_rfc3339("2026-11-10T12:00:00Z").value();
  const auto make = [&] {
    auto limits = std::make_unique<Limits>();
    Quota quota;
    quota.id = "q";
    quota.subject = "agent:*";
    quota.event_type = "calls";
    quota.limit = 5;
    CRETO_ASSERT(limits->put_quota("o", quota, now).has_value());
    quota.subject = "human:ada@example.org";
    quota.window = WindowKind::rolling;
    quota.rolling_length = std::chrono::hours(1);
    CRETO_ASSERT(limits->put_quota("o", quota, now).has_value());
    return limits;
  };
  const auto copy_of = [](Limits& limits) {
    Bytes copy;
    limits.begin_copy(copy);
    while (limits.write_copy(copy)) continue;
    return copy;
  };
  const auto use = [&](Limits& limits) {
    const DelegationChain chain{Identity::human("ada@example.org").value()};
    std::vector<Notice> notices;
    limits.add({.org = "o", .agent = chain[0].text(), .event_type = "calls", .units = 3, .cost = 7}, now, {}, notices);
    limits.check({.org = "o", .agent = chain[0].text(), .event_type = "calls"}, now + std::chrono::hours(2));
    limits.forecast("o", chain[0].text(), contracts::BillingPeriod::month, now);
  };
  auto limits = make();
  use(*limits);
  Bytes bytes = copy_of(*limits);
  limits = make();
  if (size > 0 && data[0] == 'C') {
    bytes.assign(data, data + size);
  } else {  // a good one with some bytes changed: where, and what is flipped
    for (std::size_t i = 0; i + 2 < size; i += 3)
      bytes[(static_cast<std::size_t>(data[i]) << 8 | data[i + 1]) % bytes.size()] ^= data[i + 2];
  }
  if (!limits->load(bytes)) return 0;
  use(*limits);
  auto again = make();
  CRETO_ASSERT(again->load(copy_of(*limits)).has_value());
  return 0;
}

CRETO_FUZZ_SEEDS("CRETOCNT\x02", "abc")

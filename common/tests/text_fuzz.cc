// What a parser of common takes is written as text that it reads back as the same.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>

#include "creto/common/assert.h"
#include "creto/common/bytes.h"
#include "creto/common/event.h"
#include "creto/common/id.h"
#include "creto/common/identity.h"
#include "creto/common/json.h"
#include "creto/common/money.h"
#include "creto/common/time.h"
#include "creto/common/time_zone.h"
#include "creto/testing/fuzz_seeds.h"

namespace {

using namespace creto;

void decimal(std::string_view text) {
  const auto value = Decimal::parse(text);
  if (!value) return;
  CRETO_ASSERT(Decimal::parse(value->to_string()).value() == *value);
  CRETO_ASSERT(value->negated().negated() == *value);
  if (const auto sum = Decimal::add(*value, *value)) CRETO_ASSERT(Decimal::subtract(*sum, *value).value() == *value);
  (void)value->to_fixed(2);
  (void)value->to_integer();
}

void json(std::string_view text) {
  if (const auto texts = texts_from_json(text))
    CRETO_ASSERT(texts_from_json(texts_to_json(*texts).value()).value() == *texts);
  const auto value = parse_json(text);
  if (!value) return;
  const auto canonical = canonical_json(*value);
  if (!canonical) return;
  // What is signed must be read and signed again as the same bytes.
  const auto again = parse_json(*canonical, {.bytes_max = canonical->size(), .depth_max = 64});
  CRETO_ASSERT(again.has_value());
  CRETO_ASSERT(canonical_json(*again).value() == *canonical);
}

void event(std::string_view text) {
  const auto value = EventEnvelope::from_json(text);
  if (!value) return;
  const auto written = value->to_json();
  CRETO_ASSERT(written.has_value());
  const auto again = EventEnvelope::from_json(*written);
  CRETO_ASSERT(again.has_value());
  CRETO_ASSERT(again->signed_bytes().value() == value->signed_bytes().value());
}

void encodings(std::string_view text) {
  if (const auto bytes = from_hex(text)) CRETO_ASSERT(from_hex(hex(*bytes)).value() == *bytes);
  if (const auto bytes = from_base64(text)) CRETO_ASSERT(base64(*bytes) == text);
  if (const auto bytes = from_base64url(text)) CRETO_ASSERT(base64url(*bytes) == text);
  if (const auto bytes = from_base58(text)) CRETO_ASSERT(base58(*bytes) == text);
  if (const auto currency = Currency::parse(text)) CRETO_ASSERT(currency->code() == text);
  const std::string shown = legible(text, 16);
  CRETO_ASSERT(shown.size() <= 16 && is_valid_utf8(shown));
  CRETO_ASSERT(legible(shown) == shown);
}

/// The text is the line at the end of an otherwise empty time zone file, or the whole file.
void time_zone(std::string_view text) {
  std::string empty(50, '\0');  // a header and its one local time type, UTC
  empty.replace(0, 5, "TZif2");
  empty[39] = 1;
  std::string file = empty;
  file.append(empty).append("\n").append(text).append("\n");
  for (const std::string_view bytes : {std::string_view(file), text}) {
    const auto zone = TimeZone::parse("fuzz", as_bytes(bytes));
    if (!zone) continue;
    for (std::int64_t second = 0; second < 4'000'000'000; second += 31'000'003) {
      (void)zone->day_begin(zone->day_of(from_unix_ns(second * 1'000'000'000)));
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch ((data[0] + 6U) % 9) {  // '0' to '8'
    case 0:
      decimal(text);
      break;
    case 1:
      json(text);
      break;
    case 2:
      event(text);
      break;
    case 3:
      if (const auto value = Identity::parse(text)) CRETO_ASSERT(Identity::parse(value->text()).value() == *value);
      break;
    case 4:
      if (const auto value = from_rfc3339(text)) CRETO_ASSERT(from_rfc3339(to_rfc3339(*value)).value() == *value);
      break;
    case 5:
      if (const auto value = parse_duration(text)) CRETO_ASSERT(parse_duration(to_string(*value)).value() == *value);
      break;
    case 6:
      encodings(text);
      break;
    case 8:
      time_zone(text);
      break;
    default:
      if (const auto value = EventId::parse(text)) CRETO_ASSERT(EventId::parse(value->to_string()).value() == *value);
      break;
  }
  return 0;
}

CRETO_FUZZ_SEEDS(
    R"(0-12.5e-7)", R"(1{"b":[1,2.5e3,null,true],"a":"\u00fc\n"})",
    R"(2{"agent_nhi":"agent:nhi:ed25519:11111111111111111111111111111111","delegation_chain":["human:ada@example.com","agent:nhi:ed25519:11111111111111111111111111111111"],"event_id":"evt-01890a5d-ac96-774b-bcce-b302099a8057","event_type":"runtime_usage","payload":{"a":1},"schema_version":1,"signature":{"algorithm":"ml-dsa-65","value":"AQID"},"timestamp":{"degraded":false,"logical":"1","node":"n","physical_ns":"1800000000000000000"}})",
    R"(3agent:nhi:ed25519:11111111111111111111111111111111)", R"(3human:ada@example.com)",
    R"(42026-11-29T20:35:04.123+01:00)", R"(51h30m250ms)", R"(6AQIDBA==)", R"(8CET-1CEST,M3.5.0,M10.5.0/3)",
    R"(7evt-01890a5d-ac96-774b-bcce-b302099a8057)")

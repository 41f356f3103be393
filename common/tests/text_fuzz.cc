// What a parser of common takes is written as text that it reads back as the same.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>

#include "creto/common/assert.h"
#include "creto/common/event.h"
#include "creto/common/id.h"
#include "creto/common/identity.h"
#include "creto/common/json.h"
#include "creto/common/money.h"
#include "creto/common/time.h"

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

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 7) {
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
    default:
      if (const auto value = EventId::parse(text)) CRETO_ASSERT(EventId::parse(value->to_string()).value() == *value);
      break;
  }
  return 0;
}

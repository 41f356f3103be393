#include "usage_record.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "names.h"

namespace creto::metering {
namespace {

// Fields of UsageRecord, proto/creto/metering/v1/usage.proto.
enum Field : std::uint32_t {
  field_agent = 1,
  field_type = 2,
  field_key = 3,
  field_time = 4,
  field_units = 5,
  field_cost = 6,
  field_currency = 7,
  field_properties = 8,
  field_source = 9,
  field_replaces = 10,
  field_voids = 11,
};
enum Wire : std::uint32_t { wire_fixed64 = 1, wire_sized = 2 };
constexpr std::uint32_t tag(Field field, Wire wire) { return static_cast<std::uint32_t>(field) << 3 | wire; }

Error invalid(std::string_view field, std::string_view rule) {
  return Error(Product::metering, ErrorKind::invalid_input, fmt::format("{}: {}", field, rule));
}
Error malformed() { return invalid("record", "is not an encoded UsageRecord"); }

/// A cursor over protobuf's encoding.
class Cursor {
 public:
  explicit Cursor(BytesView bytes) : at_(bytes.data()), end_(bytes.data() + bytes.size()) {}
  bool empty() const { return at_ == end_; }

  bool number(std::uint64_t& value) {
    value = 0;
    for (unsigned shift = 0; at_ != end_ && shift < 64; shift += 7) {
      const std::uint8_t byte = *at_++;
      value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }
  bool fixed64(std::uint64_t& value) {
    if (end_ - at_ < 8) return false;
    std::memcpy(&value, at_, 8);
    at_ += 8;
    return true;
  }
  bool sized(BytesView& bytes) {
    std::uint64_t size = 0;
    if (!number(size) || size > static_cast<std::uint64_t>(end_ - at_)) return false;
    bytes = {at_, static_cast<std::size_t>(size)};
    at_ += size;
    return true;
  }

 private:
  const std::uint8_t* at_;
  const std::uint8_t* end_;
};

Result<> check_amount(std::string_view field, std::string_view text) {
  if (small_integer(text)) return {};
  const auto amount = Decimal::parse(text);
  if (!amount) return invalid(field, "must be a decimal number");
  if (amount->is_negative()) return invalid(field, "must not be negative");
  return {};
}

Result<PropertyView> parse_property(BytesView bytes) {
  Cursor cursor(bytes);
  PropertyView property;
  bool has_name = false;
  bool has_value = false;
  while (!cursor.empty()) {
    std::uint64_t key = 0;
    BytesView value;
    if (!cursor.number(key) || !cursor.sized(value)) return malformed();
    if (key == (1 << 3 | wire_sized) && !has_name) {
      property.first = as_text(value);
      has_name = true;
    } else if (key == (2 << 3 | wire_sized) && !has_value) {
      property.second = as_text(value);
      has_value = true;
    } else {
      return malformed();
    }
  }
  if (!is_name(property.first)) return invalid("properties", fmt::format("a name {}", name_rule));
  if (property.second.size() > property_bytes_max) {
    return invalid(fmt::format("properties.{}", property.first),
                   fmt::format("must be at most {} bytes", property_bytes_max));
  }
  return property;
}

Result<> check_reference(std::string_view field, std::string_view event) {
  if (event.empty()) return {};
  const bool by_key =
      event.starts_with(key_prefix) && event.size() > key_prefix.size() && event.size() <= key_prefix.size() + 256;
  if (by_key || EventId::parse(event)) return {};
  return invalid(field, "must be the id of an event, or `key:` and its idempotency key");
}

Result<> check_correction(const RecordView& record) {
  CRETO_TRY(check_reference("replaces", record.replaces));
  CRETO_TRY(check_reference("voids", record.voids));
  if (!record.replaces.empty() && !record.voids.empty()) return invalid("voids", "must not stand beside replaces");
  if (record.voids.empty() != (record.type != void_type))
    return invalid("usage_type", "must be `void` where the event only takes another one out");
  if (!record.voids.empty() && (record.units != "1" || !record.cost.empty()))
    return invalid("voids", "must stand without units and cost");
  return {};
}

Result<> check(RecordView& record) {
  const auto legible = [](std::string_view text) { return is_valid_utf8(text); };
  const bool good = legible(record.key) && legible(record.source) && legible(record.agent) &&
                    legible(record.replaces) && legible(record.voids) &&
                    std::ranges::all_of(record.properties, legible, &PropertyView::second);
  if (!good) return invalid("record", "must be UTF-8");
  if (record.agent.empty() || record.agent.size() > 300) return invalid("agent", "must have 1 to 300 characters");
  if (record.source.size() > 300) return invalid("source", "must have at most 300 characters");
  if (!is_name(record.type)) return invalid("usage_type", name_rule);
  if (record.key.empty() || record.key.size() > 256) return invalid("idempotency_key", "must have 1 to 256 characters");
  if (record.corrects()) {
    CRETO_TRY(check_correction(record));
  } else if (record.type == void_type) {
    return invalid("voids", "is required in `void`");
  }
  for (std::size_t i = 1; i < record.properties.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (record.properties[i].first == record.properties[j].first) {
        return invalid(fmt::format("properties.{}", record.properties[i].first), "must be given once");
      }
    }
  }
  if (!record.voids.empty()) {
    record.units = "0";
    record.whole_units = 0;
  } else if (const auto whole = small_integer(record.units)) {
    record.whole_units = *whole;
  } else {
    const auto units = Decimal::parse(record.units);
    if (!units) return invalid("units", "must be a decimal number");
    record.whole_units = CRETO_TRY(to_whole_units(*units));
  }
  if (!record.cost.empty()) {
    CRETO_TRY(check_amount("cost", record.cost));
    if (!Currency::parse(record.currency)) return invalid("currency", "must be a code of ISO 4217 beside a cost");
  } else if (!record.currency.empty()) {
    return invalid("currency", "must stand beside a cost");
  }
  return {};
}

void put_number(Bytes& out, std::uint64_t value) {
  while (value >= 0x80) {
    out.push_back(static_cast<std::uint8_t>(value | 0x80));
    value >>= 7;
  }
  out.push_back(static_cast<std::uint8_t>(value));
}
void put_text(Bytes& out, std::uint32_t tag, std::string_view text) {
  put_number(out, tag);
  put_number(out, text.size());
  out.insert(out.end(), text.begin(), text.end());
}
std::size_t number_size(std::uint64_t value) { return value < 0x80 ? 1 : 1 + number_size(value >> 7); }

}  // namespace

std::optional<std::int64_t> small_integer(std::string_view text) {
  if (text.empty() || text.size() > 17) return std::nullopt;
  std::int64_t value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
    value = value * 10 + (c - '0');
  }
  return value;
}

std::span<PropertyView, record_properties_max> RecordScratch::take() {
  // A record's properties lie in one chunk.
  if (used_ % chunk + record_properties_max > chunk) used_ += chunk - used_ % chunk;
  if (used_ / chunk >= chunks_.size()) chunks_.push_back(std::make_unique<PropertyView[]>(chunk));
  PropertyView* place = chunks_[used_ / chunk].get() + used_ % chunk;
  used_ += record_properties_max;
  return std::span<PropertyView, record_properties_max>(place, record_properties_max);
}

Result<RecordView> parse_record(BytesView bytes, RecordScratch& scratch) {
  if (bytes.size() > record_bytes_max) {
    return Error(Product::metering, ErrorKind::too_large,
                 fmt::format("record: must be at most {} bytes", record_bytes_max));
  }
  RecordView record;
  record.bytes = bytes;
  const auto properties = scratch.take();
  std::size_t count = 0;
  std::uint32_t seen = 0;
  Cursor cursor(bytes);
  while (!cursor.empty()) {
    std::uint64_t key = 0;
    if (!cursor.number(key) || key > tag(field_voids, wire_sized)) return malformed();
    const auto field = static_cast<std::uint32_t>(key >> 3);
    if (field != field_properties) {
      if ((seen >> field & 1) != 0) return invalid("record", "has a field twice");
      seen |= 1U << field;
    }
    if (key == tag(field_time, wire_fixed64)) {
      std::uint64_t ns = 0;
      if (!cursor.fixed64(ns)) return malformed();
      if (ns > static_cast<std::uint64_t>(INT64_MAX)) return invalid("time_unix_ns", "must not be negative");
      record.time = from_unix_ns(static_cast<std::int64_t>(ns));
      continue;
    }
    BytesView value;
    if ((key & 7) != wire_sized || !cursor.sized(value)) return malformed();
    const std::string_view text = as_text(value);
    switch (field) {
      case field_agent:
        record.agent = text;
        break;
      case field_type:
        record.type = text;
        break;
      case field_key:
        record.key = text;
        break;
      case field_units:
        record.units = text;
        break;
      case field_cost:
        record.cost = text;
        break;
      case field_currency:
        record.currency = text;
        break;
      case field_source:
        record.source = text;
        break;
      case field_replaces:
        record.replaces = text;
        break;
      case field_voids:
        record.voids = text;
        break;
      case field_properties: {
        if (count == record_properties_max)
          return invalid("properties", fmt::format("must be at most {}", record_properties_max));
        properties[count] = CRETO_TRY(parse_property(value));
        ++count;
        break;
      }
      default:
        return malformed();
    }
  }
  if ((seen >> field_time & 1) == 0) return invalid("time_unix_ns", "is required");
  record.properties = properties.first(count);
  scratch.give_back(record_properties_max - count);
  CRETO_TRY(check(record));
  return record;
}

void encode_record(const RecordView& record, Bytes& out) {
  put_text(out, tag(field_agent, wire_sized), record.agent);
  put_text(out, tag(field_type, wire_sized), record.type);
  put_text(out, tag(field_key, wire_sized), record.key);
  put_number(out, tag(field_time, wire_fixed64));
  const std::int64_t ns = unix_ns(record.time);
  const auto* time = reinterpret_cast<const std::uint8_t*>(&ns);
  out.insert(out.end(), time, time + sizeof ns);
  const auto optional = [&](Field field, std::string_view text) {
    if (!text.empty()) put_text(out, tag(field, wire_sized), text);
  };
  const bool implied = record.units == (record.voids.empty() ? "1" : "0");
  optional(field_units, implied ? std::string_view() : record.units);
  optional(field_cost, record.cost);
  optional(field_currency, record.currency);
  for (const PropertyView& property : record.properties) {
    put_number(out, tag(field_properties, wire_sized));
    put_number(out, 2 + number_size(property.first.size()) + property.first.size() +
                        number_size(property.second.size()) + property.second.size());
    put_text(out, 1 << 3 | wire_sized, property.first);
    put_text(out, 2 << 3 | wire_sized, property.second);
  }
  optional(field_source, record.source);
  optional(field_replaces, record.replaces);
  optional(field_voids, record.voids);
}

}  // namespace creto::metering

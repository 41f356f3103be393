#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "creto/common/bytes.h"
#include "creto/common/id.h"
#include "creto/common/money.h"
#include "creto/common/result.h"
#include "creto/common/time.h"
#include "limits/counters.h"

namespace creto::metering {

inline constexpr std::size_t record_bytes_max = 64 << 10;
inline constexpr std::size_t record_properties_max = 64;
inline constexpr std::size_t property_bytes_max = 1024;
/// The type of events that take another one out.
inline constexpr std::string_view void_type = "void";
/// Before an idempotency key that names the event to be corrected.
inline constexpr std::string_view key_prefix = "key:";

/// A name and its value.
using PropertyView = std::pair<std::string_view, std::string_view>;

/// One usage event in its compact form: the encoding of creto.metering.v1.UsageRecord, which this borrows.
struct RecordView {
  BytesView bytes;            ///< as received
  std::string_view agent;     ///< whose use it is
  std::string_view source{};  ///< who says so, for the idempotency key; empty: the agent
  std::string_view type;
  std::string_view key;  ///< unique in the source for the idempotency window
  Instant time{};
  std::string_view units = "1";  ///< "0" of an event that only takes another one out
  std::string_view cost{};       ///< empty: none is stated
  std::string_view currency{};
  /// The event that this one corrects (docs/formats.md, "Corrections"), by its id, or by its key in the same source; at
  /// most one of both. Empty: none.
  std::string_view replaces{};  ///< whose place this one takes
  std::string_view voids{};     ///< which this one takes out; then it counts for nothing itself
  std::span<const PropertyView> properties{};

  std::int64_t whole_units = 1;  ///< as quotas count it
  bool corrects() const { return !replaces.empty() || !voids.empty(); }
  std::string_view property(std::string_view name) const {
    for (const PropertyView& one : properties) {
      if (one.first == name) return one.second;
    }
    return {};
  }
};

/// Room for the properties of many records; grows to the largest batch and stays.
class RecordScratch {
 public:
  /// Requires: what was parsed into it is no longer used.
  void clear() { used_ = 0; }
  /// Room for one record's properties. Later calls leave it where it is.
  std::span<PropertyView, record_properties_max> take();
  void give_back(std::size_t unused) { used_ -= unused; }

 private:
  static constexpr std::size_t chunk = 64 * record_properties_max;
  std::vector<std::unique_ptr<PropertyView[]>> chunks_;
  std::size_t used_ = 0;
};

/// The usual number of a few digits, without a Decimal; none for anything else.
std::optional<std::int64_t> small_integer(std::string_view text);

/// Reads one record: every field at most once, none unknown, text in UTF-8, numbers decimal. The result borrows `bytes`
/// and `scratch`. Errors: invalid_input naming the field; too_large over `record_bytes_max`.
Result<RecordView> parse_record(BytesView bytes, RecordScratch& scratch);

/// The encoding that `parse_record` reads; `bytes`, `whole_units` of `record` are not looked at.
void encode_record(const RecordView& record, Bytes& out);

}  // namespace creto::metering

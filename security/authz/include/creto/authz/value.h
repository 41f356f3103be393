#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "creto/common/json.h"
#include "creto/common/result.h"

namespace creto::authz {

/// Names a Cedar entity: `Agent::"agent:nhi:ed25519:7Hn…"`. Any text is a legal id; the type is a path `A::B::C`.
struct EntityUid {
  std::string type;
  std::string id;

  /// Cedar's own spelling, with the id quoted and escaped.
  std::string to_string() const;
  friend auto operator<=>(const EntityUid&, const EntityUid&) = default;
};

/// Cedar's extension values. Each is exact; how they are written and compared is Cedar's.
struct DecimalValue {
  std::int64_t ten_thousandths = 0;  ///< value * 10^4
  friend auto operator<=>(const DecimalValue&, const DecimalValue&) = default;
};
struct DatetimeValue {
  std::int64_t unix_ms = 0;
  friend auto operator<=>(const DatetimeValue&, const DatetimeValue&) = default;
};
struct DurationValue {
  std::int64_t ms = 0;
  friend auto operator<=>(const DurationValue&, const DurationValue&) = default;
};
struct IpValue {
  bool v6 = false;
  std::uint8_t prefix = 32;
  std::array<std::uint8_t, 16> address{};  ///< the first 4 count for IPv4
  friend auto operator<=>(const IpValue&, const IpValue&) = default;
};

class Value;
using Attributes = std::vector<std::pair<std::string, Value>>;

/// One Cedar value. Immutable; copying a set or a record copies a pointer. `==` is Cedar's: total, sets without order
/// or repetition, values of different types unequal. `<=>` is an arbitrary but total order (sets are kept in it).
class Value {
 public:
  struct SetBox;
  struct RecordBox;
  using Rep = std::variant<bool, std::int64_t, std::string, EntityUid, std::shared_ptr<const SetBox>,
                           std::shared_ptr<const RecordBox>, DecimalValue, IpValue, DatetimeValue, DurationValue>;

  Value(bool value) : rep_(value) {}                            // NOLINT: literals read well in a context
  Value(std::int64_t value) : rep_(value) {}                    // NOLINT(google-explicit-constructor)
  Value(int value) : rep_(static_cast<std::int64_t>(value)) {}  // NOLINT(google-explicit-constructor)
  Value(std::string value) : rep_(std::move(value)) {}          // NOLINT(google-explicit-constructor)
  Value(std::string_view value) : rep_(std::string(value)) {}   // NOLINT(google-explicit-constructor)
  Value(const char* value) : rep_(std::string(value)) {}        // NOLINT(google-explicit-constructor)
  Value(EntityUid value) : rep_(std::move(value)) {}            // NOLINT(google-explicit-constructor)
  Value(DecimalValue value) : rep_(value) {}                    // NOLINT(google-explicit-constructor)
  Value(IpValue value) : rep_(value) {}                         // NOLINT(google-explicit-constructor)
  Value(DatetimeValue value) : rep_(value) {}                   // NOLINT(google-explicit-constructor)
  Value(DurationValue value) : rep_(value) {}                   // NOLINT(google-explicit-constructor)

  static Value set(std::vector<Value> elements);
  /// Of two attributes with one name the later counts.
  static Value record(Attributes attributes);

  const Rep& rep() const { return rep_; }
  template <class T>
  const T* as() const {
    return std::get_if<T>(&rep_);
  }
  /// Sorted, without repetition; null where this is no set.
  const std::vector<Value>* as_set() const;
  /// Sorted by name; null where this is no record.
  const Attributes* as_record() const;
  /// The attribute of a record; null where it is absent or this is no record.
  const Value* attribute(std::string_view name) const;
  bool contains(const Value& element) const;  ///< false where this is no set

  /// "bool", "long", "string", "entity", "set", "record", "decimal", "ipaddr", "datetime", "duration".
  std::string_view type_name() const;
  /// As Cedar would write it; for messages.
  std::string to_string() const;

  friend bool operator==(const Value& a, const Value& b);
  friend std::strong_ordering operator<=>(const Value& a, const Value& b);

 private:
  explicit Value(Rep rep) : rep_(std::move(rep)) {}
  Rep rep_;
};

/// An entity with what policies may ask of it.
struct Entity {
  EntityUid uid;
  Attributes attributes;
  Attributes tags;
  std::vector<EntityUid> parents;
};

/// Cedar's JSON: objects are records, `{"__entity": {"type", "id"}}` an entity, `{"__extn": {"fn", "arg"}}` an
/// extension value. Errors: invalid_input for null, fractions, integers outside 64 bits and malformed escapes; at most
/// 64 deep.
Result<Value> value_from_json(const Json& json);
/// The members of a JSON object, as a context is given.
Result<Attributes> attributes_from_json(const Json& json);
Json value_to_json(const Value& value);
Json attributes_to_json(const Attributes& attributes);
/// `{"uid", "attrs", "tags", "parents"}`; the uid may be a bare `{type, id}` or escaped.
Result<Entity> entity_from_json(const Json& json);
Json entity_to_json(const Entity& entity);

}  // namespace creto::authz

template <>
struct std::hash<creto::authz::EntityUid> {
  std::size_t operator()(const creto::authz::EntityUid& uid) const noexcept {
    return std::hash<std::string>()(uid.type) * 1099511628211u ^ std::hash<std::string>()(uid.id);
  }
};

#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

/// The types of Cedar's validator.
namespace creto::authz::cedar {

struct Type;
/// Never null where a function takes or gives one, unless it says so.
using TypePtr = std::shared_ptr<const Type>;

struct AttributeType {
  TypePtr type;
  bool required = true;
};
using AttributeTypes = std::map<std::string, AttributeType, std::less<>>;

/// One type. Immutable and shared: what a schema declares is a graph without cycles.
struct Type {
  enum class Kind : std::uint8_t {
    never,  ///< of no value; below every type
    boolean,
    always_true,   ///< a boolean whose value the validator knows
    always_false,  ///< likewise
    integer,
    string,
    decimal,
    ipaddr,
    datetime,
    duration,
    set,
    record,
    entity,      ///< one of `entities`
    any_entity,  ///< an entity of whatever type
  };

  Kind kind = Kind::never;
  TypePtr element = nullptr;               ///< set; null: elements of whatever type
  AttributeTypes attributes = {};          ///< record
  bool open = false;                       ///< a record that may have other attributes too
  std::vector<std::string> entities = {};  ///< entity: sorted, at least one; more in permissive mode alone

  bool is_boolean() const { return kind >= Kind::boolean && kind <= Kind::always_false; }
  bool is_entity() const { return kind == Kind::entity || kind == Kind::any_entity; }
};

/// The types that need nothing but their kind.
TypePtr simple_type(Type::Kind kind);
TypePtr set_type(TypePtr element);
TypePtr record_type(AttributeTypes attributes, bool open = false);
TypePtr entity_type(std::string name);
inline TypePtr boolean_type(bool value) {
  return simple_type(value ? Type::Kind::always_true : Type::Kind::always_false);
}

/// As a schema writes it, cut where it is long: "Set<Long>", "{name: String, age?: Long}".
std::string to_string(const Type& type);

bool operator==(const Type& a, const Type& b);

enum class ValidationMode : std::uint8_t {
  strict,      ///< operands of `==`, branches of `if` and elements of a set are of one type
  permissive,  ///< they may differ; what is refused would err at run time
};

bool is_subtype(const TypePtr& a, const TypePtr& b, ValidationMode mode);
/// The least type above both; null where there is none.
TypePtr least_upper_bound(const TypePtr& a, const TypePtr& b, ValidationMode mode);

}  // namespace creto::authz::cedar

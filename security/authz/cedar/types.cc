#include "cedar/types.h"

#include <algorithm>
#include <array>

#include "cedar/text.h"
#include "creto/common/assert.h"

namespace creto::authz::cedar {
namespace {

using Kind = Type::Kind;

constexpr std::size_t text_max = 200;

void append(std::string& out, const Type& type) {
  if (out.size() > text_max) return;
  static constexpr std::array<std::string_view, 10> names = {"nothing", "Bool",    "True",   "False",    "Long",
                                                             "String",  "decimal", "ipaddr", "datetime", "duration"};
  switch (type.kind) {
    case Kind::set:
      out += "Set<";
      if (type.element) {
        append(out, *type.element);
      } else {
        out += "anything";
      }
      out += ">";
      return;
    case Kind::record: {
      out += "{";
      bool first = true;
      for (const auto& [name, attribute] : type.attributes) {
        if (out.size() > text_max) break;
        if (!first) out += ", ";
        first = false;
        out += is_identifier(name) && !is_reserved(name) ? name : quote(name);
        out += attribute.required ? ": " : "?: ";
        append(out, *attribute.type);
      }
      if (type.open) out += first ? "…" : ", …";
      out += "}";
      return;
    }
    case Kind::entity: {
      for (std::size_t i = 0; i < type.entities.size(); ++i) {
        if (i > 0) out += " or ";
        out += type.entities[i];
      }
      return;
    }
    case Kind::any_entity:
      out += "an entity";
      return;
    default:
      out += names[static_cast<std::size_t>(type.kind)];
  }
}

bool same(const TypePtr& a, const TypePtr& b) { return a == b || (a && b && *a == *b); }

bool is_attribute_subtype(const AttributeType& a, const AttributeType& b, ValidationMode mode) {
  const bool qualifier = mode == ValidationMode::strict ? a.required == b.required : a.required || !b.required;
  return qualifier && is_subtype(a.type, b.type, mode);
}

bool is_record_subtype(const Type& a, const Type& b, ValidationMode mode) {
  if (a.open && !b.open) return false;
  const bool width = b.open && mode == ValidationMode::permissive;
  if (!width && a.attributes.size() != b.attributes.size()) return false;
  return std::all_of(b.attributes.begin(), b.attributes.end(), [&](const auto& wanted) {
    const auto have = a.attributes.find(wanted.first);
    return have != a.attributes.end() && is_attribute_subtype(have->second, wanted.second, mode);
  });
}

TypePtr record_bound(const Type& a, const Type& b, ValidationMode mode) {
  const bool strict = mode == ValidationMode::strict;
  AttributeTypes attributes;
  for (const auto& [name, left] : a.attributes) {
    const auto right = b.attributes.find(name);
    TypePtr bound = right == b.attributes.end() ? nullptr : least_upper_bound(left.type, right->second.type, mode);
    if (strict && (!bound || left.required != right->second.required)) return nullptr;
    if (bound) attributes.emplace(name, AttributeType{std::move(bound), left.required && right->second.required});
  }
  if (strict && attributes.size() != b.attributes.size()) return nullptr;
  const bool open =
      a.open || b.open || attributes.size() != a.attributes.size() || attributes.size() != b.attributes.size();
  return record_type(std::move(attributes), open);
}

}  // namespace

TypePtr simple_type(Kind kind) {
  static const auto all = [] {
    std::array<TypePtr, static_cast<std::size_t>(Kind::any_entity) + 1> types;
    for (std::size_t i = 0; i < types.size(); ++i) {
      types[i] = std::make_shared<const Type>(Type{.kind = static_cast<Kind>(i)});
    }
    return types;
  }();
  return all[static_cast<std::size_t>(kind)];
}

TypePtr set_type(TypePtr element) {
  return std::make_shared<const Type>(Type{.kind = Kind::set, .element = std::move(element)});
}

TypePtr record_type(AttributeTypes attributes, bool open) {
  Type type{.kind = Kind::record};
  type.attributes = std::move(attributes);
  type.open = open;
  return std::make_shared<const Type>(std::move(type));
}

TypePtr entity_type(std::string name) {
  Type type{.kind = Kind::entity};
  type.entities.push_back(std::move(name));
  return std::make_shared<const Type>(std::move(type));
}

std::string to_string(const Type& type) {
  std::string text;
  append(text, type);
  if (text.size() > text_max + 40) {
    std::size_t end = text_max;
    while ((static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
    text = text.substr(0, end) + "…";
  }
  return text;
}

bool operator==(const Type& a, const Type& b) {
  if (&a == &b) return true;
  return a.kind == b.kind && a.open == b.open && a.entities == b.entities && same(a.element, b.element) &&
         std::equal(a.attributes.begin(), a.attributes.end(), b.attributes.begin(), b.attributes.end(),
                    [](const auto& x, const auto& y) {
                      return x.first == y.first && x.second.required == y.second.required &&
                             same(x.second.type, y.second.type);
                    });
}

bool is_subtype(const TypePtr& a, const TypePtr& b, ValidationMode mode) {
  if (a == b || a->kind == Kind::never) return true;
  switch (b->kind) {
    case Kind::boolean:
      return a->is_boolean();
    case Kind::set:
      return a->kind == Kind::set && (!b->element || (a->element && is_subtype(a->element, b->element, mode)));
    case Kind::record:
      return a->kind == Kind::record && is_record_subtype(*a, *b, mode);
    case Kind::entity:
      if (a->kind != Kind::entity) return false;
      if (mode == ValidationMode::strict) return a->entities == b->entities;
      return std::includes(b->entities.begin(), b->entities.end(), a->entities.begin(), a->entities.end());
    case Kind::any_entity:
      return a->kind == Kind::any_entity || (a->kind == Kind::entity && mode == ValidationMode::permissive);
    default:
      return a->kind == b->kind;
  }
}

TypePtr least_upper_bound(const TypePtr& a, const TypePtr& b, ValidationMode mode) {
  if (is_subtype(a, b, mode)) return b;
  if (is_subtype(b, a, mode)) return a;
  if (a->is_boolean() && b->is_boolean()) return simple_type(Kind::boolean);
  if (a->kind == Kind::set && b->kind == Kind::set) {
    CRETO_ASSERT(a->element && b->element);  // a set of anything is above every set
    TypePtr element = least_upper_bound(a->element, b->element, mode);
    return element ? set_type(std::move(element)) : nullptr;
  }
  if (a->kind == Kind::record && b->kind == Kind::record) return record_bound(*a, *b, mode);
  if (a->is_entity() && b->is_entity() && mode == ValidationMode::permissive) {
    if (a->kind == Kind::any_entity || b->kind == Kind::any_entity) return simple_type(Kind::any_entity);
    Type both{.kind = Kind::entity};
    std::set_union(a->entities.begin(), a->entities.end(), b->entities.begin(), b->entities.end(),
                   std::back_inserter(both.entities));
    return std::make_shared<const Type>(std::move(both));
  }
  return nullptr;
}

}  // namespace creto::authz::cedar

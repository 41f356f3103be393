#include "creto/authz/value.h"

#include <fmt/format.h>

#include <algorithm>

#include "cedar/extension_values.h"
#include "cedar/text.h"

namespace creto::authz {

struct Value::SetBox {
  std::vector<Value> elements;
};
struct Value::RecordBox {
  Attributes attributes;
};

std::string EntityUid::to_string() const { return fmt::format("{}::{}", type, cedar::quote(id)); }

Value Value::set(std::vector<Value> elements) {
  std::sort(elements.begin(), elements.end());
  elements.erase(std::unique(elements.begin(), elements.end()), elements.end());
  return Value(Rep(std::make_shared<const SetBox>(SetBox{std::move(elements)})));
}

Value Value::record(Attributes attributes) {
  std::stable_sort(attributes.begin(), attributes.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  Attributes kept;
  kept.reserve(attributes.size());
  for (auto& attribute : attributes) {
    if (!kept.empty() && kept.back().first == attribute.first) kept.pop_back();
    kept.push_back(std::move(attribute));
  }
  return Value(Rep(std::make_shared<const RecordBox>(RecordBox{std::move(kept)})));
}

const std::vector<Value>* Value::as_set() const {
  const auto* box = std::get_if<std::shared_ptr<const SetBox>>(&rep_);
  return box ? &(*box)->elements : nullptr;
}

const Attributes* Value::as_record() const {
  const auto* box = std::get_if<std::shared_ptr<const RecordBox>>(&rep_);
  return box ? &(*box)->attributes : nullptr;
}

const Value* Value::attribute(std::string_view name) const {
  const Attributes* record = as_record();
  return record ? cedar::find_attribute(*record, name) : nullptr;
}

bool Value::contains(const Value& element) const {
  const auto* elements = as_set();
  return elements && std::binary_search(elements->begin(), elements->end(), element);
}

std::string_view Value::type_name() const {
  static constexpr std::string_view names[] = {"bool",   "long",    "string", "entity",   "set",
                                               "record", "decimal", "ipaddr", "datetime", "duration"};
  return names[rep_.index()];
}

std::string Value::to_string() const {
  struct Printer {
    std::string operator()(bool value) const { return value ? "true" : "false"; }
    std::string operator()(std::int64_t value) const { return fmt::format("{}", value); }
    std::string operator()(const std::string& value) const { return cedar::quote(value); }
    std::string operator()(const EntityUid& value) const { return value.to_string(); }
    std::string operator()(const std::shared_ptr<const SetBox>& box) const {
      std::string text = "[";
      for (const Value& element : box->elements) {
        if (text.size() > 1) text += ", ";
        text += element.to_string();
      }
      return text + "]";
    }
    std::string operator()(const std::shared_ptr<const RecordBox>& box) const {
      std::string text = "{";
      for (const auto& [name, value] : box->attributes) {
        if (text.size() > 1) text += ", ";
        text += cedar::quote(name) + ": " + value.to_string();
      }
      return text + "}";
    }
    std::string operator()(const DecimalValue& value) const {
      return fmt::format("decimal({})", cedar::quote(cedar::format(value)));
    }
    std::string operator()(const IpValue& value) const {
      return fmt::format("ip({})", cedar::quote(cedar::format(value)));
    }
    std::string operator()(const DatetimeValue& value) const {
      return fmt::format("datetime({})", cedar::quote(cedar::format(value)));
    }
    std::string operator()(const DurationValue& value) const {
      return fmt::format("duration({})", cedar::quote(cedar::format(value)));
    }
  };
  return std::visit(Printer{}, rep_);
}

bool operator==(const Value& a, const Value& b) { return (a <=> b) == 0; }

std::strong_ordering operator<=>(const Value& a, const Value& b) {
  if (a.rep_.index() != b.rep_.index()) return a.rep_.index() <=> b.rep_.index();
  if (const auto* left = a.as_set()) {
    const auto* right = b.as_set();
    return std::lexicographical_compare_three_way(left->begin(), left->end(), right->begin(), right->end());
  }
  if (const auto* left = a.as_record()) {
    const auto* right = b.as_record();
    return std::lexicographical_compare_three_way(left->begin(), left->end(), right->begin(), right->end(),
                                                  [](const auto& x, const auto& y) {
                                                    const auto by_name = x.first <=> y.first;
                                                    return by_name != 0 ? by_name : x.second <=> y.second;
                                                  });
  }
  return std::visit(
      [&b](const auto& left) -> std::strong_ordering {
        using T = std::decay_t<decltype(left)>;
        if constexpr (std::is_same_v<T, std::shared_ptr<const Value::SetBox>> ||
                      std::is_same_v<T, std::shared_ptr<const Value::RecordBox>>) {
          return std::strong_ordering::equal;
        } else {
          return left <=> std::get<T>(b.rep_);
        }
      },
      a.rep_);
}

}  // namespace creto::authz

#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "creto/authz/value.h"
#include "creto/common/result.h"

/// Cedar's extension types: decimal, ipaddr, datetime, duration.
namespace creto::authz::cedar {

/// Errors: invalid_input that quotes the text.
Result<DecimalValue> parse_decimal(std::string_view text);
Result<IpValue> parse_ip(std::string_view text);
Result<DatetimeValue> parse_datetime(std::string_view text);
Result<DurationValue> parse_duration_value(std::string_view text);

/// Text that the parser above reads back as the same value, except for a datetime outside the years 0 to 9999: no
/// literal names one (it comes from `offset`), so its text is for people alone.
std::string format(const DecimalValue& value);
std::string format(const IpValue& value);
std::string format(const DatetimeValue& value);
std::string format(const DurationValue& value);

/// An extension function or method. Its arguments include the receiver.
struct ExtensionFunction {
  std::string_view name;
  bool is_method;
  std::size_t arity;
  Result<Value> (*call)(std::span<const Value> arguments);
};

/// Null where Cedar has none of this name.
const ExtensionFunction* find_extension_function(std::string_view name);

}  // namespace creto::authz::cedar

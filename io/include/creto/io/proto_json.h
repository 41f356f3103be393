#pragma once

#include <string>
#include <string_view>

#include "creto/common/result.h"

namespace google::protobuf {
class Message;
}

/// Protobuf messages as JSON and as single values: what REST and the command line are made of.
namespace creto::proto {

/// Sets the field at dotted `path` from text, as in a path or query ("page.size", "10"). Enums by name, bytes as
/// base64, times and durations as in JSON. Repeated fields get one more element. Errors: invalid_input naming the path.
Result<> set_field(google::protobuf::Message& message, std::string_view path, std::string_view text);

/// Unknown fields, wrong types and keys given twice are refused (invalid_input), nesting over `depth_max` too
/// (too_large), naming what and where, without repeating values.
Result<> message_from_json(std::string_view json, google::protobuf::Message& message, std::size_t depth_max = 64);

/// Field names as in the proto, every field present, 64-bit integers as strings.
Result<std::string> message_to_json(const google::protobuf::Message& message);

}  // namespace creto::proto

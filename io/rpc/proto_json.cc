#include "creto/io/proto_json.h"

#include <fmt/format.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <vector>

#include "creto/common/json.h"
#include "creto/common/lines.h"

namespace creto::proto {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

Error invalid(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

template <class T>
Result<T> number(std::string_view path, std::string_view text) {
  T value{};
  auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (code != std::errc() || end != text.data() + text.size())
    return invalid(fmt::format("`{}` must be a number in range", path));
  return value;
}

}  // namespace

Result<> message_from_json(std::string_view json, Message& message, std::size_t depth_max) {
  // Refuses what protobuf's parser takes (a key given twice, bytes that are not UTF-8) and what it would spend a stack
  // frame per level on, and says where a mistake is.
  CRETO_TRY(parse_json(json, {.bytes_max = json.size(), .depth_max = depth_max}));
  google::protobuf::util::JsonParseOptions options;
  auto status = google::protobuf::util::JsonStringToMessage(google::protobuf::StringPiece(json.data(), json.size()),
                                                            &message, options);
  if (status.ok()) return {};
  // What follows the first line is an excerpt of the input, which may be secret.
  std::string text(status.message().data(), status.message().size());
  text.resize(std::min({text.find('\n'), text.size(), std::size_t(300)}));
  return invalid(fmt::format("the body is not a valid `{}`: {}", message.GetDescriptor()->full_name(), text));
}

Result<std::string> message_to_json(const Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  auto status = google::protobuf::util::MessageToJsonString(message, &json, options);
  if (!status.ok())
    return Error(Product::platform, ErrorKind::internal,
                 fmt::format("cannot print `{}` as JSON: {}", message.GetDescriptor()->full_name(), status.ToString()));
  return json;
}

Result<> set_field(Message& root, std::string_view path, std::string_view text) {
  Message* message = &root;
  auto parts = split(path, '.');
  const FieldDescriptor* field = nullptr;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    field = message->GetDescriptor()->FindFieldByName(std::string(parts[i]));
    if (field == nullptr) field = message->GetDescriptor()->FindFieldByCamelcaseName(std::string(parts[i]));
    if (field == nullptr || field->is_map()) return invalid(fmt::format("unknown parameter `{}`", path.substr(0, 100)));
    if (i + 1 == parts.size()) break;
    if (field->is_repeated() || field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE)
      return invalid(fmt::format("unknown parameter `{}`", path.substr(0, 100)));
    message = message->GetReflection()->MutableMessage(message, field);
  }
  const auto* reflection = message->GetReflection();
  bool repeated = field->is_repeated();
  auto put = [&](auto set, auto add, auto value) {
    if (repeated) {
      (reflection->*add)(message, field, value);
    } else {
      (reflection->*set)(message, field, value);
    }
  };
  using R = google::protobuf::Reflection;
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING: {
      std::string value(text);
      if (field->type() == FieldDescriptor::TYPE_BYTES) {
        auto bytes = from_base64url(text);
        if (!bytes) bytes = from_base64(text);
        if (!bytes) return invalid(fmt::format("`{}` must be base64", path));
        value.assign(bytes->begin(), bytes->end());
      } else if (!is_valid_utf8(text)) {
        return invalid(fmt::format("`{}` is not valid UTF-8", path));
      }
      if (repeated) {
        reflection->AddString(message, field, std::move(value));
      } else {
        reflection->SetString(message, field, std::move(value));
      }
      return {};
    }
    case FieldDescriptor::CPPTYPE_INT32: {
      auto value = CRETO_TRY(number<std::int32_t>(path, text));
      put(&R::SetInt32, &R::AddInt32, value);
      return {};
    }
    case FieldDescriptor::CPPTYPE_INT64: {
      auto value = CRETO_TRY(number<std::int64_t>(path, text));
      put(&R::SetInt64, &R::AddInt64, value);
      return {};
    }
    case FieldDescriptor::CPPTYPE_UINT32: {
      auto value = CRETO_TRY(number<std::uint32_t>(path, text));
      put(&R::SetUInt32, &R::AddUInt32, value);
      return {};
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      auto value = CRETO_TRY(number<std::uint64_t>(path, text));
      put(&R::SetUInt64, &R::AddUInt64, value);
      return {};
    }
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      auto value = CRETO_TRY(number<double>(path, text));
      put(&R::SetDouble, &R::AddDouble, value);
      return {};
    }
    case FieldDescriptor::CPPTYPE_FLOAT: {
      auto value = CRETO_TRY(number<float>(path, text));
      put(&R::SetFloat, &R::AddFloat, value);
      return {};
    }
    case FieldDescriptor::CPPTYPE_BOOL: {
      if (text != "true" && text != "false") return invalid(fmt::format("`{}` must be true or false", path));
      put(&R::SetBool, &R::AddBool, text == "true");
      return {};
    }
    case FieldDescriptor::CPPTYPE_ENUM: {
      const auto* value = field->enum_type()->FindValueByName(std::string(text));
      if (value == nullptr) return invalid(fmt::format("`{}` has no value `{}`", path, text.substr(0, 100)));
      put(&R::SetEnum, &R::AddEnum, value);
      return {};
    }
    case FieldDescriptor::CPPTYPE_MESSAGE: {
      // Timestamps, durations and wrappers are strings in JSON.
      if (repeated || text.find('"') != text.npos || text.find('\\') != text.npos)
        return invalid(fmt::format("`{}` cannot be given here", path));
      Message* value = reflection->MutableMessage(message, field);
      if (!message_from_json(fmt::format("\"{}\"", text), *value, 1))
        return invalid(fmt::format("`{}` is not a valid `{}`", path, value->GetDescriptor()->full_name()));
      return {};
    }
  }
  std::unreachable();
}

}  // namespace creto::proto

#include <fmt/format.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>

#include <nlohmann/json.hpp>
#include <set>

#include "creto/common/assert.h"
#include "creto/proto/source_info.h"
#include "rpc/rest.h"

namespace creto::rpc {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;
using Json = nlohmann::ordered_json;

/// The files of creto::proto with their comments, which generated descriptors do not have.
const google::protobuf::DescriptorPool& described_pool() {
  static const auto pool = [] {
    auto made = std::make_unique<google::protobuf::DescriptorPool>();
    const std::string_view bytes = proto::described_files();
    google::protobuf::FileDescriptorSet files;
    CRETO_ASSERT(files.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())));
    for (const auto& file : files.file()) CRETO_ASSERT(made->BuildFile(file) != nullptr);
    return made;
  }();
  return *pool;
}

/// The same method with comments, where its file has any.
const google::protobuf::MethodDescriptor& described(const google::protobuf::MethodDescriptor& method) {
  const auto* found = described_pool().FindMethodByName(method.full_name());
  return found != nullptr ? *found : method;
}

/// What stands above a descriptor in its file, or else behind it on the same line.
template <class D>
std::string comment_of(const D& descriptor) {
  google::protobuf::SourceLocation location;
  if (!descriptor.GetSourceLocation(&location)) return {};
  const std::string& comment =
      location.leading_comments.empty() ? location.trailing_comments : location.leading_comments;
  std::string text;
  for (std::size_t at = 0; at < comment.size();) {
    const std::size_t end = std::min(comment.find('\n', at), comment.size());
    std::string_view line(comment.data() + at, end - at);
    if (line.starts_with(' ')) line.remove_prefix(1);
    if (!text.empty()) text += '\n';
    text += line;
    at = end + 1;
  }
  return text;
}

class Schemas {
 public:
  Json of_message(const Descriptor& message) {
    const std::string& name = message.full_name();
    if (name == "google.protobuf.Timestamp") return {{"type", "string"}, {"format", "date-time"}};
    if (name == "google.protobuf.Duration") return {{"type", "string"}, {"example", "3.5s"}};
    if (name == "google.protobuf.Struct") return {{"type", "object"}, {"additionalProperties", true}};
    if (name == "google.protobuf.Value") return Json::object();
    if (wanted_.insert(name).second) {
      Json schema = {{"type", "object"}, {"properties", Json::object()}, {"additionalProperties", false}};
      if (std::string comment = comment_of(message); !comment.empty()) schema["description"] = comment;
      for (int i = 0; i < message.field_count(); ++i) {
        const FieldDescriptor& field = *message.field(i);
        schema["properties"][field.name()] = of_field(field);
      }
      schemas_[name] = std::move(schema);
    }
    return {{"$ref", "#/components/schemas/" + name}};
  }

  Json of_field(const FieldDescriptor& field) {
    if (field.is_map())
      return {{"type", "object"}, {"additionalProperties", of_single(*field.message_type()->map_value())}};
    Json schema = of_single(field);
    if (field.is_repeated()) schema = {{"type", "array"}, {"items", std::move(schema)}};
    if (std::string comment = comment_of(field); !comment.empty() && !schema.contains("$ref"))
      schema["description"] = comment;
    return schema;
  }

  Json take() { return std::move(schemas_); }

 private:
  Json of_single(const FieldDescriptor& field) {
    switch (field.type()) {
      case FieldDescriptor::TYPE_STRING:
        return {{"type", "string"}};
      case FieldDescriptor::TYPE_BYTES:
        return {{"type", "string"}, {"format", "byte"}};
      case FieldDescriptor::TYPE_BOOL:
        return {{"type", "boolean"}};
      case FieldDescriptor::TYPE_DOUBLE:
        return {{"type", "number"}, {"format", "double"}};
      case FieldDescriptor::TYPE_FLOAT:
        return {{"type", "number"}, {"format", "float"}};
      case FieldDescriptor::TYPE_INT64:
      case FieldDescriptor::TYPE_SINT64:
      case FieldDescriptor::TYPE_SFIXED64:
        return {{"type", "string"}, {"format", "int64"}};
      case FieldDescriptor::TYPE_UINT64:
      case FieldDescriptor::TYPE_FIXED64:
        return {{"type", "string"}, {"format", "uint64"}};
      case FieldDescriptor::TYPE_ENUM: {
        Json names = Json::array();
        for (int i = 0; i < field.enum_type()->value_count(); ++i) names.push_back(field.enum_type()->value(i)->name());
        return {{"type", "string"}, {"enum", std::move(names)}};
      }
      case FieldDescriptor::TYPE_MESSAGE:
        return of_message(*field.message_type());
      default:
        return {{"type", "integer"}, {"format", "int32"}};
    }
  }

  std::set<std::string> wanted_;
  Json schemas_ = Json::object();
};

std::string lower(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return text;
}

Json error_schema() {
  return Json::parse(R"({"type":"object","required":["code","message","product","retryable","trace_id"],"properties":{
    "code":{"type":"string","example":"MT-429"},"kind":{"type":"string","example":"quota_exceeded"},
    "message":{"type":"string"},"product":{"type":"string"},"category":{"type":"string"},
    "context":{"type":"array","items":{"type":"string"}},
    "caused_by":{"nullable":true,"allOf":[{"$ref":"#/components/schemas/EnablementError"}]},
    "retryable":{"type":"boolean"},"retry_after_ms":{"type":"integer","nullable":true},"trace_id":{"type":"string"}}})");
}

}  // namespace

std::string make_openapi(const std::vector<std::unique_ptr<Entry>>& entries) {
  Schemas schemas;
  Json paths = Json::object();
  for (const auto& entry : entries) {
    if (entry->method.stream || entry->method.refusal) continue;
    const google::protobuf::MethodDescriptor& method = described(*entry->descriptor);
    int nth = 0;
    for (const Route& route : routes_of(*entry)) {
      Json operation;
      operation["operationId"] =
          method.service()->name() + "_" + entry->method.name + (nth++ == 0 ? "" : fmt::format("_{}", nth));
      operation["tags"] = Json::array({method.service()->name()});
      operation["x-creto-action"] = entry->method.action;
      if (std::string comment = comment_of(method); !comment.empty()) operation["summary"] = comment;
      std::set<std::string> bound;
      Json parameters = Json::array();
      for (const Route::Segment& segment : route.segments) {
        if (segment.field.empty()) continue;
        bound.insert(segment.field);
        parameters.push_back(
            {{"name", segment.field}, {"in", "path"}, {"required", true}, {"schema", {{"type", "string"}}}});
      }
      const Descriptor& input = *method.input_type();
      if (route.body == "*") {
        operation["requestBody"] = {{"required", true},
                                    {"content", {{"application/json", {{"schema", schemas.of_message(input)}}}}}};
      } else {
        if (!route.body.empty()) {
          bound.insert(route.body);
          operation["requestBody"] = {
              {"required", true},
              {"content", {{"application/json", {{"schema", schemas.of_field(*input.FindFieldByName(route.body))}}}}}};
        }
        for (int i = 0; i < input.field_count(); ++i) {
          const FieldDescriptor& field = *input.field(i);
          if (bound.contains(field.name()) || field.is_map()) continue;
          bool message = field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
          if (message && !field.message_type()->full_name().starts_with("google.protobuf.")) {
            // Members of a nested message are given as page.size=10.
            for (int j = 0; !field.is_repeated() && j < field.message_type()->field_count(); ++j) {
              const FieldDescriptor& member = *field.message_type()->field(j);
              if (member.cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE)
                parameters.push_back({{"name", field.name() + "." + member.name()},
                                      {"in", "query"},
                                      {"schema", schemas.of_field(member)}});
            }
            continue;
          }
          parameters.push_back({{"name", field.name()}, {"in", "query"}, {"schema", schemas.of_field(field)}});
        }
      }
      if (route.verb != "GET")
        parameters.push_back({{"name", "Creto-Idempotency-Key"},
                              {"in", "header"},
                              {"schema", {{"type", "string"}, {"maxLength", 256}}}});
      operation["parameters"] = std::move(parameters);
      Json error = {
          {"description", "an error"},
          {"content", {{"application/json", {{"schema", {{"$ref", "#/components/schemas/EnablementError"}}}}}}}};
      operation["responses"]["200"] = {
          {"description", "done"},
          {"content", {{"application/json", {{"schema", schemas.of_message(*method.output_type())}}}}}};
      operation["responses"]["default"] = std::move(error);
      if (entry->method.access == Access::anonymous) operation["security"] = Json::array();
      std::string path;
      for (const Route::Segment& segment : route.segments)
        path += segment.field.empty() ? "/" + segment.literal : "/{" + segment.field + "}";
      if (!route.suffix.empty()) path += ":" + route.suffix;
      paths[path][lower(route.verb)] = std::move(operation);
    }
  }
  Json all = schemas.take();
  all["EnablementError"] = error_schema();
  Json document = {
      {"openapi", "3.0.3"},
      {"info", {{"title", "Creto"}, {"version", "1"}, {"description", "The trust layer under AI agents."}}},
      {"servers", Json::array({{{"url", "https://127.0.0.1:8081"}}})},
      {"security", Json::array({{{"bearer", Json::array()}}, {{"mutualTLS", Json::array()}}})},
      {"paths", std::move(paths)},
      {"components",
       {{"schemas", std::move(all)},
        {"securitySchemes",
         {{"bearer", {{"type", "http"}, {"scheme", "bearer"}}},
          {"mutualTLS", {{"type", "mutualTLS"}, {"description", "a client certificate of the authority"}}}}}}}};
  return document.dump(2);
}

}  // namespace creto::rpc

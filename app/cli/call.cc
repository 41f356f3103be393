#include "cli/call.h"

#include <fmt/format.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "creto/common/id.h"
#include "creto/io/rpc_channel.h"
#include "ports_file.h"
#include "settings.h"

namespace creto::app::cli {
namespace {

namespace pb = google::protobuf;

Error usage_error(std::string message) {
  return Error(Product::platform, ErrorKind::invalid_input, std::move(message));
}

Result<const pb::MethodDescriptor*> find_method(std::string_view method) {
  std::string dotted(method);
  std::ranges::replace(dotted, '/', '.');
  const pb::MethodDescriptor* found = pb::DescriptorPool::generated_pool()->FindMethodByName(dotted);
  if (found == nullptr) return usage_error(fmt::format("method `{}`: there is no such method", method));
  return found;
}

class ChannelServer final : public Server {
 public:
  ChannelServer(std::shared_ptr<rpc::Channel> channel, CallOptions options)
      : channel_(std::move(channel)), options_(std::move(options)) {}

  Result<Json> call(std::string_view method, const Json& request) override {
    const pb::MethodDescriptor* descriptor = CRETO_TRY(find_method(method));
    auto* factory = pb::MessageFactory::generated_factory();
    const std::unique_ptr<pb::Message> in(factory->GetPrototype(descriptor->input_type())->New());
    const std::unique_ptr<pb::Message> out(factory->GetPrototype(descriptor->output_type())->New());
    std::string json;
    try {
      json = request.dump();
    } catch (const Json::type_error&) {
      return usage_error(fmt::format("request of `{}`: is not valid UTF-8", method));
    }
    if (const auto status = pb::util::JsonStringToMessage(json, in.get()); !status.ok())
      return usage_error(fmt::format("request of `{}`: {}", method, std::string(status.message())));

    Context ctx;
    ctx.deadline = system_clock().monotonic() + options_.timeout;
    ctx.idempotency_key =
        options_.idempotency_key.empty() ? EventId::fresh(system_clock().now()).to_string() : options_.idempotency_key;
    CRETO_TRY(channel_->call_message(ctx, "/" + std::string(method), *in, *out, {.idempotent = true}));

    pb::util::JsonPrintOptions print;
    print.preserve_proto_field_names = true;
    std::string text;
    if (const auto status = pb::util::MessageToJsonString(*out, &text, print); !status.ok())
      return Error(Product::platform, ErrorKind::internal, fmt::format("answer of `{}` has no JSON form", method));
    return parse_json(text, {.bytes_max = 64 << 20, .depth_max = 100});
  }

 private:
  std::shared_ptr<rpc::Channel> channel_;
  CallOptions options_;
};

std::string cell(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_null()) return "";
  return value.dump();
}

std::string table(const Json& rows, std::vector<std::string> columns) {
  if (columns.empty()) {
    for (const auto& [key, member] : rows.front().items())
      if (!member.is_structured()) columns.push_back(key);
  }
  std::vector<std::vector<std::string>> lines = {columns};
  for (const Json& row : rows) {
    std::vector<std::string> line;
    for (const std::string& column : columns) {
      std::string pointer = "/" + column;
      std::ranges::replace(pointer, '.', '/');
      const Json::json_pointer at(pointer);
      line.push_back(row.contains(at) ? cell(row.at(at)) : "");
    }
    lines.push_back(std::move(line));
  }
  std::vector<std::size_t> widths(columns.size());
  for (const auto& line : lines)
    for (std::size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  std::string text;
  for (const auto& line : lines) {
    for (std::size_t i = 0; i < line.size(); ++i)
      text += i + 1 == line.size() ? line[i] + "\n" : fmt::format("{:<{}}  ", line[i], widths[i]);
  }
  return text;
}

void lines_of(const Json& value, const std::string& prefix, std::string& text) {
  for (const auto& [key, member] : value.items()) {
    const std::string name = prefix.empty() ? key : prefix + "." + key;
    if (member.is_object())
      lines_of(member, name, text);
    else
      text += fmt::format("{}: {}\n", name, cell(member));
  }
}

}  // namespace

Result<std::shared_ptr<rpc::Channel>> channel_to_server(const Home& home, const CallOptions& options) {
  rpc::ChannelOptions channel;
  const Settings settings = CRETO_TRY(Settings::load(home));
  channel.endpoint = options.endpoint.empty() ? settings.server : options.endpoint;
  if (channel.endpoint.empty()) {
    RunningPorts ports = CRETO_TRY(running_server(home));
    channel.endpoint = std::move(ports.grpc);
  }
  if (settings.tls) channel.tls = CRETO_TRY(client_identity(home));
  channel.timeout = options.timeout;
  return rpc::Channel::connect(std::move(channel), system_clock());
}

Result<std::unique_ptr<Server>> Server::connect(const Home& home, CallOptions options) {
  std::shared_ptr<rpc::Channel> connection = CRETO_TRY(channel_to_server(home, options));
  return std::make_unique<ChannelServer>(std::move(connection), std::move(options));
}

std::string render(const Json& response, const std::vector<std::string_view>& columns) {
  for (const auto& [key, member] : response.items()) {
    if (member.is_array() && !member.empty() && member.front().is_object())
      return table(member, {columns.begin(), columns.end()});
  }
  if (response.empty()) return columns.empty() ? "done\n" : "nothing\n";
  std::string text;
  lines_of(response, "", text);
  return text;
}

}  // namespace creto::app::cli

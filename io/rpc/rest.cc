#include "rpc/rest.h"

#include <fmt/format.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <algorithm>

#include "creto/common/assert.h"
#include "creto/common/bytes.h"
#include "creto/common/lines.h"
#include "google/api/annotations.pb.h"
#include "rpc/errors.h"

namespace creto::rpc {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

using proto::message_from_json;
using proto::message_to_json;
using proto::set_field;

Error invalid(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

/// "application/json" and what is written in it, such as "application/cloudevents-batch+json"; nothing said counts too.
bool is_json(std::string_view content_type) {
  const std::string_view type = content_type.substr(0, content_type.find(';'));
  return type.empty() || type == "application/json" || (type.starts_with("application/") && type.ends_with("+json"));
}

class RestCall final : public Call {
 public:
  RestCall(http::Request request, http::Respond respond, const Route& route, std::vector<std::string> variables,
           std::size_t depth_max)
      : request_(std::move(request)),
        respond_(std::move(respond)),
        route_(route),
        variables_(std::move(variables)),
        depth_max_(depth_max) {}

  std::string_view metadata(std::string_view name) const override { return request_.header(name); }
  std::vector<std::string> certificate_uris() const override { return request_.peer_uris; }
  std::string peer() const override { return request_.peer; }
  std::optional<Nanos> timeout() const override {
    auto wanted = parse_duration(request_.header("creto-timeout"));
    if (!wanted || *wanted <= Nanos(0)) return std::nullopt;
    return *wanted;
  }

  Result<> parse(Message& message) override {
    const auto& read = route_.entry->method.read_body;
    if (route_.body.empty()) {
      if (!request_.body.empty() && request_.body != "{}") return invalid("this method takes no body");
    } else if (!request_.body.empty() || read) {
      std::string_view type = request_.header("content-type");
      if (!request_.body.empty() && !is_json(type))
        return invalid(fmt::format("`Content-Type` must be application/json, not `{}`", type));
      const FieldDescriptor* field =
          route_.body == "*" ? nullptr : message.GetDescriptor()->FindFieldByName(route_.body);
      if (read) {
        CRETO_TRY(read(request_, message));
      } else if (field != nullptr && field->is_repeated()) {
        // A list of things, or one of them.
        const std::size_t begin = request_.body.find_first_not_of(" \t\r\n");
        const bool list = begin != request_.body.npos && request_.body[begin] == '[';
        const std::string whole =
            fmt::format(R"({{"{}":{}{}{}}})", field->json_name(), list ? "" : "[", request_.body, list ? "" : "]");
        CRETO_TRY(message_from_json(whole, message, depth_max_));
      } else {
        Message* target = field == nullptr ? &message : message.GetReflection()->MutableMessage(&message, field);
        CRETO_TRY(message_from_json(request_.body, *target, depth_max_));
      }
    }
    std::size_t next = 0;
    for (const Route::Segment& segment : route_.segments) {
      if (segment.field.empty()) continue;
      const std::string& value = variables_[next++];
      CRETO_TRY(set_field(message, segment.field, value));
    }
    const auto parameters = CRETO_TRY(request_.query_parameters());
    for (const auto& [name, value] : parameters) {
      if (route_.body == "*") return invalid(fmt::format("unknown query parameter `{}`", name));
      CRETO_TRY(set_field(message, name, value));
    }
    return {};
  }

  void answer(const Message& message) override {
    const auto& write = route_.entry->method.write_body;
    auto json = write ? write(message) : message_to_json(message);
    respond_(json ? http::Response::json(200, *std::move(json)) : http::error_response(json.error()));
  }
  void fail(const Error& error) override { respond_(http::error_response(error)); }
  std::shared_ptr<detail::Outlet> open_stream(std::size_t) override { return nullptr; }

 private:
  const http::Request request_;
  const http::Respond respond_;
  const Route& route_;
  const std::vector<std::string> variables_;
  const std::size_t depth_max_;
};

Route parse_route(const Entry& entry, std::string verb, const std::string& path, std::string body) {
  Route route;
  route.verb = std::move(verb);
  route.path = path;
  route.body = std::move(body);
  route.entry = &entry;
  CRETO_ASSERT(path.starts_with('/'));
  std::string_view rest = std::string_view(path).substr(1);
  if (std::size_t colon = rest.rfind(':');
      colon != rest.npos && colon > rest.rfind('/') && rest.find('}', colon) == rest.npos) {
    route.suffix = rest.substr(colon + 1);
    rest = rest.substr(0, colon);
  }
  for (std::string_view part : split(rest, '/')) {
    Route::Segment segment;
    if (part.starts_with('{')) {
      CRETO_ASSERT(part.ends_with('}'));
      part = part.substr(1, part.size() - 2);
      if (std::size_t equals = part.find('='); equals != part.npos) {
        segment.rest = part.substr(equals + 1) == "**";
        part = part.substr(0, equals);
      }
      segment.field = part;
    } else {
      segment.literal = part;
    }
    route.segments.push_back(std::move(segment));
  }
  return route;
}

void add_rule(const Entry& entry, const google::api::HttpRule& rule, std::vector<Route>& routes) {
  switch (rule.pattern_case()) {
    case google::api::HttpRule::kGet:
      routes.push_back(parse_route(entry, "GET", rule.get(), rule.body()));
      break;
    case google::api::HttpRule::kPut:
      routes.push_back(parse_route(entry, "PUT", rule.put(), rule.body()));
      break;
    case google::api::HttpRule::kPost:
      routes.push_back(parse_route(entry, "POST", rule.post(), rule.body()));
      break;
    case google::api::HttpRule::kDelete:
      routes.push_back(parse_route(entry, "DELETE", rule.delete_(), rule.body()));
      break;
    case google::api::HttpRule::kPatch:
      routes.push_back(parse_route(entry, "PATCH", rule.patch(), rule.body()));
      break;
    case google::api::HttpRule::PATTERN_NOT_SET:
      break;
  }
  for (const google::api::HttpRule& other : rule.additional_bindings()) add_rule(entry, other, routes);
}

/// Literals before variables, from the left; a suffix before none.
bool more_specific(const Route& a, const Route& b) {
  for (std::size_t i = 0; i < std::min(a.segments.size(), b.segments.size()); ++i) {
    bool a_literal = a.segments[i].field.empty(), b_literal = b.segments[i].field.empty();
    if (a_literal != b_literal) return a_literal;
    if (a.segments[i].rest != b.segments[i].rest) return !a.segments[i].rest;
  }
  if (a.segments.size() != b.segments.size()) return a.segments.size() > b.segments.size();
  return !a.suffix.empty() && b.suffix.empty();
}

/// The variables' decoded values where `route` matches the raw segments of a path.
std::optional<std::vector<std::string>> match(const Route& route, std::vector<std::string_view> parts) {
  if (!route.suffix.empty()) {
    std::string_view& last = parts.back();
    if (last.size() <= route.suffix.size() + 1 || !last.ends_with(route.suffix) ||
        last[last.size() - route.suffix.size() - 1] != ':')
      return std::nullopt;
    last.remove_suffix(route.suffix.size() + 1);
  }
  std::vector<std::string> variables;
  for (std::size_t i = 0; i < route.segments.size(); ++i) {
    const Route::Segment& segment = route.segments[i];
    if (i >= parts.size()) return std::nullopt;
    if (segment.rest) {
      std::string_view all(parts[i].data(),
                           static_cast<std::size_t>(parts.back().data() + parts.back().size() - parts[i].data()));
      auto decoded = http::percent_decode(all, false);
      if (!decoded || decoded->empty()) return std::nullopt;
      variables.push_back(*std::move(decoded));
      return variables;
    }
    auto decoded = http::percent_decode(parts[i], false);
    if (!decoded) return std::nullopt;
    if (segment.field.empty()) {
      if (*decoded != segment.literal) return std::nullopt;
    } else {
      if (decoded->empty()) return std::nullopt;
      variables.push_back(*std::move(decoded));
    }
  }
  if (parts.size() != route.segments.size()) return std::nullopt;
  return variables;
}

}  // namespace

std::vector<Route> routes_of(const Entry& entry) {
  std::vector<Route> routes;
  if (entry.descriptor->options().HasExtension(google::api::http))
    add_rule(entry, entry.descriptor->options().GetExtension(google::api::http), routes);
  if (routes.empty()) routes.push_back(parse_route(entry, "POST", entry.full_name, "*"));
  return routes;
}

void Router::add(const Entry& entry) {
  for (Route& route : routes_of(entry)) {
    for (const Route& other : routes_) CRETO_ASSERT(other.verb != route.verb || other.path != route.path);
    if (!route.body.empty() && route.body != "*") {
      const FieldDescriptor* field = entry.descriptor->input_type()->FindFieldByName(route.body);
      CRETO_ASSERT(field != nullptr);
      // The body of a list is put into the message as text, so nothing else may be in it.
      CRETO_ASSERT(!field->is_repeated() || entry.method.read_body ||
                   entry.descriptor->input_type()->field_count() == 1);
    }
    auto place = std::ranges::find_if(routes_, [&](const Route& other) { return more_specific(route, other); });
    routes_.insert(place, std::move(route));
  }
}

std::size_t Router::body_bytes_max(const http::Request& head) const {
  const std::string_view path = head.path();
  if (!path.starts_with('/')) return 0;
  const auto parts = split(path.substr(1), '/');
  for (const Route& route : routes_) {
    if (route.verb == head.method && route.segments.size() <= parts.size() && match(route, parts))
      return route.entry->method.request_bytes_max;
  }
  return 0;
}

void Router::serve(DispatcherImpl& dispatcher, http::Request request, http::Respond respond) const {
  std::string_view path = request.path();
  if (!path.starts_with('/')) return respond(http::error_response(invalid("the path must begin with `/`")));
  auto parts = split(path.substr(1), '/');
  bool other_verb = false;
  for (const Route& route : routes_) {
    if (route.segments.size() > parts.size()) continue;
    auto variables = match(route, parts);
    if (!variables) continue;
    if (route.verb != request.method) {
      other_verb = true;
      continue;
    }
    auto call = std::make_shared<RestCall>(std::move(request), std::move(respond), route, *std::move(variables),
                                           dispatcher.options().json_depth_max);
    return dispatcher.dispatch(*route.entry, std::move(call));
  }
  http::Response response = http::error_response(
      Error(Product::platform, ErrorKind::not_found,
            other_verb ? fmt::format("`{}` is not for this path", request.method) : "there is no such path"));
  if (other_verb) response.status = 405;
  respond(std::move(response));
}

}  // namespace creto::rpc

#include "rpc/errors.h"

#include <nlohmann/json.hpp>

#include "creto/common/json.h"
#include "creto/common/v1/common.pb.h"
#include "creto/io/http_server.h"
#include "creto/io/proto.h"
#include "google/rpc/status.pb.h"

namespace creto {
namespace {

constexpr std::size_t causes_max = 16;
/// What nanoseconds hold; a delay beyond is none.
constexpr std::int64_t delay_ms_max = 9'223'372'035'000;

std::optional<Product> product_from_string(std::string_view text) {
  for (Product product :
       {Product::platform, Product::runtime, Product::metering, Product::oversight, Product::messaging})
    if (to_string(product) == text) return product;
  return std::nullopt;
}

/// The "429" of "RT-429"; 0 where it is none.
int number_of(std::string_view code) {
  if (code.size() != 6 || code[2] != '-') return 0;
  int number = 0;
  for (char c : code.substr(3)) {
    if (c < '0' || c > '9') return 0;
    number = number * 10 + (c - '0');
  }
  return number;
}

/// What both wire forms hold of one link of the chain.
struct Fields {
  std::string product, kind, code, message, trace_id;
  std::vector<std::string> context;
  bool retryable = false;
  std::optional<Nanos> retry_after;
};

Error make_error(Fields fields) {
  Error error(product_from_string(fields.product).value_or(Product::platform),
              error_kind_from_string(fields.kind).value_or(ErrorKind::internal), std::move(fields.message));
  if (int number = number_of(fields.code); number > 0) error = std::move(error).with_number(number);
  for (std::string& context : fields.context) error = std::move(error).with_context(std::move(context));
  error = std::move(error).with_retryable(fields.retryable);
  if (fields.retry_after) error = std::move(error).with_retry_after(*fields.retry_after);
  if (!fields.trace_id.empty()) error = std::move(error).with_trace(std::move(fields.trace_id));
  return error;
}

Json to_json(const Error& error, std::size_t depth) {
  Json json = {{"code", error.code()},
               {"kind", to_string(error.kind())},
               {"message", error.message()},
               {"product", to_string(error.product())},
               {"category", to_string(error.category())},
               {"context", error.context()},
               {"retryable", error.retryable()},
               {"trace_id", error.trace_id()},
               {"caused_by", nullptr},
               {"retry_after_ms", nullptr}};
  if (error.retry_after())
    json["retry_after_ms"] = std::chrono::ceil<std::chrono::milliseconds>(*error.retry_after()).count();
  if (error.caused_by() && depth > 0) json["caused_by"] = to_json(*error.caused_by(), depth - 1);
  return json;
}

std::optional<Error> from_json(const Json& json, std::size_t depth) {
  JsonReader reader(json, "error");
  Fields fields;
  fields.code = reader.text("code");
  fields.kind = reader.text_or("kind", "internal");
  fields.message = reader.text("message");
  fields.product = reader.text("product");
  reader.text_or("category", "");
  fields.trace_id = reader.text_or("trace_id", "");
  fields.retryable = reader.boolean_or("retryable", false);
  for (const Json& context : reader.array("context"))
    if (context.is_string()) fields.context.push_back(context.get<std::string>());
  const Json& delay = reader.any("retry_after_ms");
  if (delay.is_number_integer()) {
    const auto ms = delay.get<std::int64_t>();
    if (ms >= 0 && ms <= delay_ms_max) fields.retry_after = std::chrono::milliseconds(ms);
  }
  const Json& cause = reader.any("caused_by");
  if (!reader.finish()) return std::nullopt;
  Error error = make_error(std::move(fields));
  if (cause.is_object() && depth > 0) {
    auto inner = from_json(cause, depth - 1);
    if (!inner) return std::nullopt;
    error = std::move(error).with_cause(*std::move(inner));
  }
  return error;
}

void to_proto(const Error& error, common::v1::EnablementError& proto, std::size_t depth) {
  proto.set_code(error.code());
  proto.set_kind(std::string(to_string(error.kind())));
  proto.set_message(error.message());
  proto.set_product(std::string(to_string(error.product())));
  for (const std::string& context : error.context()) proto.add_context(context);
  proto.set_retryable(error.retryable());
  proto.set_trace_id(error.trace_id());
  if (error.retry_after()) {
    proto.mutable_retry_after()->set_seconds(error.retry_after()->count() / 1'000'000'000);
    proto.mutable_retry_after()->set_nanos(static_cast<int>(error.retry_after()->count() % 1'000'000'000));
  }
  if (error.caused_by() && depth > 0) to_proto(*error.caused_by(), *proto.mutable_caused_by(), depth - 1);
}

Error from_proto(const common::v1::EnablementError& sent, std::size_t depth) {
  Fields fields{sent.product(), sent.kind(), sent.code(), sent.message(), sent.trace_id(), {}, sent.retryable(), {}};
  fields.context.assign(sent.context().begin(), sent.context().end());
  if (sent.has_retry_after()) {
    if (const auto delay = proto::from_duration(sent.retry_after(), "retry_after"); delay && *delay >= Nanos(0))
      fields.retry_after = *delay;
  }
  Error error = make_error(std::move(fields));
  if (sent.has_caused_by() && depth > 0) error = std::move(error).with_cause(from_proto(sent.caused_by(), depth - 1));
  return error;
}

}  // namespace

namespace http {

int to_http(const Error& error) {
  switch (error.kind()) {
    case ErrorKind::not_found:
    case ErrorKind::recipient_not_found:
    case ErrorKind::topic_not_found:
      return 404;
    case ErrorKind::already_exists:
    case ErrorKind::conflict:
      return 409;
    case ErrorKind::invalid_input:
    case ErrorKind::unsupported_algorithm:
      return 400;
    case ErrorKind::unauthenticated:
    case ErrorKind::signature_invalid:
      return 401;
    case ErrorKind::permission_denied:
    case ErrorKind::approval_denied:
    case ErrorKind::attestation_failed:
    case ErrorKind::egress_denied:
    case ErrorKind::delivery_denied:
      return 403;
    case ErrorKind::expired:
      return 410;
    case ErrorKind::too_large:
      return 413;
    case ErrorKind::resource_exhausted:
      return 507;
    case ErrorKind::rate_limited:
    case ErrorKind::quota_exceeded:
      return 429;
    case ErrorKind::timeout:
      return 504;
    case ErrorKind::cancelled:
      return 499;
    case ErrorKind::unavailable:
      return 503;
    case ErrorKind::oversight_required:
      return 202;
    case ErrorKind::approval_timeout:
      return 408;
    case ErrorKind::hash_mismatch:
    case ErrorKind::decryption_failed:
      return 422;
    case ErrorKind::encryption_failed:
    case ErrorKind::sandbox_spawn_failed:
    case ErrorKind::internal:
      return 500;
  }
  std::unreachable();
}

std::string error_to_json(const Error& error) {
  return to_json(error, causes_max).dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::optional<Error> error_from_json(std::string_view json, std::size_t max_depth) {
  auto value = parse_json(json);
  if (!value) return std::nullopt;
  return from_json(*value, max_depth);
}

Response error_response(const Error& error) {
  Response response = Response::json(to_http(error), error_to_json(error));
  if (error.retry_after())
    response.headers.emplace_back(
        "Retry-After", std::to_string(std::chrono::ceil<std::chrono::seconds>(*error.retry_after()).count()));
  return response;
}

}  // namespace http

namespace rpc {
namespace {

// grpc::StatusCode, whose header would cost every user of this file seconds of compiling.
enum Status {
  cancelled = 1,
  unknown = 2,
  invalid_argument = 3,
  deadline_exceeded = 4,
  not_found = 5,
  already_exists = 6,
  permission_denied = 7,
  resource_exhausted = 8,
  failed_precondition = 9,
  aborted = 10,
  out_of_range = 11,
  unimplemented = 12,
  internal = 13,
  unavailable = 14,
  data_loss = 15,
  unauthenticated = 16,
};

}  // namespace

int to_grpc_status(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::not_found:
    case ErrorKind::recipient_not_found:
    case ErrorKind::topic_not_found:
      return not_found;
    case ErrorKind::already_exists:
      return already_exists;
    case ErrorKind::conflict:
      return aborted;
    case ErrorKind::invalid_input:
    case ErrorKind::unsupported_algorithm:
    case ErrorKind::too_large:
      return invalid_argument;
    case ErrorKind::unauthenticated:
    case ErrorKind::signature_invalid:
      return unauthenticated;
    case ErrorKind::permission_denied:
    case ErrorKind::approval_denied:
    case ErrorKind::attestation_failed:
    case ErrorKind::egress_denied:
    case ErrorKind::delivery_denied:
      return permission_denied;
    case ErrorKind::expired:
    case ErrorKind::oversight_required:
      return failed_precondition;
    case ErrorKind::resource_exhausted:
    case ErrorKind::rate_limited:
    case ErrorKind::quota_exceeded:
      return resource_exhausted;
    case ErrorKind::timeout:
    case ErrorKind::approval_timeout:
      return deadline_exceeded;
    case ErrorKind::cancelled:
      return cancelled;
    case ErrorKind::unavailable:
      return unavailable;
    case ErrorKind::hash_mismatch:
    case ErrorKind::decryption_failed:
      return data_loss;
    case ErrorKind::encryption_failed:
    case ErrorKind::sandbox_spawn_failed:
    case ErrorKind::internal:
      return internal;
  }
  std::unreachable();
}

ErrorKind kind_of_grpc_status(int status) {
  switch (status) {
    case cancelled:
      return ErrorKind::cancelled;
    case invalid_argument:
    case out_of_range:
      return ErrorKind::invalid_input;
    case deadline_exceeded:
      return ErrorKind::timeout;
    case not_found:
    case unimplemented:
      return ErrorKind::not_found;
    case already_exists:
      return ErrorKind::already_exists;
    case permission_denied:
      return ErrorKind::permission_denied;
    case resource_exhausted:
      return ErrorKind::too_large;
    case failed_precondition:
    case aborted:
      return ErrorKind::conflict;
    case unavailable:
      return ErrorKind::unavailable;
    case unauthenticated:
      return ErrorKind::unauthenticated;
    default:
      return ErrorKind::internal;
  }
}

Error without_internals(const Error& error) {
  if (error.kind() != ErrorKind::internal) return error;
  return Error(error.product(), error.kind(), "internal error; the server's log has it under this trace id")
      .with_number(error.number())
      .with_trace(error.trace_id());
}

std::string to_status_details(const Error& error, int grpc_status) {
  common::v1::EnablementError detail;
  to_proto(error, detail, causes_max);
  google::rpc::Status status;
  status.set_code(grpc_status);
  status.set_message(error.message());
  status.add_details()->PackFrom(detail);
  return status.SerializeAsString();
}

std::optional<Error> from_status_details(std::string_view details) {
  google::rpc::Status status;
  if (details.empty() || !status.ParseFromArray(details.data(), static_cast<int>(details.size()))) return std::nullopt;
  for (const google::protobuf::Any& any : status.details()) {
    common::v1::EnablementError detail;
    if (any.UnpackTo(&detail)) return from_proto(detail, causes_max);
  }
  return std::nullopt;
}

}  // namespace rpc
}  // namespace creto

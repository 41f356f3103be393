#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "creto/common/json.h"
#include "creto/crypto/hash.h"
#include "gateway/agent_doors.h"

namespace creto::runtime {
namespace {

constexpr Nanos wait_max = std::chrono::seconds(60);

Error not_found(std::string_view path) {
  return Error(Product::runtime, ErrorKind::not_found, fmt::format("the gateway has no `{}`", path.substr(0, 200)));
}

http::Response json(int status, const Json& body) {
  return http::Response::json(status, body.dump(-1, ' ', false, Json::error_handler_t::replace));
}

Json approval_json(const contracts::ApprovalStatus& status) {
  Json body = {{"request_id", status.request.to_string()}, {"state", contracts::to_string(status.state)}};
  if (!status.notes.empty()) body["notes"] = status.notes;
  if (!status.override_token.empty()) body["override_token"] = status.override_token;
  if (status.approver) body["approver"] = status.approver->text();
  return body;
}

Json sandbox_json(const Sandbox& sandbox) {
  Json body = {
      {"sandbox_id", sandbox.id.to_string()}, {"agent", sandbox.agent.text()}, {"state", to_string(sandbox.state)}};
  if (sandbox.reason) body["reason"] = to_string(*sandbox.reason);
  if (sandbox.exit_code) body["exit_code"] = *sandbox.exit_code;
  Json chain = Json::array();
  for (const auto& link : sandbox.delegation_chain) chain.push_back(link.text());
  body["delegation_chain"] = std::move(chain);
  return body;
}

/// One gateway's doors; shared by the requests that run.
struct Gateway : std::enable_shared_from_this<Gateway> {
  Resident resident;
  AgentDoors& doors;
  RuntimeServices& services;
  Tasks& tasks;
  GatewayHooks hooks;

  Gateway(Resident r, AgentDoors& d, RuntimeServices& s, Tasks& t, GatewayHooks h)
      : resident(std::move(r)), doors(d), services(s), tasks(t), hooks(std::move(h)) {}

  Context context() const { return hooks.context(); }

  /// Of a request that changes something. What a repeat is compared by does not depend on how the JSON was written, nor
  /// on the approval: the same request comes again with it.
  Result<Context> context(const http::Request& request, std::string_view path, const Json& body) const {
    auto ctx = hooks.context();
    const std::string_view key = request.header("creto-idempotency-key");
    if (key.empty()) return ctx;
    if (key.size() > 256 || !std::ranges::all_of(key, [](char c) { return c > ' ' && c < 0x7f; }))
      return Error(Product::runtime, ErrorKind::invalid_input,
                   "`Creto-Idempotency-Key` must be 1 to 256 printable ASCII characters without spaces");
    ctx.idempotency_key = key;
    const auto canonical = CRETO_TRY(canonical_json(body));
    ctx.request_hash = crypto::sha3_256(as_bytes(fmt::format("POST {}\n{}", path, canonical)));
    return ctx;
  }

  static Result<Nanos> wait_of(const http::Request& request) {
    const auto text = request.query("wait");
    if (!text) return Nanos(0);
    const auto wait = CRETO_TRY(parse_duration(*text));
    return std::clamp<Nanos>(wait, Nanos(0), wait_max);
  }

  template <class T>
  static http::Response answer(const Result<T>& result, const std::function<http::Response(const T&)>& good) {
    return result ? good(*result) : http::error_response(result.error());
  }

  void route(const http::Request& request, const http::Respond& respond) {
    const auto path = request.path();
    const auto& method = request.method;
    const auto rest = [&](std::string_view prefix) -> std::string {
      return path.starts_with(prefix) ? std::string(path.substr(prefix.size())) : std::string();
    };
    if (method == "GET" && path == "/v1/identity") return respond(identity());
    if (method == "GET" && path.starts_with("/v1/requests/"))
      return wait_for_request(request, rest("/v1/requests/"), respond);
    if (method == "GET" && path == "/v1/messages") return wait_for_messages(request, respond);
    if (path.starts_with("/v1/sandboxes/")) {
      const auto id = SandboxId::parse(rest("/v1/sandboxes/"));
      if (!id) return respond(http::error_response(not_found(path)));
      const auto ctx = context();
      if (method == "GET")
        return respond(
            answer<Sandbox>(hooks.child(ctx, *id), [](const Sandbox& s) { return json(200, sandbox_json(s)); }));
      if (method == "DELETE")
        return respond(
            answer<Sandbox>(hooks.end_child(ctx, *id), [](const Sandbox& s) { return json(200, sandbox_json(s)); }));
    }
    if (method != "POST") return respond(http::error_response(not_found(path)));

    Json body = Json::object();
    if (!request.body.empty()) {
      auto parsed = parse_json(request.body);
      if (!parsed) return respond(http::error_response(parsed.error()));
      body = std::move(*parsed);
    }
    if (!body.is_object())
      return respond(
          http::error_response(Error(Product::runtime, ErrorKind::invalid_input, "request: must be a JSON object")));
    respond(post(request, path, body));
  }

  http::Response post(const http::Request& request, std::string_view path, const Json& body) {
    const auto keyed = context(request, path, body);
    if (!keyed) return http::error_response(keyed.error());
    const auto& ctx = *keyed;
    if (path == "/v1/inference/chat/completions")
      return respond_to(doors.complete(ctx, resident, body, std::string(request.header("creto-override"))));
    if (path.starts_with("/v1/actions/")) return act(ctx, request, std::string(path.substr(12)), body);
    if (path == "/v1/memories")
      return answer<std::string>(doors.remember(ctx, resident, body),
                                 [](const std::string& id) { return json(200, {{"memory_id", id}}); });
    if (path == "/v1/messages")
      return respond_to(doors.send(ctx, resident, body, std::string(request.header("creto-override"))));
    if (path.starts_with("/v1/messages/") && path.ends_with("/ack")) {
      const auto id = MessageId::parse(path.substr(13, path.size() - 17));
      if (!id) return http::error_response(not_found(path));
      const auto done = doors.acknowledge(ctx, resident, *id);
      return done ? json(200, Json::object()) : http::error_response(done.error());
    }
    if (path.starts_with("/v1/topics/") && path.ends_with("/subscribe")) {
      auto topic = http::percent_decode(path.substr(11, path.size() - 21), false);
      if (!topic) return http::error_response(topic.error());
      return answer<std::string>(doors.subscribe(ctx, resident, *topic),
                                 [](const std::string& id) { return json(200, {{"subscription_id", id}}); });
    }
    if (path == "/v1/sandboxes") return spawn(ctx, request, body);
    return http::error_response(not_found(path));
  }

  http::Response identity() const {
    Json chain = Json::array();
    for (const auto& link : resident.chain) chain.push_back(link.text());
    return json(200, {{"agent", resident.agent.text()},
                      {"delegation_chain", std::move(chain)},
                      {"sandbox_id", resident.sandbox.to_string()}});
  }

  http::Response act(const Context& ctx, const http::Request& request, const std::string& name, const Json& body) {
    JsonReader in(body, "request");
    const Json arguments = in.object("arguments");
    const auto reasoning = in.text_or("reasoning", "");
    if (auto read = in.finish(); !read) return http::error_response(read.error());
    return respond_to(
        doors.act(ctx, resident, name, arguments, reasoning, std::string(request.header("creto-override"))));
  }

  static http::Response respond_to(const Result<ActionOutcome>& outcome) {
    if (!outcome) return http::error_response(outcome.error());
    if (outcome->approval) return waiting(*outcome->approval);
    return http::Response::json(outcome->status, outcome->result);
  }

  static http::Response waiting(const contracts::ApprovalStatus& status) {
    auto body = approval_json(status);
    body["code"] = "RT-202";
    body["kind"] = to_string(ErrorKind::oversight_required);
    return json(202, body);
  }

  http::Response spawn(const Context& ctx, const http::Request& request, const Json& body) {
    SandboxSpec spec;
    JsonReader in(body, "request");
    spec.image = in.text("image");
    for (const auto& argument : in.array("command")) {
      if (!argument.is_string())
        in.refuse("command", "must be a list of strings");
      else
        spec.command.push_back(argument);
    }
    for (const auto& [name, value] : in.object("environment").items()) {
      if (!value.is_string())
        in.refuse("environment", "values must be strings");
      else
        spec.environment[name] = value;
    }
    spec.working_directory = in.text_or("working_directory", "");
    spec.reasoning = in.text_or("reasoning", "");
    if (auto read = in.finish(); !read) return http::error_response(read.error());
    spec.override_token = std::string(request.header("creto-override"));
    const auto spawned = hooks.spawn_child(ctx, std::move(spec));
    if (!spawned) return http::error_response(spawned.error());
    if (spawned->approval) return waiting(*spawned->approval);
    return json(200, sandbox_json(*spawned->sandbox));
  }

  /// Answers once: when the request is final or when the wait is over, whichever comes first. Holds no thread.
  void wait_for_request(const http::Request& request, const std::string& text, const http::Respond& respond) {
    const auto id = RequestId::parse(text);
    const auto wait = wait_of(request);
    if (!services.approvals || !id || !wait) {
      if (!id) return respond(http::error_response(not_found(request.path())));
      if (!wait) return respond(http::error_response(wait.error()));
      return respond(http::error_response(Error(Product::runtime, ErrorKind::unavailable, "nobody can be asked here")));
    }
    const auto ctx = context();
    const auto now = services.approvals->approval_status(ctx, *id);
    if (!now || contracts::is_final(now->state) || *wait == Nanos(0))
      return respond(answer<contracts::ApprovalStatus>(now, [](const auto& s) { return json(200, approval_json(s)); }));
    struct Waiting {
      std::mutex mutex;
      bool answered = false;
      contracts::ApprovalGate::Subscription subscription;
    };
    auto waiting = std::make_shared<Waiting>();
    const auto finish = [self = shared_from_this(), waiting, respond, ctx, id = *id] {
      {
        const std::lock_guard lock(waiting->mutex);
        if (std::exchange(waiting->answered, true)) return;
      }
      // Asked again rather than taken from the event: what is shown depends on who asks.
      const auto status = self->services.approvals->approval_status(ctx, id);
      respond(answer<contracts::ApprovalStatus>(status, [](const auto& s) { return json(200, approval_json(s)); }));
      const std::lock_guard lock(waiting->mutex);
      waiting->subscription.reset();
    };
    auto subscription = services.approvals->when_final(
        ctx, *id, [self = shared_from_this(), finish](const contracts::ApprovalStatus&) { self->tasks.post(finish); });
    if (!subscription) return respond(http::error_response(subscription.error()));
    {
      const std::lock_guard lock(waiting->mutex);
      if (!waiting->answered) waiting->subscription = std::move(*subscription);
    }
    tasks.post_after(*wait, finish);
  }

  struct MessageWait {
    Context ctx;
    http::Respond respond;
    std::atomic<bool> answered = false;
  };

  /// Answers once: with what waits, or with nothing when the wait is over. Holds no thread.
  void wait_for_messages(const http::Request& request, const http::Respond& respond) {
    const auto wait = wait_of(request);
    if (!wait) return respond(http::error_response(wait.error()));
    auto waiting = std::make_shared<MessageWait>(context(), respond);
    if (*wait > Nanos(0))
      tasks.post_after(*wait, [self = shared_from_this(), waiting] { self->look_for_messages(waiting, true); });
    look_for_messages(waiting, *wait == Nanos(0));
  }

  void look_for_messages(const std::shared_ptr<MessageWait>& waiting, bool last) {
    if (waiting->answered) return;
    const auto seen = doors.messages_seen();
    auto messages = doors.receive(waiting->ctx, resident);
    if (messages && messages->empty() && !last)
      return doors.when_message(seen,
                                [self = shared_from_this(), waiting] { self->look_for_messages(waiting, false); });
    if (waiting->answered.exchange(true)) return;
    waiting->respond(answer<Json>(messages, [](const Json& list) { return json(200, {{"messages", list}}); }));
  }
};

}  // namespace

http::AsyncHandler gateway_handler(Resident resident, AgentDoors& doors, RuntimeServices& services, Tasks& tasks,
                                   GatewayHooks hooks) {
  auto gateway = std::make_shared<Gateway>(std::move(resident), doors, services, tasks, std::move(hooks));
  return [gateway](http::Request request, http::Respond respond) {
    // Off the I/O thread: doors may wait for a database, a model or an upstream.
    gateway->tasks.post([gateway, request = std::move(request), respond = std::move(respond)] {
      try {
        gateway->route(request, respond);
      } catch (const std::exception& problem) {  // no agent can end the server; dropped, the request is answered by 500
        gateway->services.telemetry.error(
            "runtime", "gateway_exception",
            {{"sandbox", gateway->resident.sandbox.to_string()}, {"error", std::string(problem.what())}});
      }
    });
  };
}

}  // namespace creto::runtime

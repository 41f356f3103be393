#include "commands.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/call.h"
#include "creto/audit/audit_log.h"
#include "creto/common/json.h"
#include "creto/crypto/hash.h"
#include "creto/io/files.h"
#include "creto/io/http_client.h"
#include "creto/nhi/nhi.h"
#include "creto/oversight/oversight.h"
#include "ports_file.h"
#include "settings.h"

namespace creto::app {

Json signature_json(const Signature& signature) {
  return {{"algorithm", signature.algorithm}, {"value", base64(signature.value)}};
}

namespace {

constexpr std::string_view nhi_service = "creto.nhi.v1.NhiService/";
constexpr std::string_view oversight_service = "creto.oversight.v1.OversightService/";

std::string method(std::string_view service, std::string_view name) { return std::string(service) + std::string(name); }

/// The set that signs for this home's human now.
Result<HumanKeySet> unlock(const Home& home, cli::Server& server, const Identity& human) {
  const Json registered = CRETO_TRY(server.call(method(nhi_service, "GetPublicKeys"), {{"identity", human.text()}}));
  const Bytes file = CRETO_TRY(io::real_files().read(home.human_keys(), 1 << 20));
  const Secret passphrase = CRETO_TRY(read_passphrase("passphrase of " + human.text(), false));
  HumanKeys keys = CRETO_TRY(HumanKeys::open(file, passphrase));
  const std::string id = registered.value("key_id", "");
  CRETO_TRY(keys.find(id));
  return std::move(*std::ranges::find(keys.sets, id, &HumanKeySet::id));
}

/// The id that a delegation gets from an idempotency key: the same at each repetition, so that there is one delegation.
DelegationId delegation_id_of(const std::string& key, const Identity& delegator, const std::string& delegatee) {
  const Hash256 hash =
      crypto::sha3_256(as_bytes(fmt::format("creto.delegation\n{}\n{}\n{}", key, delegator.text(), delegatee)));
  ByteArray<16> bytes;
  std::copy_n(hash.begin(), bytes.size(), bytes.begin());
  bytes[6] = static_cast<std::uint8_t>((bytes[6] & 0x0f) | 0x70);
  bytes[8] = static_cast<std::uint8_t>((bytes[8] & 0x3f) | 0x80);
  return DelegationId::from_bytes(bytes);
}

/// A delegation from this home's human to `delegatee`, signed here, as NhiService/CreateDelegation takes it.
Result<Json> signed_delegation(const Home& home, cli::Server& server, const std::string& key,
                               const std::string& delegatee, std::vector<std::string> permissions, Nanos valid_for) {
  const Settings settings = CRETO_TRY(Settings::load(home));
  const Identity human = CRETO_TRY(human_of(home));
  const HumanKeySet keys = CRETO_TRY(unlock(home, server, human));

  std::ranges::sort(permissions);
  const auto repeated = std::ranges::unique(permissions);
  permissions.erase(repeated.begin(), repeated.end());
  const Instant now = std::chrono::floor<std::chrono::seconds>(system_clock().now());
  const Identity to = CRETO_TRY(Identity::parse(delegatee));
  nhi::Delegation delegation{.id = key.empty() ? DelegationId::fresh(now) : delegation_id_of(key, human, delegatee),
                             .org = settings.org,
                             .delegator = human,
                             .delegatee = to,
                             .parent = std::nullopt,
                             .permissions = permissions,
                             .created_at = now,
                             .expires_at = now + valid_for,
                             .key_id = keys.id(),
                             .signature = {},
                             .revoked = false};
  const std::string document = CRETO_TRY(delegation.signed_bytes());
  delegation.signature = CRETO_TRY(keys.signing.sign(as_bytes(document), as_bytes(nhi::delegation_context)));
  return Json{{"delegator", human.text()},
              {"delegatee", to.text()},
              {"permissions", permissions},
              {"id", delegation.id.to_string()},
              {"created_at", to_rfc3339(delegation.created_at)},
              {"expires_at", to_rfc3339(delegation.expires_at)},
              {"key_id", delegation.key_id},
              {"signature", signature_json(delegation.signature)}};
}

/// The delegation that the same `key` made before, or a new one.
Result<Json> make_delegation(const Home& home, cli::Server& server, const std::string& key,
                             const std::string& delegatee, std::vector<std::string> permissions, Nanos valid_for) {
  if (!key.empty()) {
    const Identity human = CRETO_TRY(human_of(home));
    const std::string id = delegation_id_of(key, human, delegatee).to_string();
    const Result<Json> chain =
        server.call(method(nhi_service, "GetDelegationChain"), {{"identity", delegatee}, {"leaf", id}});
    if (chain) return chain->at("delegations").back();
    if (chain.error().kind() != ErrorKind::not_found) return Error(chain.error());
  }
  const Json delegation = CRETO_TRY(signed_delegation(home, server, key, delegatee, std::move(permissions), valid_for));
  return server.call(method(nhi_service, "CreateDelegation"), delegation);
}

}  // namespace

Result<Output> show_config(const Home& home) {
  std::string text = CRETO_TRY(Settings::show(home));
  return Output{std::move(text), "", 0};
}

Result<Output> health(const Home& home) {
  const RunningPorts ports = CRETO_TRY(running_server(home));
  http::ClientRequest request;
  request.url = fmt::format("http://{}/health", ports.health);
  request.timeout = std::chrono::seconds(5);
  const http::Response response = CRETO_TRY(http::Client::create(system_clock())->send(Context(), request));
  const Json report = CRETO_TRY(parse_json(response.body));
  std::string text = fmt::format("{}\n", report.value("status", "unknown"));
  const Json checks = report.value("checks", Json::object());
  for (const auto& [name, entry] : checks.items())
    text += fmt::format("  {:<12} {:<10} {}\n", name, entry.value("status", ""), entry.value("reason", ""));
  return Output{std::move(text), report.dump(2), response.status == 200 ? 0 : 5};
}

Result<Output> openapi(const Home& home) {
  const RunningPorts ports = CRETO_TRY(running_server(home));
  const Settings settings = CRETO_TRY(Settings::load(home));
  http::ClientRequest request;
  request.url = fmt::format("{}://{}/openapi.json", settings.tls ? "https" : "http", ports.rest);
  if (settings.tls) request.authority_pem = CRETO_TRY(read_text(home.authority()));
  http::Response response = CRETO_TRY(http::Client::create(system_clock())->send(Context(), request));
  if (response.status != 200)
    return Error(Product::platform, ErrorKind::unavailable,
                 fmt::format("`{}` answered with {}", request.url, response.status));
  const Json document = CRETO_TRY(parse_json(response.body, {.bytes_max = request.body_bytes_max}));
  return Output{document.dump(2) + "\n", document.dump(2), 0};
}

Result<Output> verify_audit(const std::filesystem::path& tiles, const std::filesystem::path& key,
                            const std::filesystem::path& records) {
  const std::string keys = CRETO_TRY(read_text(key));
  io::FileSystem& files = io::real_files();
  std::filesystem::path unproven;
  std::unique_ptr<io::WritableFile> out;
  if (!records.empty()) {
    unproven = records.string() + ".unproven";
    out = CRETO_TRY(files.create(unproven, 0600));
  }
  std::string lines;
  const auto write = [&]() -> Result<> {
    CRETO_TRY(out->append(as_bytes(lines)));
    lines.clear();
    return {};
  };
  const auto keep = [&](std::string_view record) -> Result<> {
    if (!out) return {};
    lines.append(record).push_back('\n');
    return lines.size() < 1 << 20 ? Result<>() : write();
  };
  const auto verified = audit::verify_directory(tiles, keys, keep);
  if (!verified) {
    if (out) (void)files.remove(unproven);
    return Error(verified.error());
  }
  const tlog::VerifiedLog& log = *verified;
  if (out) {
    CRETO_TRY(write());
    CRETO_TRY(files.rename(unproven, records));
  }
  const Json json = {{"verified", true}, {"origin", log.origin}, {"size", log.size}, {"root", base64(log.root)}};
  return Output{fmt::format("verified: {} entries of {}\nroot: {}\n", log.size, log.origin, base64(log.root)),
                json.dump(2), 0};
}

Result<Output> register_agent(const Home& home, const cli::CallOptions& options, const std::string& name,
                              const std::vector<std::string>& permissions, Nanos valid_for) {
  const auto server = CRETO_TRY(cli::Server::connect(home, options));
  Json agent = CRETO_TRY(server->call(method(nhi_service, "RegisterAgent"), {{"name", name}}));
  const std::string identity = agent.value("identity", "");
  const Json delegation =
      CRETO_TRY(make_delegation(home, *server, options.idempotency_key, identity, permissions, valid_for));
  agent["delegation"] = delegation;
  return Output{fmt::format("{}\n", identity), agent.dump(2), 0};
}

Result<Output> delegate(const Home& home, const cli::CallOptions& options, const std::string& agent,
                        const std::vector<std::string>& permissions, Nanos valid_for) {
  const auto server = CRETO_TRY(cli::Server::connect(home, options));
  const Json found = CRETO_TRY(server->call(method(nhi_service, "GetAgent"), {{"identity", agent}}));
  const Json delegation = CRETO_TRY(
      make_delegation(home, *server, options.idempotency_key, found.value("identity", ""), permissions, valid_for));
  return Output{fmt::format("{}\n", delegation.value("id", "")), delegation.dump(2), 0};
}

Result<Output> provision_agent(const Home& home, const cli::CallOptions& options, const ProvisionOptions& provision) {
  cli::CallOptions repeatable = options;
  if (repeatable.idempotency_key.empty()) repeatable.idempotency_key = EventId::fresh(system_clock().now()).to_string();
  const auto server = CRETO_TRY(cli::Server::connect(home, repeatable));
  const Json agent = CRETO_TRY(server->call(method(nhi_service, "RegisterAgent"), {{"name", provision.name}}));
  const std::string identity = agent.value("identity", "");
  Json policies = Json::array();
  for (const auto& [id, text] : provision.policies) policies.push_back({{"id", id}, {"text", text}});
  const Json delegation = CRETO_TRY(signed_delegation(home, *server, repeatable.idempotency_key, identity,
                                                      provision.permissions, provision.valid_for));
  const Json made =
      CRETO_TRY(server->call("creto.provision.v1.ProvisionService/ProvisionAgent", {{"agent", identity},
                                                                                    {"delegation", delegation},
                                                                                    {"plan_id", provision.plan},
                                                                                    {"policies", policies},
                                                                                    {"image", provision.image},
                                                                                    {"command", provision.command}}));
  return Output{fmt::format("{}\n", identity), made.dump(2), 0};
}

Result<Output> respond(const Home& home, const cli::CallOptions& options, const std::string& request, bool approve,
                       const std::string& notes, const std::string& response) {
  const auto server = CRETO_TRY(cli::Server::connect(home, options));
  const Identity human = CRETO_TRY(human_of(home));
  const Json shown = CRETO_TRY(server->call(method(oversight_service, "GetRequest"), {{"id", request}}));
  const RequestId id = CRETO_TRY(RequestId::parse(shown.value("id", "")));
  const std::string arguments = shown.value("arguments", "");
  // He signs the hash of what he sees, computed here: a server that shows one thing and stores another is found out.
  const oversight::ResponseDocument document{.request = id,
                                             .approver = human,
                                             .approve = approve,
                                             .arguments_hash = crypto::sha3_256(as_bytes(arguments)),
                                             .notes = notes,
                                             .response = response.empty() ? "{}" : response};
  const std::string bytes = CRETO_TRY(document.signed_bytes());
  const HumanKeySet keys = CRETO_TRY(unlock(home, *server, human));
  const Signature signature =
      CRETO_TRY(keys.signing.sign(as_bytes(bytes), as_bytes(oversight::ResponseDocument::type_name)));
  const Json answered =
      CRETO_TRY(server->call(method(oversight_service, "SubmitResponse"),
                             {{"document", base64(as_bytes(bytes))}, {"signature", signature_json(signature)}}));
  return Output{fmt::format("{} is {}\n", answered.value("id", ""), answered.value("state", "")), answered.dump(2), 0};
}

}  // namespace creto::app

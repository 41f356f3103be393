#include "people_commands.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "creto/common/json.h"
#include "creto/io/files.h"
#include "creto/io/rpc_channel.h"
#include "creto/nhi/enrolment.h"
#include "creto/nhi/nhi_rpc.h"
#include "home.h"
#include "ports_file.h"
#include "settings.h"

namespace creto::app {
namespace {

struct Given {
  std::string email, name, file, server;
  std::string valid_for = "24h";
  std::string overlap = "30d";
  bool compromised = false;
};

std::string nhi_method(std::string_view name) { return "creto.nhi.v1.NhiService/" + std::string(name); }

/// For calls whose credential is in the request: without a client certificate, which may be missing or past its time.
Result<std::unique_ptr<nhi::Enrolment>> enrolment_at(std::string endpoint, bool tls, std::string authority,
                                                     Nanos timeout) {
  rpc::ChannelOptions channel;
  channel.endpoint = std::move(endpoint);
  if (tls) channel.tls = tls::Identity{.certificate = {}, .key = {}, .authority = std::move(authority)};
  channel.timeout = timeout;
  auto connected = CRETO_TRY(rpc::Channel::connect(std::move(channel), system_clock()));
  return nhi::create_enrolment_client(std::move(connected));
}

Context until(Nanos timeout) {
  Context ctx;
  ctx.deadline = system_clock().monotonic() + timeout;
  return ctx;
}

/// Where somebody else reaches the server that this home's commands reach.
Result<std::string> server_of(const Home& home, const Settings& settings) {
  if (!settings.server.empty()) return settings.server;
  const RunningPorts ports = CRETO_TRY(running_server(home));
  if (settings.names.empty()) return ports.grpc;
  const std::string& name = settings.names.front();
  const std::string host = name.contains(':') ? fmt::format("[{}]", name) : name;
  return host + ports.grpc.substr(ports.grpc.rfind(':'));
}

Result<Output> invite(const Given& given, const cli::CallOptions& options) {
  const Home home = CRETO_TRY(Home::locate());
  const Nanos valid_for = CRETO_TRY(parse_duration(given.valid_for));
  const Identity human = CRETO_TRY(Identity::human(given.email));
  const Settings settings = CRETO_TRY(Settings::load(home));
  std::string server = given.server;
  if (server.empty()) server = CRETO_TRY(server_of(home, settings));
  const auto enrolment = nhi::create_enrolment_client(CRETO_TRY(cli::channel_to_server(home, options)));
  nhi::IssuedInvitation issued = CRETO_TRY(enrolment->invite(until(options.timeout), human, valid_for));
  const Invitation invitation{.org = settings.org,
                              .human = human,
                              .server = server,
                              .authority = std::move(issued.authority),
                              .secret = std::move(issued.secret),
                              .expires_at = issued.invitation.expires_at};
  const std::string text = to_text(invitation);
  if (given.file == "-") return Output{text, text, 0};
  CRETO_TRY(io::write_durably(io::real_files(), given.file, as_bytes(text), 0600));
  return Output{fmt::format("{} for {}, until {}: for `creto humans join`\n", given.file, human.text(),
                            to_rfc3339(invitation.expires_at)),
                Json{{"id", issued.invitation.id}, {"human", human.text()}, {"file", given.file}}.dump(2), 0};
}

Result<Output> join(const Given& given, const cli::CallOptions& options) {
  const Home home = CRETO_TRY(Home::locate());
  const std::string text = CRETO_TRY(read_text(given.file, 64 << 10));
  const Invitation invitation = CRETO_TRY(parse_invitation(text));
  const auto enrolment = CRETO_TRY(enrolment_at(options.endpoint.empty() ? invitation.server : options.endpoint, true,
                                                invitation.authority, options.timeout));
  const HumanKeys keys = CRETO_TRY(begin_to_join(home, invitation));
  const HumanKeySet& own = keys.sets.front();
  tls::CertificateRequest request = CRETO_TRY(tls::request_certificate());
  const std::string bytes = CRETO_TRY(nhi::join_signed_bytes(invitation.org, invitation.secret, request.request));
  Signature signature = CRETO_TRY(own.signing.sign(as_bytes(bytes), as_bytes(nhi::join_context)));
  nhi::Joined joined = CRETO_TRY(enrolment->join(
      until(options.timeout), {.org = invitation.org,
                               .secret = invitation.secret.clone(),
                               .name = given.name.empty() ? std::string(invitation.human.name()) : given.name,
                               .signing = own.signing.verifying_key(),
                               .kem = own.kem.public_key(),
                               .certificate_request = std::move(request.request),
                               .signature = std::move(signature)}));
  CRETO_TRY(finish_joining(home, invitation, {std::move(joined.certificate), std::move(request.key)}));
  return Output{fmt::format("you are {} of {}; keys and settings are in {}\n", invitation.human.text(), invitation.org,
                            home.root.string()),
                Json{{"human", invitation.human.text()}, {"home", home.root.string()}}.dump(2), 0};
}

/// A new client certificate, over a fresh key, for whichever of `keys` the server has as the newest.
Result<> renew(const Home& home, const cli::CallOptions& options, const Identity& human, const HumanKeys& keys) {
  const Settings settings = CRETO_TRY(Settings::load(home));
  std::string authority = CRETO_TRY(read_text(home.authority()));
  std::string endpoint = options.endpoint.empty() ? settings.server : options.endpoint;
  if (endpoint.empty()) endpoint = CRETO_TRY(running_server(home)).grpc;
  const auto enrolment =
      CRETO_TRY(enrolment_at(std::move(endpoint), settings.tls, std::move(authority), options.timeout));
  tls::CertificateRequest request = CRETO_TRY(tls::request_certificate());
  const Instant now = std::chrono::floor<std::chrono::seconds>(system_clock().now());
  const std::string bytes = CRETO_TRY(nhi::renewal_signed_bytes(settings.org, human, request.request, now));
  Result<std::string> certificate = Error(Product::platform, ErrorKind::not_found, "the key file has no keys");
  for (const HumanKeySet& set : keys.sets) {
    Signature signature = CRETO_TRY(set.signing.sign(as_bytes(bytes), as_bytes(nhi::certificate_context)));
    certificate = enrolment->renew_certificate(until(options.timeout), {.org = settings.org,
                                                                        .human = human,
                                                                        .certificate_request = request.request,
                                                                        .signed_at = now,
                                                                        .signature = std::move(signature)});
    // A set of the file that is not registered yet comes first, from a rotation that did not come through.
    if (certificate || certificate.error().kind() != ErrorKind::signature_invalid) break;
  }
  if (!certificate) return std::move(certificate).error();
  return write_client_certificate(home, {*std::move(certificate), std::move(request.key)});
}

Result<Output> renew_certificate(const Given&, const cli::CallOptions& options) {
  const Home home = CRETO_TRY(Home::locate());
  const Identity human = CRETO_TRY(human_of(home));
  const Bytes file = CRETO_TRY(io::real_files().read(home.human_keys(), 1 << 20));
  const Secret passphrase = CRETO_TRY(read_passphrase("passphrase of " + human.text(), false));
  const HumanKeys keys = CRETO_TRY(HumanKeys::open(file, passphrase));
  CRETO_TRY(renew(home, options, human, keys));
  const std::string certificate = CRETO_TRY(read_text(home.human_certificate()));
  const std::string ends = to_rfc3339(CRETO_TRY(tls::facts_of(certificate)).ends);
  return Output{fmt::format("your certificate ends {}\n", ends), Json{{"ends", ends}}.dump(2), 0};
}

/// A new key set for this home's human, made here, signed with the one he has, and kept in his key file beside it: what
/// was sealed to that still opens. Safe to repeat after an error.
Result<Output> rotate_keys(const Given& given, const cli::CallOptions& options) {
  const Home home = CRETO_TRY(Home::locate());
  const Nanos overlap = CRETO_TRY(parse_duration(given.overlap));
  const auto server = CRETO_TRY(cli::Server::connect(home, options));
  const Settings settings = CRETO_TRY(Settings::load(home));
  const Identity human = CRETO_TRY(human_of(home));
  const Json listed = CRETO_TRY(server->call(nhi_method("ListKeySets"), {{"identity", human.text()}}));
  std::vector<std::string> registered;
  for (const Json& set : listed.value("sets", Json::array())) registered.push_back(set.value("key_id", ""));
  if (registered.empty())
    return Error(Product::platform, ErrorKind::not_found, fmt::format("`{}` is not registered", human.text()));

  const Bytes file = CRETO_TRY(io::real_files().read(home.human_keys(), 1 << 20));
  const Secret passphrase = CRETO_TRY(read_passphrase("passphrase of " + human.text(), false));
  HumanKeys keys = CRETO_TRY(HumanKeys::open(file, passphrase));
  CRETO_TRY(keys.find(registered.front()));
  // Into the file before they are registered: a set that nobody has is worse than one that is not used yet. That one,
  // left by a try that did not come through, is taken first.
  if (std::ranges::find(registered, keys.sets.front().id()) != registered.end()) {
    keys.sets.insert(keys.sets.begin(), HumanKeySet::generate());
    const Bytes sealed = CRETO_TRY(keys.seal(passphrase));
    CRETO_TRY(io::write_durably(io::real_files(), home.human_keys(), sealed));
  }
  const HumanKeySet& next = keys.sets.front();
  const HumanKeySet* current = CRETO_TRY(keys.find(registered.front()));

  const Instant now = std::chrono::floor<std::chrono::seconds>(system_clock().now());
  const nhi::PublicKeys made{next.id(), next.signing.verifying_key(), next.kem.public_key()};
  const std::string document =
      CRETO_TRY(nhi::succession_signed_bytes(settings.org, human, made, registered.front(), now));
  const Signature signature = CRETO_TRY(current->signing.sign(as_bytes(document), as_bytes(nhi::succession_context)));
  const Json request{{"identity", human.text()},
                     {"overlap", fmt::format("{}s", std::chrono::floor<std::chrono::seconds>(overlap).count())},
                     {"compromised", given.compromised},
                     {"signing_algorithm", std::string(crypto::to_string(made.signing.algorithm()))},
                     {"signing_key", base64(made.signing.bytes())},
                     {"kem_algorithm", std::string(crypto::to_string(made.kem->algorithm()))},
                     {"kem_key", base64(made.kem->bytes())},
                     {"succession",
                      {{"previous_key_id", registered.front()},
                       {"signed_at", to_rfc3339(now)},
                       {"signature", signature_json(signature)}}}};
  const Json answer = CRETO_TRY(server->call(nhi_method("RotateKeys"), request));
  // His certificate is for the keys before.
  auto renewed = renew(home, options, human, keys);
  if (!renewed)
    return Error(renewed.error()).with_context("the keys were rotated; then run `creto humans renew-certificate`");
  return Output{fmt::format("{}\n", answer.value("key_id", "")), answer.dump(2), 0};
}

}  // namespace

void add_people_commands(const MakeCommand& command, std::function<Result<cli::CallOptions>()> options) {
  const auto given = std::make_shared<Given>();
  const auto with_options = [&](std::string_view path, std::string_view help,
                                Result<Output> (*action)(const Given&, const cli::CallOptions&)) {
    return command(path, help, [given, options, action]() -> Result<Output> {
      const cli::CallOptions call = CRETO_TRY(options());
      return action(*given, call);
    });
  };
  CLI::App* inviting =
      with_options("humans invite", "let somebody in: the file that this writes lets one human join, once", invite);
  inviting->add_option("EMAIL", given->email, "of who is to come in")->required();
  inviting->add_option("--file", given->file, "for the invitation, which is secret; - is standard output")->required();
  inviting->add_option("--valid-for", given->valid_for, "1m to 30d")->capture_default_str();
  inviting->add_option("--server", given->server,
                       "host:port by which he reaches the server; default: the first of the setting `names`");
  CLI::App* joining = with_options(
      "humans join", "take an invitation up: makes your keys here, in $CRETO_HOME, and a certificate", join);
  joining->add_option("FILE", given->file, "the invitation")->required();
  joining->add_option("--name", given->name, "what others call you; default: your address");
  with_options("humans renew-certificate", "a new client certificate for yourself, signed for with your keys",
               renew_certificate);
  CLI::App* rotating =
      with_options("humans rotate-keys", "new keys for yourself, signed with those you have", rotate_keys);
  rotating->add_option("--overlap", given->overlap, "how long what the old keys sign still counts")
      ->capture_default_str();
  rotating->add_flag("--compromised", given->compromised,
                     "others may hold the old keys: what they sign counts no more from now on");
}

}  // namespace creto::app

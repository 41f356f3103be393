#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "adapters.h"
#include "chores.h"
#include "creto/audit/audit_rpc.h"
#include "creto/io/files.h"
#include "creto/io/rpc_channel.h"
#include "creto/messaging/messaging_entities.h"
#include "creto/messaging/messaging_rpc.h"
#include "creto/metering/metering_entities.h"
#include "creto/metering/metering_rpc.h"
#include "creto/oversight/oversight_entities.h"
#include "creto/oversight/oversight_rpc.h"
#include "creto/runtime/runtime_entities.h"
#include "creto/storage/storage_entities.h"
#include "provision.h"
#include "services.h"
#include "system.h"
#include "wiring.h"

namespace creto::app {
namespace {

/// What a process may leave out; the platform below is in each.
constexpr std::array<std::string_view, 4> products = {"metering", "oversight", "messaging", "runtime"};

Result<LogLevel> log_level(const std::string& text) {
  if (text == "debug") return LogLevel::debug;
  if (text == "info") return LogLevel::info;
  if (text == "warn") return LogLevel::warn;
  if (text == "error") return LogLevel::error;
  return Error(Product::platform, ErrorKind::invalid_input,
               fmt::format("log.level `{}`: must be debug, info, warn or error", text));
}

Result<std::unique_ptr<sql::Database>> open_database(const System& system) {
  if (system.settings.database.empty()) {
    sql::SqliteOptions options;
    options.telemetry = system.telemetry.get();
    return sql::open_sqlite(system.home.database(), options);
  }
  sql::PostgresOptions options;
  options.telemetry = system.telemetry.get();
  return sql::open_postgres(system.settings.database, options);
}

/// In whose name a call to another process of the installation is made.
enum class Speaks { for_the_caller, for_itself };

/// To what runs elsewhere; null where the settings name none.
Result<std::shared_ptr<rpc::Channel>> channel_to(const System& system, const std::string& name, Speaks speaks) {
  const auto found = system.settings.integrations.find(name);
  if (found == system.settings.integrations.end()) return std::shared_ptr<rpc::Channel>();
  rpc::ChannelOptions options;
  options.endpoint = found->second;
  options.forward_caller = speaks == Speaks::for_the_caller;
  if (system.settings.tls) {
    tls::Identity service;
    service.certificate = CRETO_TRY(read_text(system.home.server_certificate()));
    service.key = CRETO_TRY(read_text(system.home.server_key()));
    service.authority = CRETO_TRY(read_text(system.home.authority()));
    options.tls = std::move(service);
  }
  return rpc::Channel::connect(std::move(options), system_clock());
}

Result<std::unique_ptr<audit::AuditLog>> open_log(System& system) {
  if (const auto channel = CRETO_TRY(channel_to(system, "audit", Speaks::for_the_caller)))
    return audit_kept_elsewhere(*system.database, audit::create_audit_client(channel));
  const Secret seeds = CRETO_TRY(read_sealed(system.home.log_keys(), *system.sealer));
  if (seeds.size() != 64)
    return Error(Product::platform, ErrorKind::invalid_input, "audit log keys: have the wrong length");
  crypto::SigningKey ed25519 =
      CRETO_TRY(crypto::SigningKey::from_seed(crypto::SignatureAlgorithm::ed25519, seeds.reveal().first(32)));
  crypto::SigningKey ml_dsa =
      CRETO_TRY(crypto::SigningKey::from_seed(crypto::SignatureAlgorithm::ml_dsa_65, seeds.reveal().last(32)));
  audit::AuditOptions options;
  options.directory = system.home.audit();
  options.origin = "creto.local/audit/" + system.settings.org;
  auto log = CRETO_TRY(audit::create_audit_log(*system.database, io::real_files(), system_clock(), *system.telemetry,
                                               audit::AuditKeys{std::move(ed25519), std::move(ml_dsa)}, options));
  // The public key, for whoever verifies without us.
  const audit::AuditStatus status = CRETO_TRY(log->status(Context()));
  CRETO_TRY(io::write_durably(io::real_files(), system.home.audit_key(), as_bytes(status.verifier_keys), 0644));
  return log;
}

authz::AuthzOptions authz_options(const Home& home, const Settings& settings, sql::Dialect dialect) {
  authz::AuthzOptions options;
  if (dialect == sql::Dialect::postgres) options.fresh_for = settings.authz_fresh_for;
  if (!settings.decision_log) return options;
  authz::DecisionLogOptions& log = options.decision_log.emplace();
  log.directory = home.decisions();
  log.org = settings.org;
  log.age_max = settings.decision_log_age;
  log.bytes_max = static_cast<std::uint64_t>(settings.decision_log_bytes_max);
  log.segment_bytes = static_cast<std::uint64_t>(settings.decision_log_segment_bytes);
  log.segment_age = settings.decision_log_segment_age;
  log.request_bytes_max = static_cast<std::size_t>(settings.decision_log_request_bytes_max);
  return options;
}

}  // namespace

Result<std::unique_ptr<System>> assemble_core(const Home& home, const Settings& settings,
                                              std::unique_ptr<crypto::KeySealer> sealer) {
  auto system = std::make_unique<System>(home, settings);
  const Clock& clock = system_clock();

  ExportedTelemetry::Options log_options;
  log_options.level = CRETO_TRY(log_level(settings.log_level));
  system->telemetry = ExportedTelemetry::create(log_options, clock);
  Telemetry& telemetry = *system->telemetry;

  system->sealer = std::move(sealer);
  system->database = CRETO_TRY(open_database(*system));
  system->bus = CRETO_TRY(bus::create_embedded_bus(*system->database, clock, telemetry));
  system->ceilings = CRETO_TRY(consensus::create_ceiling_store(*system->database, "local"));
  system->timestamps = CRETO_TRY(consensus::create_timestamp_source(*system->ceilings, clock, telemetry));
  system->audit = CRETO_TRY(open_log(*system));
  system->nhi = CRETO_TRY(nhi::create_nhi(*system->database, *system->sealer, clock));
  system->certifier = certify_with(home);
  system->enrolment = CRETO_TRY(nhi::create_enrolment(*system->database, *system->nhi, *system->certifier, clock));

  system->entities = entities_of(*system->nhi, *system->database);
  Secret override_key = CRETO_TRY(read_sealed(home.override_key(), *system->sealer));
  system->authz = CRETO_TRY(authz::create_authz(*system->database, clock, telemetry, {system->entities.get()},
                                                std::move(override_key),
                                                authz_options(home, settings, system->database->dialect())));
  system->delegations = delegation_limits(*system->nhi);
  CRETO_TRY(system->authz->register_extension(*system->delegations));
  system->access = access_through(*system->authz);
  return system;
}

namespace {

std::string public_url(const Settings& settings) {
  if (!settings.storage_public_url.empty() || settings.rest_port == 0) return settings.storage_public_url;
  return fmt::format("{}://{}:{}", settings.tls ? "https" : "http", settings.address, settings.rest_port);
}

}  // namespace

Result<> check_products(const Settings& settings) {
  const auto check = [](std::string_view setting, const std::string& name) -> Result<> {
    if (std::ranges::find(products, name) != products.end()) return {};
    return Error(Product::platform, ErrorKind::invalid_input,
                 fmt::format("{} `{}`: must be one of {}", setting, name, fmt::join(products, ", ")));
  };
  for (const std::string& name : settings.services) CRETO_TRY(check("services", name));
  for (const auto& [name, endpoint] : settings.integrations)
    if (name != "audit") CRETO_TRY(check("integrations", name));
  return {};
}

bool System::runs(std::string_view product) const {
  if (settings.integrations.contains(std::string(product))) return false;
  return settings.services.empty() || std::ranges::find(settings.services, product) != settings.services.end();
}

namespace {

/// The value of a secret in the vault that the settings name; empty where they name none.
Result<Secret> configured_secret(System& system, const std::string& reference) {
  if (reference.empty()) return Secret();
  const vault::SecretRef ref = CRETO_TRY(vault::SecretRef::parse(reference));
  Context ctx = Context::of_service(CRETO_TRY(Identity::service("creto")));
  ctx.org = system.settings.org;
  vault::SecretVersion secret = CRETO_TRY(system.vault->get_secret(ctx, ref));
  return std::move(secret.value);
}

Result<inference::InjectionMode> injection_mode(const std::string& text) {
  if (text == "block") return inference::InjectionMode::block;
  if (text == "flag") return inference::InjectionMode::flag;
  if (text == "off") return inference::InjectionMode::off;
  return Error(Product::platform, ErrorKind::invalid_input,
               fmt::format("inference.injection `{}`: must be block, flag or off", text));
}

Result<> assemble_inference(System& system) {
  const Settings& settings = system.settings;
  if (settings.inference_url.empty()) return {};
  inference::OpenAiOptions provider;
  provider.base_url = settings.inference_url;
  provider.default_model = settings.inference_model;
  provider.default_embedding_model = settings.inference_embedding_model;
  provider.local = settings.inference_local;
  provider.api_key = CRETO_TRY(configured_secret(system, settings.inference_key_secret));
  system.provider = CRETO_TRY(inference::create_openai_provider(std::move(provider)));
  inference::InferenceOptions options;
  options.injection_mode = CRETO_TRY(injection_mode(settings.injection));
  system.inference = CRETO_TRY(
      inference::create_inference(*system.provider, *system.database, system_clock(), *system.telemetry, options));
  return {};
}

/// Null where there is no url; `name` is of the settings, with `.url` and `.secret`.
Result<std::unique_ptr<oversight::Notifier>> webhook_of(System& system, std::string_view name, const std::string& url,
                                                        const std::string& secret) {
  if (url.empty()) return std::unique_ptr<oversight::Notifier>();
  if (secret.empty())
    return Error(Product::platform, ErrorKind::invalid_input,
                 fmt::format("{0}.secret: is required with {0}.url", name));
  Secret key = CRETO_TRY(configured_secret(system, secret));
  return oversight::create_webhook_notifier(url, std::move(key), system_clock());
}

Result<metering::MeteringOptions> metering_options(const System& system) {
  const Settings& settings = system.settings;
  metering::MeteringOptions options;
  auto currency = Currency::parse(settings.metering_currency);
  if (!currency) return std::move(currency).error().with_context("metering.currency");
  options.currency = *std::move(currency);
  options.idempotency_window = settings.idempotency_window;
  options.event_age_max = settings.event_age_max;
  options.event_ahead_max = settings.event_ahead_max;
  options.hold_max = settings.hold_max;
  options.retention = settings.usage_retention;
  options.detect_anomalies = settings.detect_anomalies;
  options.anomaly_confidence = settings.anomaly_confidence;
  options.fonts = settings.invoice_fonts;
  options.issuer = {.name = settings.issuer_name,
                    .address = settings.issuer_address,
                    .tax_id = settings.issuer_tax_id,
                    .email = settings.issuer_email,
                    .payment = settings.issuer_payment};
  options.audit = system.audit.get();
  options.access = system.access.get();
  return options;
}

/// From now on policies see the product's resources.
Result<> show_to_policies(System& system, std::unique_ptr<authz::ResourceSource> source) {
  CRETO_TRY(system.authz->register_source(*source));
  system.resources.push_back(std::move(source));
  return {};
}

Result<> assemble_metering(System& system) {
  // What an agent spends is reserved by who lets it spend: no agent needs, or has, a permission for that.
  if (const auto channel = CRETO_TRY(channel_to(system, "metering", Speaks::for_itself))) {
    system.remote_metering = metering::create_metering_client(channel);
    system.metering = system.remote_metering.get();
  }
  if (!system.runs("metering")) return {};
  auto webhook = CRETO_TRY(webhook_of(system, "metering.invoice_webhook", system.settings.invoice_webhook_url,
                                      system.settings.invoice_webhook_secret));
  system.invoices = Invoices::create(*system.storage, std::move(webhook), *system.telemetry);
  metering::MeteringOptions options = CRETO_TRY(metering_options(system));
  system.local_metering = CRETO_TRY(metering::create_metering(*system.database, io::real_files(), system.home.usage(),
                                                              *system.nhi, *system.timestamps, *system.invoices,
                                                              system_clock(), *system.telemetry, std::move(options)));
  system.metering = system.local_metering.get();
  CRETO_TRY(system.authz->register_extension(system.local_metering->quota_enforcer()));
  CRETO_TRY(show_to_policies(system, metering::subscription_entities(*system.database)));
  return system.local_metering->attach(*system.bus);
}

Result<> assemble_oversight(System& system) {
  if (const auto channel = CRETO_TRY(channel_to(system, "oversight", Speaks::for_the_caller)))
    system.oversight = oversight::create_oversight_client(channel, system_clock());
  if (!system.runs("oversight")) return {};
  system.webhook =
      CRETO_TRY(webhook_of(system, "oversight.webhook", system.settings.webhook_url, system.settings.webhook_secret));
  system.oversight = CRETO_TRY(oversight::create_oversight({.database = *system.database,
                                                            .bus = *system.bus,
                                                            .nhi = *system.nhi,
                                                            .authz = *system.authz,
                                                            .timestamps = *system.timestamps,
                                                            .clock = system_clock(),
                                                            .telemetry = *system.telemetry,
                                                            .memory = system.memory.get(),
                                                            .webhook = system.webhook.get()}));
  return show_to_policies(system, oversight::request_entities(*system.database));
}

/// Messages cost money, so messaging needs metering, here or elsewhere.
Result<> assemble_messaging(System& system) {
  if (const auto channel = CRETO_TRY(channel_to(system, "messaging", Speaks::for_the_caller)))
    system.messaging = messaging::create_messaging_client(channel);
  if (system.runs("messaging") && system.metering == nullptr)
    return Error(Product::platform, ErrorKind::invalid_input,
                 "services: messaging needs metering: name it too, or give its address in `integrations`");
  if (system.runs("messaging")) {
    system.messaging = CRETO_TRY(messaging::create_messaging({.database = *system.database,
                                                              .bus = *system.bus,
                                                              .nhi = *system.nhi,
                                                              .authz = *system.authz,
                                                              .costs = *system.metering,
                                                              .timestamps = *system.timestamps,
                                                              .clock = system_clock(),
                                                              .telemetry = *system.telemetry}));
    CRETO_TRY(show_to_policies(system, messaging::topic_entities(*system.database)));
  }
  if (!system.messaging) {
    if (system.invoices) system.invoices->send_no_messages();
    return {};
  }
  system.endpoint = agent_endpoints(*system.database, *system.sealer, *system.nhi, *system.messaging, system_clock());
  if (system.invoices) system.invoices->send_messages_through(*system.messaging, *system.endpoint);
  return {};
}

Result<> assemble_runtime(System& system) {
  const Settings& settings = system.settings;
  runtime::RuntimeOptions options;
  options.state_directory = system.home.sandboxes().string();
  options.image_directory =
      settings.image_directory.empty() ? (system.home.root / "images").string() : settings.image_directory;
  options.runtime_class = settings.sandbox_runtime;
  options.pool_image = settings.pool_image;
  options.pool_size = static_cast<std::size_t>(settings.pool_size);
  options.static_hosts = settings.egress_hosts;
  options.actions_file = settings.actions_file;
  options.variables = settings.action_variables;
  options.output_age = settings.output_age;
  options.output_bytes_max = static_cast<std::uint64_t>(settings.output_bytes_max);
  options.keep_sandboxes = settings.keep_sandboxes;
  system.runtime = CRETO_TRY(runtime::create_runtime({.database = *system.database,
                                                      .nhi = *system.nhi,
                                                      .authz = *system.authz,
                                                      .timestamps = *system.timestamps,
                                                      .clock = system_clock(),
                                                      .telemetry = *system.telemetry,
                                                      .approvals = system.oversight.get(),
                                                      .limits = system.metering,
                                                      .costs = system.metering,
                                                      .messenger = system.messaging.get(),
                                                      .endpoint = system.endpoint.get(),
                                                      .vault = system.vault.get(),
                                                      .inference = system.inference.get(),
                                                      .memory = system.memory.get()},
                                                     options));
  return show_to_policies(system, runtime::sandbox_entities(*system.database));
}

}  // namespace

Result<> assemble_services(System& system) {
  const Clock& clock = system_clock();
  Telemetry& telemetry = *system.telemetry;
  sql::Database& database = *system.database;

  system.vault = CRETO_TRY(vault::create_vault(database, *system.sealer, *system.access, clock));
  CRETO_TRY(show_to_policies(system, secret_entities(database)));
  CRETO_TRY(assemble_inference(system));

  system.embedder =
      system.provider && !system.settings.inference_embedding_model.empty()
          ? memory::create_provider_embedder(*system.provider, system.settings.inference_embedding_model,
                                             static_cast<std::size_t>(system.settings.inference_embedding_dimension))
          : memory::create_hash_embedder();
  system.memory = CRETO_TRY(memory::create_memory(database, *system.embedder, *system.access, clock, telemetry));

  system.owner_keys = owner_keys_of(*system.nhi);
  Secret presign_key = CRETO_TRY(read_sealed(system.home.presign_key(), *system.sealer));
  storage::StorageOptions storage_options;
  storage_options.root = system.home.objects();
  storage_options.public_url = public_url(system.settings);
  storage_options.presigned_put_bytes_max = http::ServerOptions().body_bytes_max;
  system.storage = CRETO_TRY(storage::create_storage(database, io::real_files(), *system.owner_keys, *system.access,
                                                     clock, telemetry, std::move(presign_key), storage_options));
  CRETO_TRY(show_to_policies(system, storage::object_entities(database)));

  CRETO_TRY(assemble_metering(system));
  CRETO_TRY(assemble_oversight(system));
  CRETO_TRY(assemble_messaging(system));
  if (system.runs("runtime"))
    if (auto done = assemble_runtime(system); !done)
      return std::move(done).error().with_context(
          "runtime cannot run here (`creto serve --services metering,oversight,messaging` goes without)");

  system.provisioning = CRETO_TRY(create_provisioning(system));

  system.chores = start_chores(system);
  return {};
}

Result<> apply_reload(System& system, const Settings& settings) {
  const LogLevel level = CRETO_TRY(log_level(settings.log_level));
  system.telemetry->set_level(level);
  Settings others = settings;
  others.log_level = system.settings.log_level;
  others.services = system.settings.services;  // those may come from the command line
  if (others == system.settings) return {};
  return Error(Product::platform, ErrorKind::conflict,
               "only `log.level` changes while the server runs; the other settings need a restart");
}

std::vector<HealthCheck> System::health_checks() const {
  std::vector<HealthCheck> checks;
  const auto add = [&](std::string name, bool critical, auto* service) {
    if (service != nullptr) checks.push_back({std::move(name), critical, [service] { return service->health(); }});
  };
  // Critical as in 003 §14.1: without these nothing is decided; without the others something is missing.
  add("nhi", true, nhi.get());
  add("vault", true, vault.get());
  checks.push_back({"audit", false, [this]() -> HealthStatus {
                      const Result<audit::AuditStatus> status = audit->status(Context());
                      if (!status) return {Health::unhealthy, status.error().to_string()};
                      if (!status->problem.empty()) return {Health::degraded, status->problem};
                      return {};
                    }});
  checks.push_back({"consensus", false, [this]() -> HealthStatus {
                      const consensus::ClusterStatus status = timestamps->status();
                      return status.healthy ? HealthStatus{} : HealthStatus{Health::degraded, status.reason};
                    }});
  add("memory", false, memory.get());
  add("storage", false, storage.get());
  if (provider) checks.push_back({"inference", false, [this] { return provider->health(); }});
  add("metering", true, local_metering.get());
  add("oversight", true, oversight.get());
  add("messaging", true, messaging.get());
  add("runtime", true, runtime.get());
  return checks;
}

}  // namespace creto::app

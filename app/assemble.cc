#include <fmt/format.h>

#include <algorithm>

#include "creto/io/files.h"
#include "creto/vault/root_key.h"
#include "system.h"
#include "wiring.h"

namespace creto::app {
namespace {

Result<LogLevel> log_level(const std::string& text) {
  if (text == "debug") return LogLevel::debug;
  if (text == "info") return LogLevel::info;
  if (text == "warn") return LogLevel::warn;
  if (text == "error") return LogLevel::error;
  return Error(Product::platform, ErrorKind::invalid_input, fmt::format("log.level `{}`: must be debug, info, warn or error", text));
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

Result<std::unique_ptr<audit::AuditLog>> open_log(System& system) {
  const Secret seeds = CRETO_TRY(read_sealed(system.home.log_keys(), *system.sealer));
  if (seeds.size() != 64) return Error(Product::platform, ErrorKind::invalid_input, "audit log keys: have the wrong length");
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

}  // namespace

Result<std::unique_ptr<System>> assemble_core(const Home& home, const Settings& settings) {
  auto system = std::make_unique<System>(home, settings);
  const Clock& clock = system_clock();

  ExportedTelemetry::Options log_options;
  log_options.level = CRETO_TRY(log_level(settings.log_level));
  system->telemetry = ExportedTelemetry::create(log_options, clock);
  Telemetry& telemetry = *system->telemetry;

  system->sealer = CRETO_TRY(vault::open_root_key(home.root_key(), Secret()));
  system->database = CRETO_TRY(open_database(*system));
  system->bus = CRETO_TRY(bus::create_embedded_bus(*system->database, clock, telemetry));
  system->ceilings = CRETO_TRY(consensus::create_ceiling_store(*system->database, "local"));
  system->timestamps = CRETO_TRY(consensus::create_timestamp_source(*system->ceilings, clock, telemetry));
  system->audit = CRETO_TRY(open_log(*system));
  system->nhi = CRETO_TRY(nhi::create_nhi(*system->database, *system->sealer, clock, telemetry));

  system->entities = entities_of(*system->nhi, *system->database);
  Secret override_key = CRETO_TRY(read_sealed(home.override_key(), *system->sealer));
  system->authz = CRETO_TRY(authz::create_authz(*system->database, clock, telemetry, {system->entities.get()}, std::move(override_key)));
  system->delegations = delegation_limits(*system->nhi);
  CRETO_TRY(system->authz->register_extension(*system->delegations));
  system->access = access_through(*system->authz);
  return system;
}

}  // namespace creto::app

#pragma once

#include <memory>
#include <vector>

#include "adapters.h"
#include "chores.h"
#include "creto/audit/audit_log.h"
#include "creto/authz/authz.h"
#include "creto/common/access.h"
#include "creto/common/health.h"
#include "creto/consensus/timestamp_source.h"
#include "creto/inference/inference.h"
#include "creto/io/bus.h"
#include "creto/io/sql.h"
#include "creto/io/telemetry.h"
#include "creto/memory/memory.h"
#include "creto/messaging/messaging.h"
#include "creto/metering/metering.h"
#include "creto/nhi/enrolment.h"
#include "creto/nhi/nhi.h"
#include "creto/oversight/oversight.h"
#include "creto/runtime/runtime.h"
#include "creto/storage/storage.h"
#include "creto/vault/vault.h"
#include "home.h"
#include "saga.h"
#include "settings.h"

namespace creto::app {

/// Every service of one process, in the order in which they are made: each uses those above it, so destruction runs
/// from the bottom. A service that is not wanted, or not possible here, is null; one that runs elsewhere is a client.
struct System {
  System(Home home_, Settings settings_) : home(std::move(home_)), settings(std::move(settings_)) {}

  const Home home;
  const Settings settings;
  std::unique_ptr<ExportedTelemetry> telemetry;

  std::unique_ptr<sql::Database> database;
  std::unique_ptr<bus::Bus> bus;
  std::unique_ptr<crypto::KeySealer> sealer;

  std::unique_ptr<consensus::CeilingStore> ceilings;
  std::unique_ptr<consensus::TimestampSource> timestamps;
  std::unique_ptr<audit::AuditLog> audit;
  std::unique_ptr<nhi::Nhi> nhi;
  std::unique_ptr<nhi::Certifier> certifier;
  std::unique_ptr<nhi::Enrolment> enrolment;

  std::unique_ptr<authz::EntitySource> entities;
  std::vector<std::unique_ptr<authz::ResourceSource>> resources;  ///< of the products that run here
  std::unique_ptr<authz::Authz> authz;
  std::unique_ptr<authz::Extension> delegations;
  std::unique_ptr<AccessControl> access;

  std::unique_ptr<vault::Vault> vault;
  std::unique_ptr<inference::Provider> provider;
  std::unique_ptr<inference::Inference> inference;
  std::unique_ptr<memory::Embedder> embedder;
  std::unique_ptr<memory::Memory> memory;
  std::unique_ptr<storage::OwnerKeys> owner_keys;
  std::unique_ptr<storage::Storage> storage;

  std::unique_ptr<Invoices> invoices;
  std::unique_ptr<metering::LocalMetering> local_metering;
  std::unique_ptr<metering::Metering> remote_metering;
  metering::Metering* metering = nullptr;  ///< whichever there is
  std::unique_ptr<oversight::Notifier> webhook;
  std::unique_ptr<oversight::Oversight> oversight;
  std::unique_ptr<messaging::Messaging> messaging;
  std::unique_ptr<AgentEndpoints> endpoint;
  std::unique_ptr<runtime::Runtime> runtime;
  std::unique_ptr<Sagas> provisioning;
  std::unique_ptr<Chores> chores;

  /// Whether this process serves the product of that name. One that it does not may still be reached (`integrations`).
  bool runs(std::string_view product) const;
  std::vector<HealthCheck> health_checks() const;
};

/// The parts that `creto init` needs too: database, time, log, identities, permissions.
Result<std::unique_ptr<System>> assemble_core(const Home& home, const Settings& settings,
                                              std::unique_ptr<crypto::KeySealer> sealer);
/// Errors: invalid_input for a name in `services` or `integrations` that is no product.
Result<> check_products(const Settings& settings);

/// Adds everything else that `settings.services` asks for.
Result<> assemble_services(System& system);

}  // namespace creto::app

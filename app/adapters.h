#pragma once

#include <memory>

#include "creto/audit/audit_log.h"
#include "creto/metering/metering.h"
#include "creto/oversight/oversight.h"
#include "creto/runtime/runtime.h"
#include "creto/storage/storage.h"

namespace creto::messaging {
class Messaging;
}
namespace creto::crypto {
class KeySealer;
}

/// What one product asks for and others give; products do not see each other, so the composition root is where they
/// meet.
namespace creto::app {

/// The log of an installation whose other process owns it: what is recorded here goes into the database that both
/// share, from where that one takes it; questions go to it through `owner`. `database` must outlive it.
std::unique_ptr<audit::AuditLog> audit_kept_elsewhere(sql::Database& database, std::unique_ptr<audit::AuditLog> owner);

/// Objects are wrapped for the keys that nhi holds.
std::unique_ptr<storage::OwnerKeys> owner_keys_of(nhi::Nhi& nhi);

/// One messaging endpoint for each agent that runs here, made when first needed: its keys stay outside the sandbox.
/// A session where the recipient has published keys, an envelope otherwise.
class AgentEndpoints : public runtime::MessageEndpoint {
 public:
  /// As `seal`, under an id of the caller's: what is sent again under it is not delivered again.
  virtual Result<contracts::SealedMessage> seal_under(const Context& ctx, const MessageId& id, const Identity& agent,
                                                      const Identity& recipient, std::string_view body) = 0;
  /// Renews the prekeys of every agent that has an endpoint here, where they are used up or too old. For a periodic
  /// task. An error is the last agent's that has one: its endpoint is dropped, and made anew when it is needed again.
  virtual Result<> publish_keys(const Context& ctx) = 0;
  /// The same of those alone whose keys were rotated since: their new keys sign the prekeys.
  virtual Result<> follow_rotations(const Context& ctx) = 0;
};
/// All references must outlive it.
std::unique_ptr<AgentEndpoints> agent_endpoints(sql::Database& database, crypto::KeySealer& sealer, nhi::Nhi& nhi,
                                                messaging::Messaging& messaging, const Clock& clock);

/// Invoices: the PDF under Compliance in storage, then a signed webhook where there is one, and a message to who is
/// billed, who gets it once. Whom no message can reach is told by the webhook alone, where there is one.
class Invoices : public metering::InvoiceDelivery {
 public:
  /// `webhook`: none where it is null.
  static std::unique_ptr<Invoices> create(storage::Storage& storage, std::unique_ptr<oversight::Notifier> webhook,
                                          Telemetry& telemetry);
  /// Messaging is made after metering, which it meters with. Until one of these is called nothing is sent: `send` is
  /// `unavailable`, and tried again.
  virtual void send_messages_through(messaging::Messaging& messaging, AgentEndpoints& endpoints) = 0;
  virtual void send_no_messages() = 0;
};

}  // namespace creto::app

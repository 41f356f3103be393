#include "events.h"

#include "creto/consensus/timestamp_source.h"
#include "creto/io/bus.h"
#include "creto/nhi/nhi.h"

namespace creto::runtime {

Events::Events(RuntimeServices& services) : services_(services), service_(*Identity::service("runtime")) {}

Context Events::service_context(const std::string& org) const {
  auto ctx = Context::of_service(service_);
  ctx.org = org;
  return ctx;
}

Context Events::asking_for(const Context& ctx) const {
  auto own = service_context(ctx.org);
  own.deadline = ctx.deadline;
  own.trace = ctx.trace;
  return own;
}

Result<OutgoingEvent> Events::envelope(std::string_view type, std::string_view subject, const std::string& org,
                                       const Identity& signer, const Identity& agent, const DelegationChain& chain,
                                       std::string payload) {
  const auto id = EventId::fresh(services_.clock.now());
  EventEnvelope envelope{std::string(type),  id,          agent, chain, services_.timestamps.now(),
                         std::move(payload), std::nullopt};
  const auto bytes = CRETO_TRY(envelope.signed_bytes());
  envelope.signature =
      CRETO_TRY(services_.nhi.sign(service_context(org), signer, as_bytes(bytes), event_signature_context));
  auto body = CRETO_TRY(envelope.to_json());
  return OutgoingEvent{std::string(subject), id.to_string(), std::move(body)};
}

Result<OutgoingEvent> Events::usage(const std::string& org, const Identity& agent, const DelegationChain& chain,
                                    const contracts::RuntimeUsageEvent& event) {
  auto payload = CRETO_TRY(event.to_json());
  return envelope(event.event_type, event.subject, org, agent, agent, chain, std::move(payload));
}

Result<OutgoingEvent> Events::lifecycle(const std::string& org, const Identity& agent, const DelegationChain& chain,
                                        const contracts::SandboxLifecycleEvent& event) {
  auto payload = CRETO_TRY(event.to_json());
  return envelope(event.event_type, event.subject, org, service_, agent, chain, std::move(payload));
}

Result<> Events::publish(sql::Tx& tx, const Context& ctx, const std::vector<OutgoingEvent>& events) {
  for (const auto& event : events) CRETO_TRY(bus::publish(tx, ctx, event.subject, event.id, event.body));
  return {};
}

}  // namespace creto::runtime

#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "creto/common/context.h"
#include "creto/common/id.h"
#include "creto/common/json.h"
#include "creto/common/signature.h"

namespace creto {

/// The context under which an event is signed, over `signed_bytes()` as they are (see Nhi::sign).
inline constexpr std::string_view event_signature_context = "creto.event.v1";

/// The envelope of every cross-product event (000 §6.2). Stored and sent as the canonical JSON of `to_json`; whoever
/// verifies a signature verifies the bytes it received.
struct EventEnvelope {
  std::string event_type;  ///< "runtime_usage", "sandbox_lifecycle", ...: names a schema in contracts/schemas
  EventId event_id;
  Identity agent;  ///< whose action this is about
  DelegationChain delegation_chain;
  Timestamp timestamp;
  std::string payload;  ///< canonical JSON of the event's own type
  std::optional<Signature> signature;

  /// SHA3-256 input: the type's name, then the canonical JSON of everything but the signature, schema_version included.
  Result<std::string> signed_bytes() const;
  Result<std::string> to_json() const;
  static Result<EventEnvelope> from_json(std::string_view text);
};

}  // namespace creto

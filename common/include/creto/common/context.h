#pragma once

#include <optional>
#include <string>

#include "creto/common/clock.h"
#include "creto/common/identity.h"

namespace creto {

/// W3C trace context, passed through unchanged (C9). Empty where the caller sent none and nobody began one.
struct Trace {
  std::string trace_id;  ///< 32 hex digits
  std::string span_id;   ///< 16 hex digits: the caller's span
  bool sampled = false;
};

/// What travels with every call: who asks, on whose behalf, until when, and under which key it may be repeated.
/// A value; cheap enough to copy where a call leaves the thread.
struct Context {
  std::string org = "default";     ///< the organization; every stored row carries it
  std::optional<Identity> caller;  ///< none only before authentication
  DelegationChain chain;           ///< ends with `caller`
  Monotonic deadline = Monotonic::max();
  std::string idempotency_key;  ///< empty: the call is not to be deduplicated
  Hash256 request_hash{};       ///< of the request's bytes, compared when the key repeats
  Trace trace;

  bool expired(const Clock& clock) const { return clock.monotonic() >= deadline; }
  const std::string& caller_text() const {
    static const std::string nobody;
    return caller ? caller->text() : nobody;
  }

  /// For work the system does on its own account.
  static Context of_service(Identity service) {
    Context ctx;
    ctx.chain = {service};
    ctx.caller = std::move(service);
    return ctx;
  }
  static Context of(Identity caller, DelegationChain chain) {
    Context ctx;
    ctx.caller = std::move(caller);
    ctx.chain = std::move(chain);
    return ctx;
  }
};

}  // namespace creto

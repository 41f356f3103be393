#pragma once

#include <array>
#include <memory>
#include <optional>
#include <utility>

#include "cedar/engine.h"
#include "check_request.h"
#include "creto/authz/authz.h"
#include "hash.h"

namespace creto::authz {

/// What a thread keeps from check to check, so that one by somebody who was here lately allocates nothing.
class Workplace {
 public:
  /// How Cedar sees who asks. Valid until the next call.
  struct Asker {
    Identity principal;
    DelegationChain chain;
    EntityUid entity;
    Attributes::value_type delegation;
  };
  const Asker& asker(const CheckRequest& request) {
    auto& kept = askers_[hash_text(request.principal.text()) % askers_.size()];
    if (!kept || kept->principal != request.principal || kept->chain != request.chain)
      kept.emplace(Asker{request.principal,
                         request.chain,
                         entity_of(request.principal),
                         {"delegation", delegation_of(request.principal, request.chain)}});
    return *kept;
  }

  EntityUid action{"Action", {}};
  cedar::Engine::Scratch engine;

 private:
  std::array<std::optional<Asker>, 64> askers_;
};

/// The thread's own, unless a check is made while another is under way: an entity source may ask.
class WorkplaceLease {
 public:
  WorkplaceLease() : own_(std::exchange(spare_, nullptr)) {
    if (!own_) own_ = std::make_unique<Workplace>();
  }
  ~WorkplaceLease() { spare_ = std::move(own_); }
  WorkplaceLease(const WorkplaceLease&) = delete;
  WorkplaceLease& operator=(const WorkplaceLease&) = delete;
  Workplace* operator->() const { return own_.get(); }

 private:
  static inline thread_local std::unique_ptr<Workplace> spare_;
  std::unique_ptr<Workplace> own_;
};

}  // namespace creto::authz

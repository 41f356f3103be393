#pragma once

#include <memory>

namespace creto::app {

struct System;

/// What has to be done every minute: due invoices and holds, expired messages, memories, objects and idempotency keys,
/// output of ended sandboxes, prekeys of agents whose keys were rotated; and every hour: fresh prekeys of agents. A
/// chore that fails is logged and tried again the next time. Ends, and waits for the running chore, when destroyed.
class Chores {
 public:
  virtual ~Chores() = default;
};

/// `system` must outlive the result.
std::unique_ptr<Chores> start_chores(System& system);

}  // namespace creto::app

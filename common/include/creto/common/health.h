#pragma once

#include <functional>
#include <string>
#include <vector>

#include "creto/common/time.h"

namespace creto {

enum class Health : std::uint8_t { healthy, degraded, unhealthy };
std::string_view to_string(Health health);

struct HealthStatus {
  Health health = Health::healthy;
  std::string reason;  ///< empty when healthy
};

struct HealthCheck {
  std::string name;
  bool critical = true;  ///< an unhealthy critical one makes the whole unhealthy, another only degraded (003 §14.1)
  std::function<HealthStatus()> check;
};

struct HealthReport {
  struct Entry {
    std::string name;
    bool critical;
    HealthStatus status;
    Nanos took;
  };
  HealthStatus overall;
  std::vector<Entry> entries;
};

/// Runs every check. A check must not block longer than its own timeout.
HealthReport run_health_checks(const std::vector<HealthCheck>& checks);

}  // namespace creto

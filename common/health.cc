#include "creto/common/health.h"

#include <utility>

#include "creto/common/clock.h"

namespace creto {

std::string_view to_string(Health health) {
  switch (health) {
    case Health::healthy:
      return "healthy";
    case Health::degraded:
      return "degraded";
    case Health::unhealthy:
      return "unhealthy";
  }
  std::unreachable();
}

HealthReport run_health_checks(const std::vector<HealthCheck>& checks) {
  HealthReport report;
  for (const HealthCheck& check : checks) {
    const Monotonic begin = system_clock().monotonic();
    HealthStatus status = check.check();
    const Health effect = status.health == Health::unhealthy && !check.critical ? Health::degraded : status.health;
    if (effect > report.overall.health) report.overall = {effect, check.name + ": " + status.reason};
    report.entries.push_back({check.name, check.critical, std::move(status), system_clock().monotonic() - begin});
  }
  return report;
}

}  // namespace creto

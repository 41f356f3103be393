#pragma once

#include "creto/authz/authz.h"
#include "creto/common/telemetry.h"

namespace creto::authz {

/// The names and units of what is measured.
class AuthzProbe {
 public:
  explicit AuthzProbe(Telemetry& telemetry)
      : telemetry_(telemetry),
        hits_(telemetry.counter("authz_cache_hits_total", "checks answered from the cache")),
        misses_(telemetry.counter("authz_cache_misses_total", "checks that ran the policies")),
        denied_(telemetry.counter("authz_denied_total", "checks that were not allowed")),
        limited_(telemetry.counter("authz_rate_limited_total", "checks that a permit's rate had no room for")) {}

  void hit() { hits_.add(); }
  void miss() { misses_.add(); }
  void refused() { denied_.add(); }
  void limited() { limited_.add(); }
  /// What is counted of one extension.
  struct OfExtension {
    Counter& failures;
    Counter& late;
  };
  OfExtension of(const Extension& extension) {
    return {telemetry_.counter("authz_extension_failures_total", "answers that an extension could not give",
                               {{"extension", extension.name()}}),
            telemetry_.counter("authz_extension_late_total", "answers of an extension after its time budget",
                               {{"extension", extension.name()}})};
  }
  /// What is counted of one product that is asked for its resources.
  struct OfSource {
    Counter& failures;
    Counter& late;
    Counter& refused;
  };
  OfSource of(const ResourceSource& source) {
    const auto types = source.types();
    const std::string type = types.empty() ? std::string() : types.front();
    return {
        telemetry_.counter("authz_resource_failures_total", "errors of a product that was asked for a resource",
                           {{"type", type}}),
        telemetry_.counter("authz_resource_late_total", "resources that a product did not tell in time",
                           {{"type", type}}),
        telemetry_.counter("authz_resource_unasked_total",
                           "resources that a product was not asked for, because it answered nobody", {{"type", type}})};
  }
  void extension_late(const Context& ctx, const Extension& extension, Nanos took) {
    telemetry_.log(
        LogLevel::warn, "authz", "authz_extension_late", &ctx,
        {{"extension", extension.name()}, {"took_ns", took.count()}, {"budget_ns", extension.budget().count()}});
  }
  void extension_failed(const Context& ctx, const Extension& extension, const Error& error) {
    telemetry_.log(LogLevel::warn, "authz", "authz_extension_failed", &ctx,
                   {{"extension", extension.name()}, {"error", error.to_string()}});
  }
  void trouble(const Context& ctx, const Error& error) {
    telemetry_.log(LogLevel::error, "authz", "authz_entities_unavailable", &ctx, {{"error", error.to_string()}});
  }
  void policy_failed(const Context& ctx, const PolicyId& id, const Error& error) {
    telemetry_.log(LogLevel::warn, "authz", "authz_policy_failed", &ctx, {{"policy", id}, {"error", error.message()}});
  }
  void stale(const Context& ctx, const Error& error) {
    telemetry_.log(LogLevel::error, "authz", "authz_snapshot_stale", &ctx, {{"error", error.to_string()}});
  }

 private:
  Telemetry& telemetry_;
  Counter& hits_;
  Counter& misses_;
  Counter& denied_;
  Counter& limited_;
};

}  // namespace creto::authz

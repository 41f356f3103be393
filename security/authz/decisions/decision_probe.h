#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "creto/common/telemetry.h"

namespace creto::authz {

/// The names and units of what is measured.
class DecisionLogProbe {
 public:
  explicit DecisionLogProbe(Telemetry& telemetry)
      : telemetry_(telemetry),
        decisions_(telemetry.counter("authz_decision_log_decisions_total", "decisions written to the decision log")),
        bytes_(telemetry.counter("authz_decision_log_bytes_total", "bytes written to the decision log")),
        segments_(
            telemetry.counter("authz_decision_log_segments_total", "segments sealed and entered in the audit log")),
        purged_(telemetry.counter("authz_decision_log_purged_total", "segments removed for age or size")),
        refused_(telemetry.counter("authz_decision_log_refused_total",
                                   "checks denied because the decision log could not take their decision")),
        failures_(telemetry.counter("authz_decision_log_failures_total", "writes to the decision log that failed")) {}

  void wrote(std::uint64_t decisions, std::size_t bytes) {
    decisions_.add(decisions);
    bytes_.add(bytes);
  }
  void sealed() { segments_.add(); }
  void purged() { purged_.add(); }
  void refused() { refused_.add(); }
  void failed(std::string_view step, const Error& error) {
    failures_.add();
    telemetry_.error("authz", "decision_log_failed", {{"step", step}, {"error", error.to_string()}});
  }
  void recovered(const std::string& file) { telemetry_.warn("authz", "decision_log_recovered", {{"file", file}}); }
  void missing(const std::string& file) { telemetry_.error("authz", "decision_log_segment_missing", {{"file", file}}); }

 private:
  Telemetry& telemetry_;
  Counter& decisions_;
  Counter& bytes_;
  Counter& segments_;
  Counter& purged_;
  Counter& refused_;
  Counter& failures_;
};

}  // namespace creto::authz

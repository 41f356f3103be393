#pragma once

#include <functional>
#include <memory>
#include <string>

#include "creto/common/clock.h"
#include "creto/common/telemetry.h"

namespace creto {

/// JSON lines (001 §10.3) and a Prometheus registry.
class ExportedTelemetry : public Telemetry {
 public:
  struct Options {
    LogLevel level = LogLevel::info;
    int fd = 2;                                       ///< where lines go; each is one write(2)
    std::function<void(std::string_view)> sink = {};  ///< instead of `fd`
  };

  static std::unique_ptr<ExportedTelemetry> create(Options options, const Clock& clock);
  /// The registry in Prometheus' text format.
  virtual std::string metrics() const = 0;
  virtual void set_level(LogLevel level) = 0;
};

}  // namespace creto

#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <variant>

#include "creto/common/context.h"
#include "creto/common/error.h"

namespace creto {

enum class LogLevel : std::uint8_t { debug, info, warn, error };

/// One named value of a log event. Borrows its text until the call returns.
struct Field {
  std::string_view name;
  std::variant<std::string_view, std::int64_t, double, bool> value;

  Field(std::string_view n, std::string_view v) : name(n), value(v) {}
  Field(std::string_view n, const char* v) : name(n), value(std::string_view(v)) {}
  Field(std::string_view n, const std::string& v) : name(n), value(std::string_view(v)) {}
  Field(std::string_view n, bool v) : name(n), value(v) {}
  Field(std::string_view n, double v) : name(n), value(v) {}
  template <std::integral T>
  Field(std::string_view n, T v) : name(n), value(static_cast<std::int64_t>(v)) {}
};

/// A number that only grows. `add` is one relaxed atomic addition.
class Counter {
 public:
  virtual ~Counter() = default;
  virtual void add(std::uint64_t n = 1) = 0;
};
class Gauge {
 public:
  virtual ~Gauge() = default;
  virtual void set(double value) = 0;
};
class Histogram {
 public:
  virtual ~Histogram() = default;
  virtual void observe(double value) = 0;  ///< seconds or bytes, as the metric's name says
};
using Labels = std::initializer_list<std::pair<std::string_view, std::string_view>>;

/// Where a module says what it does. Logs are an event name with fields, one JSON line each (001 §10.3); metrics are
/// Prometheus' (001 §10.2). Thread-safe. A module wraps its metrics in a Probe with verbs and asks for each once.
class Telemetry {
 public:
  virtual ~Telemetry() = default;

  /// `event` is a constant such as "sandbox_spawned"; trace and agent come from `ctx`. Never pass secrets.
  virtual void log(LogLevel level, std::string_view product, std::string_view event, const Context* ctx,
                   std::initializer_list<Field> fields) = 0;

  /// The same name and labels give the same object; it lives as long as the Telemetry.
  virtual Counter& counter(std::string_view name, std::string_view help, Labels labels = {}) = 0;
  virtual Gauge& gauge(std::string_view name, std::string_view help, Labels labels = {}) = 0;
  virtual Histogram& histogram(std::string_view name, std::string_view help, Labels labels = {}) = 0;

  void info(std::string_view product, std::string_view event, std::initializer_list<Field> fields = {}) {
    log(LogLevel::info, product, event, nullptr, fields);
  }
  void warn(std::string_view product, std::string_view event, std::initializer_list<Field> fields = {}) {
    log(LogLevel::warn, product, event, nullptr, fields);
  }
  void error(std::string_view product, std::string_view event, std::initializer_list<Field> fields = {}) {
    log(LogLevel::error, product, event, nullptr, fields);
  }
};

/// Drops everything; for tests and tools.
Telemetry& no_telemetry();

}  // namespace creto

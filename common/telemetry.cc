#include "creto/common/telemetry.h"

namespace creto {
namespace {

class NoTelemetry final : public Telemetry {
 public:
  void log(LogLevel, std::string_view, std::string_view, const Context*, std::initializer_list<Field>) override {}
  Counter& counter(std::string_view, std::string_view, Labels) override { return counter_; }
  Gauge& gauge(std::string_view, std::string_view, Labels) override { return gauge_; }
  Histogram& histogram(std::string_view, std::string_view, Labels) override { return histogram_; }

 private:
  struct NoCounter final : Counter {
    void add(std::uint64_t) override {}
  } counter_;
  struct NoGauge final : Gauge {
    void set(double) override {}
  } gauge_;
  struct NoHistogram final : Histogram {
    void observe(double) override {}
  } histogram_;
};

}  // namespace

Telemetry& no_telemetry() {
  static NoTelemetry telemetry;
  return telemetry;
}

}  // namespace creto

#include "creto/io/telemetry.h"

#include <fmt/format.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cmath>
#include <map>
#include <mutex>

#include "creto/common/bytes.h"

namespace creto {
namespace {

/// Appends `text` as a JSON string; bytes that are no UTF-8 become U+FFFD.
void append_json(std::string& line, std::string_view text) {
  bool valid = is_valid_utf8(text);
  line += '"';
  for (char c : text) {
    auto u = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      line += '\\';
      line += c;
    } else if (u < 0x20 || u == 0x7f) {
      line += fmt::format("\\u{:04x}", u);
    } else if (u >= 0x80 && !valid) {
      line += "\xef\xbf\xbd";
    } else {
      line += c;
    }
  }
  line += '"';
}

std::string_view name_of(LogLevel level) {
  switch (level) {
    case LogLevel::debug:
      return "DEBUG";
    case LogLevel::info:
      return "INFO";
    case LogLevel::warn:
      return "WARN";
    case LogLevel::error:
      return "ERROR";
  }
  std::unreachable();
}

/// Relaxed integers in front of Prometheus' double, whose increment is a compare-and-swap loop. Several, each in a
/// cache line of its own: threads that count the same thing all the time do not take the line from each other.
class PlainCounter final : public Counter {
 public:
  void add(std::uint64_t n) override { stripes_[own_stripe()].value.fetch_add(n, std::memory_order_relaxed); }
  std::uint64_t take() {
    std::uint64_t sum = 0;
    for (Stripe& stripe : stripes_) sum += stripe.value.exchange(0, std::memory_order_relaxed);
    return sum;
  }
  prometheus::Counter* behind = nullptr;

 private:
  static constexpr std::size_t stripes = 8;
  struct alignas(64) Stripe {
    std::atomic<std::uint64_t> value = 0;
  };
  static std::size_t own_stripe() {
    static std::atomic<std::size_t> next{0};
    thread_local const std::size_t own = next.fetch_add(1, std::memory_order_relaxed) % stripes;
    return own;
  }
  std::array<Stripe, stripes> stripes_;
};

class PlainGauge final : public Gauge {
 public:
  explicit PlainGauge(prometheus::Gauge& gauge) : gauge_(gauge) {}
  void set(double value) override { gauge_.Set(value); }

 private:
  prometheus::Gauge& gauge_;
};

class PlainHistogram final : public Histogram {
 public:
  explicit PlainHistogram(prometheus::Histogram& histogram) : histogram_(histogram) {}
  void observe(double value) override { histogram_.Observe(value); }

 private:
  prometheus::Histogram& histogram_;
};

/// Seconds from 1 us to 60 s; what is named "_bytes" from 64 to 1 GiB.
prometheus::Histogram::BucketBoundaries boundaries(std::string_view name) {
  prometheus::Histogram::BucketBoundaries bounds;
  if (name.ends_with("_bytes")) {
    for (double bound = 64; bound <= 1 << 30; bound *= 8) bounds.push_back(bound);
  } else {
    for (double decade = 1e-6; decade < 10; decade *= 10)
      for (double step : {1.0, 2.5, 5.0}) bounds.push_back(decade * step);
    bounds.push_back(10);
    bounds.push_back(60);
  }
  return bounds;
}

class TelemetryImpl final : public ExportedTelemetry {
 public:
  TelemetryImpl(Options options, const Clock& clock)
      : level_(options.level), options_(std::move(options)), clock_(clock) {}

  void set_level(LogLevel level) override { level_ = level; }

  void log(LogLevel level, std::string_view product, std::string_view event, const Context* ctx,
           std::initializer_list<Field> fields) override {
    if (level < level_.load(std::memory_order_relaxed)) return;
    std::string line =
        fmt::format("{{\"timestamp\":\"{}\",\"level\":\"{}\",\"product\":", to_rfc3339(clock_.now()), name_of(level));
    append_json(line, product);
    line += ",\"operation\":";
    append_json(line, event);
    if (ctx != nullptr) {
      if (!ctx->trace.trace_id.empty()) {
        line += ",\"trace_id\":";
        append_json(line, ctx->trace.trace_id);
        line += ",\"span_id\":";
        append_json(line, ctx->trace.span_id);
      }
      if (ctx->caller) {
        line += ",\"agent_nhi\":";
        append_json(line, ctx->caller->text());
      }
    }
    line += ",\"attributes\":{";
    bool first = true;
    for (const Field& field : fields) {
      if (!first) line += ',';
      first = false;
      append_json(line, field.name);
      line += ':';
      if (const auto* text = std::get_if<std::string_view>(&field.value)) {
        append_json(line, *text);
      } else if (const auto* number = std::get_if<std::int64_t>(&field.value)) {
        line += fmt::format("{}", *number);
      } else if (const auto* real = std::get_if<double>(&field.value)) {
        line += std::isfinite(*real) ? fmt::format("{}", *real) : "null";
      } else {
        line += std::get<bool>(field.value) ? "true" : "false";
      }
    }
    line += "}}\n";
    if (options_.sink) {
      std::lock_guard lock(sink_mutex_);
      options_.sink(line);
      return;
    }
    // One write keeps lines of several threads apart. A log that cannot be written must not stop the work.
    [[maybe_unused]] auto written = ::write(options_.fd, line.data(), line.size());
  }

  Counter& counter(std::string_view name, std::string_view help, Labels labels) override {
    std::lock_guard lock(mutex_);
    auto& slot = counters_[key(name, labels)];
    if (slot == nullptr) {
      slot = std::make_unique<PlainCounter>();
      slot->behind = &prometheus::BuildCounter()
                          .Name(std::string(name))
                          .Help(std::string(help))
                          .Register(registry_)
                          .Add(map(labels));
    }
    return *slot;
  }
  Gauge& gauge(std::string_view name, std::string_view help, Labels labels) override {
    std::lock_guard lock(mutex_);
    auto& slot = gauges_[key(name, labels)];
    if (slot == nullptr)
      slot = std::make_unique<PlainGauge>(prometheus::BuildGauge()
                                              .Name(std::string(name))
                                              .Help(std::string(help))
                                              .Register(registry_)
                                              .Add(map(labels)));
    return *slot;
  }
  Histogram& histogram(std::string_view name, std::string_view help, Labels labels) override {
    std::lock_guard lock(mutex_);
    auto& slot = histograms_[key(name, labels)];
    if (slot == nullptr)
      slot = std::make_unique<PlainHistogram>(prometheus::BuildHistogram()
                                                  .Name(std::string(name))
                                                  .Help(std::string(help))
                                                  .Register(registry_)
                                                  .Add(map(labels), boundaries(name)));
    return *slot;
  }

  std::string metrics() const override {
    std::lock_guard lock(mutex_);
    for (const auto& [key, counter] : counters_) counter->behind->Increment(static_cast<double>(counter->take()));
    return prometheus::TextSerializer().Serialize(registry_.Collect());
  }

 private:
  static std::string key(std::string_view name, Labels labels) {
    std::string text(name);
    for (const auto& [label, value] : labels) {
      text += '\0';
      text += label;
      text += '\0';
      text += value;
    }
    return text;
  }
  static std::map<std::string, std::string> map(Labels labels) {
    std::map<std::string, std::string> result;
    for (const auto& [label, value] : labels) result.emplace(label, value);
    return result;
  }

  std::atomic<LogLevel> level_;
  const Options options_;
  const Clock& clock_;
  std::mutex sink_mutex_;
  mutable std::mutex mutex_;
  mutable prometheus::Registry registry_;
  std::map<std::string, std::unique_ptr<PlainCounter>> counters_;
  std::map<std::string, std::unique_ptr<PlainGauge>> gauges_;
  std::map<std::string, std::unique_ptr<PlainHistogram>> histograms_;
};

}  // namespace

std::unique_ptr<ExportedTelemetry> ExportedTelemetry::create(Options options, const Clock& clock) {
  return std::make_unique<TelemetryImpl>(std::move(options), clock);
}

}  // namespace creto

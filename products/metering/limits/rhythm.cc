#include "limits/rhythm.h"

#include <algorithm>
#include <cmath>

namespace creto::metering {
namespace {

constexpr double forecast_confidence = 0.9;
constexpr double forecast_deviations = 1.645;  // of a normal distribution, on both sides

NanoMoney to_money(double value) { return value >= 9e18 ? INT64_MAX : value <= 0 ? 0 : static_cast<NanoMoney>(value); }

}  // namespace

void Rhythm::learn(double cost) {
  const auto value = static_cast<float>(cost);
  hours_ = std::min(hours_ + 1, static_cast<float>(hours_remembered));
  const float delta = value - mean_;
  mean_ += delta / hours_;
  variance_ += (delta * (value - mean_) - variance_) / hours_;
}

Expectation Rhythm::expect() const {
  return {static_cast<double>(mean_), std::sqrt(std::max(0.0, static_cast<double>(variance_))),
          static_cast<double>(hours_)};
}

void WeekRhythm::learn(std::int64_t hour, double cost) {
  float& mean = means_[slot(hour)];
  std::uint8_t& weeks = weeks_[slot(hour)];
  const auto delta = static_cast<float>(cost) - mean;
  if (knows(hour)) {
    learnt_ = std::min(learnt_ + 1, static_cast<float>(4 * hours));
    variance_ += (delta * delta - variance_) / learnt_;
  }
  weeks = std::min<std::uint8_t>(static_cast<std::uint8_t>(weeks + 1), weeks_remembered);
  mean += delta / static_cast<float>(weeks);
}

Expectation WeekRhythm::expect(std::int64_t hour) const {
  return {static_cast<double>(means_[slot(hour)]), std::sqrt(std::max(0.0, static_cast<double>(variance_))),
          static_cast<double>(learnt_)};
}

NanoMoney unusual_above(const Expectation& expected, const AnomalyRules& rules) {
  if (!(expected.hours >= rules.hours_min) || !(expected.mean > 0)) return 0;
  const double bound = std::max(expected.mean + rules.deviations * expected.deviation, rules.factor * expected.mean);
  return bound < 9e18 ? static_cast<NanoMoney>(bound) : 0;
}

double confidence_unusual(const Expectation& expected, double cost) {
  if (expected.deviation <= 0) return 1;
  const double distance = std::max(0.0, cost - expected.mean) / expected.deviation;
  return distance * distance / (1 + distance * distance);
}

Forecast forecast(const Rhythm& rhythm, const WeekRhythm* week, NanoMoney so_far, NanoMoney in_hour,
                  std::int64_t from_hour, std::int64_t until_hour) {
  const Expectation any = rhythm.expect();
  double rest = 0;
  double variance = 0;
  double by_mean = 0;  // hours that are judged by the mean of all
  for (std::int64_t hour = from_hour; hour < until_hour; ++hour) {
    const bool known = week != nullptr && week->knows(hour);
    const Expectation expected = known ? week->expect(hour) : any;
    // Of the hour that has begun, what is left of the expectation.
    rest += hour == from_hour ? std::max(0.0, expected.mean - static_cast<double>(in_hour)) : expected.mean;
    variance += expected.deviation * expected.deviation;
    if (!known) by_mean += 1;
  }
  // The mean itself is known only so well: its error is the same for all hours that are judged by it.
  if (any.hours > 0) variance += by_mean * by_mean * any.deviation * any.deviation / any.hours;
  const double spread = forecast_deviations * std::sqrt(variance);
  const auto spent = static_cast<double>(so_far);
  return {so_far,
          to_money(spent + rest),
          std::max(so_far, to_money(spent + rest - spread)),
          to_money(spent + rest + spread),
          forecast_confidence,
          any.hours};
}

}  // namespace creto::metering

#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "amounts.h"

namespace creto::metering {

/// When an account's hours are unusual, and by how much.
struct AnomalyRules {
  bool detect = true;
  std::uint32_t hours_min = 24;  ///< completed hours of history before anything counts as unusual
  double deviations = 6;         ///< how many standard deviations above the mean hour
  double factor = 3;             ///< and how many times the mean hour
  double confidence = 0.97;      ///< from which on people are told
};

/// What an hour is expected to cost.
struct Expectation {
  double mean = 0;
  double deviation = 0;  ///< standard deviation of single hours
  double hours = 0;      ///< it was learnt from
};

/// What an account's hours usually cost: mean and variance, fading after a week.
class Rhythm {
 public:
  static constexpr std::int64_t hours_remembered = 168;

  void learn(double cost);
  Expectation expect() const;

 private:
  float hours_ = 0;
  float mean_ = 0;
  float variance_ = 0;
};

/// The same for each hour of the week (of UTC), fading after eight weeks: for accounts that are worth 860 bytes more.
/// An hour of which three weeks are known is expected to be like those; any other like the mean of all.
class WeekRhythm {
 public:
  static constexpr std::int64_t hours = 168;

  /// `hour` counts from 1970.
  void learn(std::int64_t hour, double cost);
  /// None where too little is known of that hour of the week.
  bool knows(std::int64_t hour) const { return weeks_[slot(hour)] >= weeks_min; }
  Expectation expect(std::int64_t hour) const;

 private:
  static constexpr std::uint8_t weeks_min = 3;
  static constexpr std::uint8_t weeks_remembered = 8;
  static std::size_t slot(std::int64_t hour) { return static_cast<std::size_t>(hour % hours); }

  std::array<float, hours> means_{};
  std::array<std::uint8_t, hours> weeks_{};
  float variance_ = 0;  ///< of what hours cost, about what was expected of them
  float learnt_ = 0;    ///< hours that the variance knows
};

/// An hour that costs more is unusual; 0: none is.
NanoMoney unusual_above(const Expectation& expected, const AnomalyRules& rules);
/// How sure it is that an hour of that cost is none of those expected, whatever the distribution of costs: Cantelli's
/// inequality.
double confidence_unusual(const Expectation& expected, double cost);

/// What is spent by the end of a period.
struct Forecast {
  NanoMoney so_far = 0;
  NanoMoney expected = 0;  ///< at the end
  NanoMoney low = 0;
  NanoMoney high = 0;
  double confidence = 0;    ///< that the end lies between low and high, were hours independent of each other
  double hours_learnt = 0;  ///< by which the rest is judged
  std::int64_t until_ns = 0;
};
/// From the beginning of `from_hour`, of which `in_hour` is spent already, until that of `until_hour`.
Forecast forecast(const Rhythm& rhythm, const WeekRhythm* week, NanoMoney so_far, NanoMoney in_hour,
                  std::int64_t from_hour, std::int64_t until_hour);

}  // namespace creto::metering

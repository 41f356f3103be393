#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <string_view>

#include "creto/common/bytes.h"
#include "creto/common/result.h"
#include "creto/common/time.h"

namespace creto {

/// The civil time of one place, past and future, by the IANA time zone database. A cheap value; thread-safe.
/// Every `Instant` and local time given must lie in the years 1678 to 2261.
///
/// Days begin at the first moment that bears their date: midnight, or what follows the gap where clocks skip it. A day
/// that a place never had (Apia, 30 December 2011) begins where the next one begins.
class TimeZone {
 public:
  using LocalTime = std::chrono::local_time<Nanos>;

  TimeZone();  ///< UTC; needs no database
  /// "Europe/Berlin", "UTC": a name of the machine's database (/usr/share/zoneinfo). Read once per name and process.
  /// Errors: invalid_input where the name is none or the database does not know it.
  static Result<TimeZone> load(std::string_view name);
  /// A TZif file of any version (RFC 9636), at most 256 KiB. Errors: invalid_input naming what is wrong.
  static Result<TimeZone> parse(std::string name, BytesView tzif);

  const std::string& name() const;
  std::chrono::seconds offset_at(Instant when) const;  ///< local time minus UTC
  LocalTime local(Instant when) const;
  /// Of a time that the clocks show twice, the first; of one that they skip, the moment at which they skip it.
  Instant instant(LocalTime time) const;

  std::chrono::local_days day_of(Instant when) const;
  Instant day_begin(std::chrono::local_days day) const;

  friend bool operator==(const TimeZone& a, const TimeZone& b) { return a.name() == b.name(); }

 private:
  struct Rules;
  explicit TimeZone(std::shared_ptr<const Rules> rules);
  std::shared_ptr<const Rules> rules_;  ///< never null
};

}  // namespace creto

#pragma once

#include <chrono>
#include <cstdint>

#include "creto/common/time.h"

namespace creto::metering {

/// How long a session lasts: a name of which nothing was used for so long is another session when it comes again.
inline constexpr Nanos session_idle_max = std::chrono::days(30);
/// Likewise of a sandbox that has ended: what it used before may still arrive.
inline constexpr Nanos session_late_max = std::chrono::hours(1);

/// From when to when an account's session lasts, in minutes since 1970. It follows from the uses alone, and from when
/// they arrived, so that whoever counts them again finds the same sessions.
class SessionLife {
 public:
  /// Whether it lasts no longer; not of one that was not used yet.
  bool is_over(std::int64_t ns) const { return until() != 0 && minute(ns) >= until(); }
  bool is_used() const { return until() != 0; }
  /// Whether a use that was counted at `ns` is one of this session, and not of an earlier one of its name.
  bool holds(std::int64_t ns) const { return is_used() && minute(ns) >= begun_; }
  std::int64_t begun_ns() const { return Nanos(std::chrono::minutes(begun_)).count(); }
  /// A use at `ns`; `ends`: by which its sandbox ended.
  void use(std::int64_t ns, bool ends) {
    if (!is_used()) begun_ = minute(ns);
    const std::uint32_t flag = ends ? ended : until_ & ended;
    const std::uint32_t rest = minutes(flag == 0 ? session_idle_max : session_late_max);
    until_ = flag | (minute(ns) + rest + 1);
  }
  /// A use that takes the place of another session's, which was counted at `ns`.
  void use_instead(std::int64_t ns, std::int64_t now) {
    if (!is_used()) use(now, false);
    if (minute(ns) < begun_) begun_ = minute(ns);
  }

  /// Whether the account is nobody's at present.
  bool is_free() const { return begun_ == nobody; }
  void set_free() { *this = SessionLife(nobody); }

  SessionLife() = default;

 private:
  static constexpr std::uint32_t ended = 1u << 31;
  static constexpr std::uint32_t nobody = UINT32_MAX;

  explicit SessionLife(std::uint32_t begun) : begun_(begun) {}
  static constexpr std::uint32_t minutes(Nanos time) {
    return static_cast<std::uint32_t>(time / std::chrono::minutes(1));
  }
  static std::uint32_t minute(std::int64_t ns) { return minutes(Nanos(ns)); }
  std::uint32_t until() const { return until_ & ~ended; }

  std::uint32_t begun_ = 0;
  std::uint32_t until_ = 0;  ///< 0: not used yet; the highest bit: its sandbox ended
};

}  // namespace creto::metering

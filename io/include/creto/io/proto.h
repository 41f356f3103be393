#pragma once

// Only for a module's rpc/*.cc, which link creto::proto: domain headers know no protobuf.

#include <fmt/format.h>

#include <optional>
#include <string>
#include <string_view>

#include "creto/common/bytes.h"
#include "creto/common/identity.h"
#include "creto/common/result.h"
#include "creto/common/signature.h"
#include "creto/common/time.h"
#include "creto/common/v1/common.pb.h"

/// What every converter needs. `from_…` refuses what the domain cannot hold and names the field; `to_…` is total.
namespace creto::proto {

inline Error bad_field(std::string_view field, std::string_view rule) {
  return Error(Product::platform, ErrorKind::invalid_input, fmt::format("`{}` {}", field, rule));
}

inline std::string to_text(BytesView bytes) { return std::string(as_text(bytes)); }

/// Instant::max() stands for "never": it is left unset, which reads back as `otherwise`.
inline void set_time(google::protobuf::Timestamp* out, Instant instant) {
  std::int64_t ns = unix_ns(instant);
  std::int64_t seconds = ns / 1'000'000'000, rest = ns % 1'000'000'000;
  if (rest < 0) {
    rest += 1'000'000'000;
    --seconds;
  }
  out->set_seconds(seconds);
  out->set_nanos(static_cast<std::int32_t>(rest));
}

inline Result<Instant> from_time(const google::protobuf::Timestamp& time, std::string_view field) {
  constexpr std::int64_t seconds_max = 9'223'372'035;
  if (time.seconds() < -seconds_max || time.seconds() > seconds_max || time.nanos() < 0 || time.nanos() > 999'999'999)
    return bad_field(field, "must be a time between 1678 and 2261");
  return from_unix_ns(time.seconds() * 1'000'000'000 + time.nanos());
}

inline void set_duration(google::protobuf::Duration* out, Nanos duration) {
  out->set_seconds(duration.count() / 1'000'000'000);
  out->set_nanos(static_cast<std::int32_t>(duration.count() % 1'000'000'000));
}

inline Result<Nanos> from_duration(const google::protobuf::Duration& duration, std::string_view field) {
  constexpr std::int64_t seconds_max = 9'223'372'035;
  bool mixed = (duration.seconds() > 0 && duration.nanos() < 0) || (duration.seconds() < 0 && duration.nanos() > 0);
  if (mixed || duration.seconds() < -seconds_max || duration.seconds() > seconds_max ||
      duration.nanos() < -999'999'999 || duration.nanos() > 999'999'999)
    return bad_field(field, "must be a duration of at most 292 years");
  return Nanos(duration.seconds() * 1'000'000'000 + duration.nanos());
}

inline Result<Identity> from_identity(const std::string& text, std::string_view field) {
  auto identity = Identity::parse(text);
  if (!identity) return bad_field(field, "must be an identity: " + identity.error().message());
  return identity;
}

/// An `Id<Tag>`.
template <class T>
Result<T> from_id(const std::string& text, std::string_view field) {
  auto id = T::parse(text);
  if (!id) return bad_field(field, id.error().message());
  return id;
}

inline Signature from_signature(const common::v1::Signature& signature) {
  return Signature{signature.algorithm(), to_bytes(signature.value())};
}
inline void set_signature(common::v1::Signature* out, const Signature& signature) {
  out->set_algorithm(signature.algorithm);
  out->set_value(to_text(signature.value));
}

inline Timestamp from_timestamp(const common::v1::ConsensusTimestamp& time) {
  return Timestamp{time.logical(), time.physical_ns(), time.node(), time.degraded()};
}
inline void set_timestamp(common::v1::ConsensusTimestamp* out, const Timestamp& time) {
  out->set_logical(time.logical);
  out->set_physical_ns(time.physical_ns);
  out->set_node(time.node);
  out->set_degraded(time.degraded);
}

}  // namespace creto::proto

#include "creto/common/id.h"

#include <fmt/format.h>
#include <sys/random.h>

#include "creto/common/assert.h"

namespace creto::detail {

ByteArray<16> fresh_uuid7(Instant now) {
  ByteArray<16> uuid;
  const ssize_t got = getrandom(uuid.data(), uuid.size(), 0);
  CRETO_ASSERT(got == static_cast<ssize_t>(uuid.size()));
  const auto ms =
      static_cast<std::uint64_t>(std::chrono::floor<std::chrono::milliseconds>(now).time_since_epoch().count());
  for (std::size_t i = 0; i < 6; ++i) uuid[i] = static_cast<std::uint8_t>(ms >> (40 - 8 * i));
  uuid[6] = static_cast<std::uint8_t>(0x70 | (uuid[6] & 0x0F));
  uuid[8] = static_cast<std::uint8_t>(0x80 | (uuid[8] & 0x3F));
  return uuid;
}

std::string format_id(std::string_view prefix, const ByteArray<16>& uuid) {
  const std::string digits = hex(uuid);
  const std::string_view d = digits;
  return fmt::format("{}-{}-{}-{}-{}-{}", prefix, d.substr(0, 8), d.substr(8, 4), d.substr(12, 4), d.substr(16, 4),
                     d.substr(20));
}

Result<ByteArray<16>> parse_id(std::string_view prefix, std::string_view text) {
  const auto malformed = [&] {
    return Error(Product::platform, ErrorKind::invalid_input,
                 fmt::format("id `{}`: must be `{}-` and a UUID", text.substr(0, 64), prefix));
  };
  constexpr std::string_view shape = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
  if (text.size() != prefix.size() + 1 + shape.size() || !text.starts_with(prefix) || text[prefix.size()] != '-')
    return malformed();
  text.remove_prefix(prefix.size() + 1);
  std::string digits;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] == '-') {
      if (text[i] != '-') return malformed();
    } else if ((text[i] >= '0' && text[i] <= '9') || (text[i] >= 'a' && text[i] <= 'f')) {
      digits += text[i];
    } else {
      return malformed();  // one spelling for one id: upper case is refused
    }
  }
  const Result<Bytes> bytes = from_hex(digits);
  if (!bytes) return malformed();
  ByteArray<16> uuid;
  std::copy(bytes->begin(), bytes->end(), uuid.begin());
  return uuid;
}

}  // namespace creto::detail

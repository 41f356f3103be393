#include "block_log.h"
#include "creto/crypto/hash.h"
#include "cut_off.h"
#include "layout.h"

namespace creto::metering {
namespace {

constexpr std::string_view magic = "CRETOUB1\n";
constexpr std::size_t head_size = magic.size() + sizeof(Hash256);

}  // namespace

Hash256 hash_of_base(BytesView encoded) { return crypto::blake3(encoded.subspan(head_size)); }

Bytes encode_base(const LogBase& base) {
  Bytes bytes;
  bytes.reserve(head_size + sizeof(base.segment) + sizeof(base.before) + base.content.size());
  layout::put_bytes(bytes, as_bytes(magic));
  layout::put(bytes, Hash256{});
  layout::put(bytes, base.segment);
  layout::put(bytes, base.before);
  layout::put_bytes(bytes, base.content);
  const Hash256 hash = hash_of_base(bytes);
  std::ranges::copy(hash, bytes.begin() + static_cast<std::ptrdiff_t>(magic.size()));
  return bytes;
}

Result<LogBase> decode_base(BytesView encoded) {
  layout::Reader reader(encoded);
  const BytesView start = reader.bytes(magic.size());
  const auto hash = reader.get<Hash256>();
  LogBase base;
  base.segment = reader.get<std::uint32_t>();
  base.before = reader.get<Hash256>();
  const bool good = reader.ok() && as_text(start) == magic && base.segment > 1 && hash_of_base(encoded) == hash;
  if (!good) return Error(Product::metering, ErrorKind::hash_mismatch, "usage log: its base is damaged");
  base.content = to_bytes(reader.bytes(reader.left()));
  base.hash = hash;
  return base;
}

Bytes write_cut_off(const CutOff& cut) {
  Bytes bytes;
  layout::put(bytes, cut.events);
  layout::put(bytes, unix_ns(cut.until));
  layout::put(bytes, cut.defined.subjects);
  layout::put(bytes, cut.defined.attributions);
  layout::put_sized(bytes, cut.beginning);
  layout::put_bytes(bytes, cut.rest);
  return bytes;
}

Result<CutOff> read_cut_off(const LogBase& base) {
  layout::Reader reader(base.content);
  CutOff cut;
  cut.events = reader.get<std::uint64_t>();
  cut.until = from_unix_ns(reader.get<std::int64_t>());
  cut.defined.subjects = reader.get<SubjectNumber>();
  cut.defined.attributions = reader.get<AttributionNumber>();
  cut.beginning = reader.sized();
  if (!reader.ok()) return Error(Product::metering, ErrorKind::hash_mismatch, "usage log: its base cannot be read");
  cut.rest = reader.bytes(reader.left());
  return cut;
}

}  // namespace creto::metering

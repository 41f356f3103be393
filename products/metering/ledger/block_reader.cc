#include "block_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "creto/crypto/hash.h"
#include "creto/crypto/random.h"

namespace creto::metering {

std::uint32_t seconds_of(Instant when) {
  const std::int64_t seconds = unix_ns(when) / 1'000'000'000;
  return static_cast<std::uint32_t>(std::clamp<std::int64_t>(seconds, 0, UINT32_MAX));
}

EventId id_of(const KeyHash& key, std::uint32_t arrived_s) {
  ByteArray<16> id{};
  for (std::size_t i = 0; i < 4; ++i) id[i] = static_cast<std::uint8_t>(arrived_s >> (24 - 8 * i));
  std::memcpy(id.data() + 4, &key.low, 8);
  std::memcpy(id.data() + 12, &key.high, 4);
  id[6] = static_cast<std::uint8_t>(0x80 | (id[6] & 0x0F));
  id[8] = static_cast<std::uint8_t>(0x80 | (id[8] & 0x3F));
  return EventId::from_bytes(id);
}

Error unreadable(BlockAddress block) {
  return Error(Product::metering, ErrorKind::hash_mismatch,
               fmt::format("usage log: block {} of segment {} cannot be read", block.offset, block.segment));
}

Result<KeyHasher> KeyHasher::of_beginning(BlockAddress address, BytesView content) {
  layout::Reader reader(content);
  const auto kind = reader.get<BlockKind>();
  const auto version = reader.get<std::uint32_t>();
  KeyHasher hasher;
  hasher.key_ = reader.get<ByteArray<32>>();
  if (!reader.done() || kind != BlockKind::beginning) return unreadable(address);
  if (version != log_format_version) {
    return Error(Product::metering, ErrorKind::invalid_input,
                 fmt::format("usage log: version {} is not known here", version));
  }
  return hasher;
}

KeyHasher KeyHasher::fresh() {
  KeyHasher hasher;
  crypto::random_fill(hasher.key_);
  return hasher;
}

Bytes KeyHasher::beginning() const {
  Bytes block;
  layout::put(block, BlockKind::beginning);
  layout::put(block, log_format_version);
  layout::put(block, key_);
  return block;
}

KeyHash KeyHasher::hash(std::initializer_list<BytesView> parts) const {
  std::size_t size = 0;
  for (const BytesView part : parts) size += part.size();
  std::array<std::uint8_t, 1024> room;
  Bytes large;
  std::uint8_t* const bytes = size <= room.size() ? room.data() : (large.resize(size), large.data());
  std::uint8_t* at = bytes;
  for (const BytesView part : parts) at = std::ranges::copy(part, at).out;
  const Hash256 hash = crypto::blake3_keyed(key_, {bytes, size});
  KeyHash result;
  std::memcpy(&result.high, hash.data(), 8);
  std::memcpy(&result.low, hash.data() + 8, 8);
  return result;
}

// Sizes before texts: nothing different has the same bytes.
KeyHash KeyHasher::operator()(std::string_view org, std::string_view source, std::string_view key) const {
  const auto sizes = std::array{static_cast<std::uint32_t>(org.size()), static_cast<std::uint32_t>(source.size())};
  const BytesView before{reinterpret_cast<const std::uint8_t*>(sizes.data()), sizeof sizes};
  return hash({before, as_bytes(org), as_bytes(source), as_bytes(key)});
}

KeyHash KeyHasher::of_name(std::string_view org, std::string_view name) const {
  const auto size = static_cast<std::uint32_t>(org.size());
  return hash({{reinterpret_cast<const std::uint8_t*>(&size), sizeof size}, as_bytes(org), as_bytes(name)});
}

KeyHash KeyHasher::operator()(const Subjects& subjects, AttributionNumber attribution, const RecordView& record) const {
  return (*this)(subjects.org_of(attribution), record.source.empty() ? record.agent : record.source, record.key);
}

Result<> BlockReader::head() {
  const auto kind = reader_.get<BlockKind>();
  const auto arrived = reader_.get<std::int64_t>();
  if (!reader_.ok() || kind != BlockKind::events || arrived < 0) return unreadable(address_);
  arrived_ = from_unix_ns(arrived);
  return {};
}

Result<> BlockReader::skip_definitions() {
  defined_ = Subjects::skip(reader_);
  return reader_.ok() ? Result<>() : unreadable(address_);
}

Result<BlockReader::Entry> BlockReader::next(std::uint32_t index, RecordScratch& scratch) {
  Entry entry;
  entry.index = index;
  entry.attribution = reader_.get<AttributionNumber>();
  entry.reporter = reader_.get<SubjectNumber>();
  entry.content = reader_.get<std::uint64_t>();
  const auto flags = reader_.get<std::uint8_t>();
  if ((flags & has_envelope) != 0) entry.id = EventId::from_bytes(reader_.get<ByteArray<16>>());
  const BytesView bytes = reader_.sized();
  if ((flags & has_envelope) != 0) entry.envelope = reader_.text();
  if ((flags & is_correction) != 0) {
    Corrected& corrects = entry.corrects.emplace();
    corrects.place.block.segment = reader_.get<std::uint32_t>();
    corrects.place.block.offset = reader_.get<std::uint32_t>();
    corrects.place.index = reader_.get<std::uint32_t>();
    corrects.counted_at = from_unix_ns(reader_.get<std::int64_t>());
    corrects.attribution = reader_.get<AttributionNumber>();
    corrects.record = reader_.sized();
  }
  const std::string_view cost = (flags & is_priced) != 0 ? reader_.text() : std::string_view();
  const std::string_view currency = (flags & is_priced) != 0 ? reader_.text() : std::string_view();
  if (!reader_.ok() || flags > (has_envelope | is_correction | is_priced)) return unreadable(address_);
  auto record = parse_record(bytes, scratch);
  if (!record) return unreadable(address_);
  entry.record = *std::move(record);
  if ((flags & is_priced) != 0) {
    entry.record.cost = cost;
    entry.record.currency = currency;
  }
  if (entry.corrects && !entry.record.corrects()) return unreadable(address_);
  return entry;
}

Result<std::vector<BlockReader::Proof>> BlockReader::proofs() {
  std::vector<Proof> proofs(reader_.count(16));
  for (Proof& proof : proofs) {
    proof.reporter = reader_.text();
    proof.algorithm = reader_.text();
    proof.signature = reader_.sized();
    proof.leaves.resize(reader_.count(4));
    for (Proof::Leaf& leaf : proof.leaves) {
      leaf.index = reader_.get<std::uint32_t>();
      if (leaf.index == UINT32_MAX) leaf.hash = reader_.get<Hash256>();
    }
  }
  if (!reader_.done()) return unreadable(address_);
  return proofs;
}

}  // namespace creto::metering

#include "decision_cache.h"

#include <bit>
#include <cstring>

#include "creto/crypto/hash.h"

namespace creto::authz {
namespace {

/// For the place in the table alone: a hit compares the whole key.
std::uint64_t mix(std::span<const std::uint64_t> words) {
  std::uint64_t h = 0x9e3779b97f4a7c15u;
  for (const std::uint64_t word : words) {
    const auto product = static_cast<unsigned __int128>(h ^ word) * 0xd6e8feb86659fd93u;
    h = static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64) ^ std::rotl(h, 23);
  }
  return h;
}

constexpr Nanos use_grain = std::chrono::milliseconds(100);

}  // namespace

CacheKey::CacheKey(std::string_view org, std::int64_t state_version, std::span<const std::uint64_t> source_versions,
                   const CheckRequest& request) {
  number(static_cast<std::uint64_t>(state_version));
  for (const std::uint64_t version : source_versions) number(version);
  text(org);
  text(request.principal.text());
  number(request.chain.size());
  for (const Identity& link : request.chain) text(link.text());
  text(request.action);
  text(request.resource.type);
  text(request.resource.id);
  number(request.context.size());
  for (const auto& [name, member] : request.context) {
    text(name);
    value(member);
  }
  seal();
}

void CacheKey::append(const void* data, std::size_t size) {
  if (overflow_.empty() && size_ + size <= sizeof words_ - sizeof(std::uint64_t)) {
    std::memcpy(reinterpret_cast<char*>(words_.data()) + size_, data, size);
    size_ += size;
    return;
  }
  if (overflow_.empty()) {
    const auto* begin = reinterpret_cast<const std::uint8_t*>(words_.data());
    overflow_.assign(begin, begin + size_);
  }
  const auto* begin = static_cast<const std::uint8_t*>(data);
  overflow_.insert(overflow_.end(), begin, begin + size);
}

void CacheKey::value(const Value& value) {
  number(value.rep().index());
  if (const auto* v = value.as<bool>()) return number(*v);
  if (const auto* v = value.as<std::int64_t>()) return number(static_cast<std::uint64_t>(*v));
  if (const auto* v = value.as<std::string>()) return text(*v);
  if (const auto* v = value.as<EntityUid>()) {
    text(v->type);
    return text(v->id);
  }
  if (const auto* v = value.as<DecimalValue>()) return number(static_cast<std::uint64_t>(v->ten_thousandths));
  if (const auto* v = value.as<DatetimeValue>()) return number(static_cast<std::uint64_t>(v->unix_ms));
  if (const auto* v = value.as<DurationValue>()) return number(static_cast<std::uint64_t>(v->ms));
  if (const auto* v = value.as<IpValue>()) {
    number(static_cast<std::uint64_t>(v->v6) << 8 | v->prefix);
    return append(v->address.data(), v->address.size());
  }
  if (const auto* elements = value.as_set()) {
    number(elements->size());
    for (const Value& element : *elements) this->value(element);
    return;
  }
  const Attributes& attributes = *value.as_record();
  number(attributes.size());
  for (const auto& [name, member] : attributes) {
    text(name);
    this->value(member);
  }
}

void CacheKey::seal() {
  // The first word tells a key from the hash of one.
  std::uint64_t kind = 0;
  if (!overflow_.empty()) {
    const Hash256 digest = crypto::blake3(overflow_);
    std::memcpy(words_.data(), digest.data(), digest.size());
    size_ = digest.size();
    kind = 1;
  }
  count_ = (size_ + 7) / 8;
  std::memset(reinterpret_cast<char*>(words_.data()) + size_, 0, count_ * 8 - size_);
  words_[count_++] = kind << 63 | size_;
  hash_ = mix(words());
}

DecisionCache::DecisionCache(std::size_t entries) {
  if (entries == 0) return;
  sets_ = (entries + ways - 1) / ways;
  slots_ = std::make_unique<Slot[]>(sets_ * ways);
}

DecisionCache::Slot* DecisionCache::set_of(const CacheKey& key) const {
  const auto scaled = static_cast<unsigned __int128>(key.hash()) * sets_;
  return &slots_[static_cast<std::size_t>(scaled >> 64) * ways];
}

bool DecisionCache::holds(const Slot& slot, const CacheKey& key, Monotonic now) const {
  const auto words = key.words();
  if (slot.hash.load(std::memory_order_relaxed) != key.hash()) return false;
  const std::uint64_t before = slot.sequence.load(std::memory_order_acquire);
  if (before & 1) return false;
  if (slot.ends_at.load(std::memory_order_acquire) <= now.time_since_epoch().count()) return false;
  if (slot.count.load(std::memory_order_acquire) != words.size()) return false;
  // Acquire loads, so that the sequence is read again only after all of them; on x86 they cost nothing.
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (slot.words[i].load(std::memory_order_acquire) != words[i]) return false;
  }
  return slot.sequence.load(std::memory_order_relaxed) == before;
}

bool DecisionCache::contains(const CacheKey& key, Monotonic now) {
  if (sets_ == 0) return false;
  Slot* set = set_of(key);
  for (std::size_t way = 0; way < ways; ++way) {
    if (!holds(set[way], key, now)) continue;
    const auto tick = now.time_since_epoch().count();
    if (tick - set[way].used_at.load(std::memory_order_relaxed) > use_grain.count()) {
      set[way].used_at.store(tick, std::memory_order_relaxed);
    }
    return true;
  }
  return false;
}

void DecisionCache::insert(const CacheKey& key, Monotonic now, Nanos ttl) {
  if (sets_ == 0) return;
  Slot* set = set_of(key);
  const auto tick = now.time_since_epoch().count();
  Slot* victim = nullptr;
  std::int64_t oldest = INT64_MAX;
  for (std::size_t way = 0; way < ways; ++way) {
    const bool ended = set[way].ends_at.load(std::memory_order_relaxed) <= tick;
    const std::int64_t age = ended ? INT64_MIN : set[way].used_at.load(std::memory_order_relaxed);
    if (!victim || age < oldest) {
      victim = &set[way];
      oldest = age;
    }
  }
  std::uint64_t sequence = victim->sequence.load(std::memory_order_relaxed);
  if (sequence & 1 || !victim->sequence.compare_exchange_strong(sequence, sequence + 1, std::memory_order_acq_rel)) {
    return;
  }
  // Release stores after the odd sequence: a reader that sees any of them sees the odd sequence too.
  const auto words = key.words();
  victim->hash.store(key.hash(), std::memory_order_release);
  victim->count.store(words.size(), std::memory_order_release);
  for (std::size_t i = 0; i < words.size(); ++i) victim->words[i].store(words[i], std::memory_order_release);
  victim->used_at.store(tick, std::memory_order_release);
  victim->ends_at.store(tick + ttl.count(), std::memory_order_release);
  victim->sequence.store(sequence + 2, std::memory_order_release);
}

}  // namespace creto::authz

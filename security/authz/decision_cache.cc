#include "decision_cache.h"

#include <sys/mman.h>

#include <bit>
#include <cstring>

#include "creto/common/assert.h"
#include "creto/crypto/hash.h"
#include "hash.h"

namespace creto::authz {
namespace {

/// For the place in the table alone: a hit compares the whole key. Four chains, because one would wait for itself.
std::uint64_t mix(const std::uint64_t* word, std::size_t count) {
  std::uint64_t a = 0xd6e8feb86659fd93u, b = 0xa0761d6478bd642fu, c = 0xe7037ed1a0b428dbu, d = 0x8ebc6af09c88c6e3u;
  const std::uint64_t* const end = word + count;
  for (; end - word >= 4; word += 4) {
    a = fold(a ^ word[0], 0xd6e8feb86659fd93u) ^ std::rotl(a, 23);
    b = fold(b ^ word[1], 0xa0761d6478bd642fu) ^ std::rotl(b, 23);
    c = fold(c ^ word[2], 0xe7037ed1a0b428dbu) ^ std::rotl(c, 23);
    d = fold(d ^ word[3], 0x8ebc6af09c88c6e3u) ^ std::rotl(d, 23);
  }
  for (; word != end; ++word) a = fold(a ^ *word, 0xd6e8feb86659fd93u) ^ std::rotl(a, 23);
  return fold(a ^ std::rotl(b, 16), c ^ std::rotl(d, 32) ^ count);
}

constexpr std::size_t huge_page = 2 << 20;
constexpr Nanos use_grain = std::chrono::milliseconds(100);

}  // namespace

CacheKey::CacheKey(std::string_view org, std::int64_t state_version, std::span<const std::uint64_t> source_versions,
                   const CheckRequest& request) {
  number(static_cast<std::uint64_t>(state_version));
  for (const std::uint64_t version : source_versions) number(version);
  text(org);
  number(request.chain.size());
  for (const Identity& link : request.chain) text(link.text());
  // Nearly always the last of the chain, and then said already.
  const bool acts_itself = !request.chain.empty() && request.chain.back() == request.principal;
  number(acts_itself);
  if (!acts_itself) text(request.principal.text());
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

void CacheKey::text(std::string_view text) {
  number(text.size());
  const char* from = text.data();
  std::size_t left = text.size();
  while (left > 0) {
    if (count_ == words_max - 1) spill();
    // The rest of the block at once: pointers, because a checked index for each word costs more than the copy.
    std::uint64_t* to = words_.data() + count_;
    std::uint64_t* const end = words_.data() + words_max - 1;
    for (; left >= 8 && to != end; left -= 8, from += 8) std::memcpy(to++, from, 8);
    if (left > 0 && left < 8 && to != end) {
      *to = 0;
      std::memcpy(to++, from, left);
      left = 0;
    }
    count_ = static_cast<std::size_t>(to - words_.data());
  }
}

void CacheKey::spill() {
  const auto* begin = reinterpret_cast<const std::uint8_t*>(words_.data());
  spilt_.insert(spilt_.end(), begin, begin + count_ * sizeof(std::uint64_t));
  count_ = 0;
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
    return text({reinterpret_cast<const char*>(v->address.data()), v->address.size()});
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
  // The last word tells a key from the hash of one.
  const bool hashed = !spilt_.empty();
  if (hashed) {
    spill();
    const Hash256 digest = crypto::blake3(spilt_);
    std::memcpy(words_.data(), digest.data(), digest.size());
    count_ = digest.size() / sizeof(std::uint64_t);
  }
  words_[count_++] = hashed;
  hash_ = mix(words_.data(), count_);
}

BytesView CacheKey::written() const {
  if (!spilt_.empty()) return spilt_;
  // Without the last word, which is no part of the request.
  return {reinterpret_cast<const std::uint8_t*>(words_.data()), (count_ - 1) * sizeof(std::uint64_t)};
}

namespace {

/// Reads what `CacheKey` wrote. Whoever breaks that breaks our own memory, so there is nothing to refuse.
class KeyReader {
 public:
  explicit KeyReader(BytesView written) : rest_(written) {}

  std::uint64_t number() {
    std::uint64_t value = 0;
    CRETO_ASSERT(rest_.size() >= sizeof(value));
    std::memcpy(&value, rest_.data(), sizeof(value));
    rest_ = rest_.subspan(sizeof(value));
    return value;
  }
  std::string_view text() {
    const std::size_t size = number();
    const std::size_t padded = (size + 7) / 8 * 8;
    CRETO_ASSERT(size <= rest_.size() && padded <= rest_.size());
    const std::string_view text = as_text(rest_.first(size));
    rest_ = rest_.subspan(padded);
    return text;
  }
  Attributes attributes() {
    Attributes all(number(), {std::string(), Value(false)});
    for (auto& [name, member] : all) {
      name = text();
      member = value();
    }
    return all;
  }
  Value value() {
    const std::size_t kind = number();
    if (kind == index<bool>()) return Value(number() != 0);
    if (kind == index<std::int64_t>()) return Value(static_cast<std::int64_t>(number()));
    if (kind == index<std::string>()) return Value(text());
    if (kind == index<EntityUid>()) {
      EntityUid uid{std::string(text()), {}};
      uid.id = text();
      return Value(std::move(uid));
    }
    if (kind == index<DecimalValue>()) return Value(DecimalValue{static_cast<std::int64_t>(number())});
    if (kind == index<DatetimeValue>()) return Value(DatetimeValue{static_cast<std::int64_t>(number())});
    if (kind == index<DurationValue>()) return Value(DurationValue{static_cast<std::int64_t>(number())});
    if (kind == index<IpValue>()) {
      const std::uint64_t head = number();
      IpValue ip{.v6 = head >> 8 != 0, .prefix = static_cast<std::uint8_t>(head), .address = {}};
      const std::string_view address = text();
      CRETO_ASSERT(address.size() == ip.address.size());
      std::memcpy(ip.address.data(), address.data(), address.size());
      return Value(ip);
    }
    if (kind == index<std::shared_ptr<const Value::SetBox>>()) {
      std::vector<Value> elements(number(), Value(false));
      for (Value& element : elements) element = value();
      return Value::set(std::move(elements));
    }
    CRETO_ASSERT(kind == index<std::shared_ptr<const Value::RecordBox>>());
    return Value::record(attributes());
  }

 private:
  /// Where `T` stands among the alternatives.
  template <class T, std::size_t At = 0>
  static constexpr std::size_t index() {
    if constexpr (std::is_same_v<T, std::variant_alternative_t<At, Value::Rep>>)
      return At;
    else
      return index<T, At + 1>();
  }
  BytesView rest_;
};

}  // namespace

std::pair<std::string_view, std::int64_t> DecodedKey::place_of(BytesView written, std::size_t source_versions) {
  const auto version = static_cast<std::int64_t>(KeyReader(written).number());
  return {KeyReader(written.subspan(versions_size(source_versions))).text(), version};
}

DecodedKey DecodedKey::of(BytesView written, std::size_t source_versions) {
  KeyReader reader(written);
  DecodedKey key;
  key.state_version = static_cast<std::int64_t>(reader.number());
  for (std::size_t i = 0; i < source_versions; ++i) (void)reader.number();
  key.org = reader.text();
  key.chain.resize(reader.number());
  for (std::string_view& link : key.chain) link = reader.text();
  const bool acts_itself = reader.number() != 0;
  key.principal = acts_itself ? key.chain.back() : reader.text();
  key.action = reader.text();
  key.resource_type = reader.text();
  key.resource_id = reader.text();
  key.context = reader.attributes();
  return key;
}

DecisionCache::DecisionCache(std::size_t entries) {
  if (entries == 0) return;
  // With a third of the slots to spare, hardly any key finds both its sets full.
  count_ = (entries + entries / 2 + ways - 1) / ways;
  sets_ = std::make_unique<Set[]>(count_);
  // Megabytes that are read at random: with pages of 4 KiB most of a lookup would go into finding the page.
  const std::size_t bytes = (count_ * ways * sizeof(Slot) + huge_page - 1) / huge_page * huge_page;
  void* memory = std::aligned_alloc(huge_page, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  (void)::madvise(memory, bytes, MADV_HUGEPAGE);
  slots_.reset(static_cast<Slot*>(memory));
  std::uninitialized_default_construct_n(slots_.get(), count_ * ways);
}

std::array<std::size_t, 2> DecisionCache::sets_of(const CacheKey& key) const {
  const auto scaled = [this](std::uint64_t hash) {
    return static_cast<std::size_t>(static_cast<unsigned __int128>(hash) * count_ >> 64);
  };
  return {scaled(key.hash()), scaled(std::rotl(key.hash(), 32))};
}

std::optional<CacheNote> DecisionCache::read(const Slot& slot, const CacheKey& key, Monotonic now) {
  const auto words = key.words();
  const std::uint64_t before = slot.sequence.load(std::memory_order_acquire);
  if (before & 1) return std::nullopt;
  if (slot.ends_at.load(std::memory_order_acquire) <= now.time_since_epoch().count()) return std::nullopt;
  if (slot.count.load(std::memory_order_acquire) != words.size()) return std::nullopt;
  const CacheNote note{slot.rate.load(std::memory_order_acquire), slot.entities.load(std::memory_order_acquire),
                       slot.policy.load(std::memory_order_acquire)};
  // Acquire loads, so that the sequence is read again only after all of them; on x86 they cost nothing.
  const std::atomic<std::uint64_t>* kept = slot.words.data();
  std::uint64_t different = 0;
  for (const std::uint64_t word : words) different |= word ^ (kept++)->load(std::memory_order_acquire);
  if (different != 0 || slot.sequence.load(std::memory_order_relaxed) != before) return std::nullopt;
  return note;
}

std::optional<CacheNote> DecisionCache::find(const CacheKey& key, Monotonic now) {
  if (count_ == 0) return std::nullopt;
  for (const std::size_t set : sets_of(key)) {
    for (std::size_t way = 0; way < ways; ++way) {
      if (sets_[set].hashes[way].load(std::memory_order_relaxed) != key.hash()) continue;
      Slot& slot = slots_[set * ways + way];
      const auto note = read(slot, key, now);
      if (!note) continue;
      const auto tick = now.time_since_epoch().count();
      if (tick - slot.used_at.load(std::memory_order_relaxed) > use_grain.count()) {
        slot.used_at.store(tick, std::memory_order_relaxed);
      }
      return note;
    }
  }
  return std::nullopt;
}

void DecisionCache::insert(const CacheKey& key, Monotonic now, Nanos ttl, CacheNote note) {
  if (count_ == 0) return;
  const auto tick = now.time_since_epoch().count();
  std::size_t victim = 0;
  std::int64_t oldest = INT64_MAX;
  for (const std::size_t set : sets_of(key)) {
    for (std::size_t at = set * ways; at < (set + 1) * ways; ++at) {
      const bool ended = slots_[at].ends_at.load(std::memory_order_relaxed) <= tick;
      const std::int64_t age = ended ? INT64_MIN : slots_[at].used_at.load(std::memory_order_relaxed);
      if (age >= oldest) continue;
      victim = at;
      oldest = age;
    }
  }
  Slot& slot = slots_[victim];
  std::uint64_t sequence = slot.sequence.load(std::memory_order_relaxed);
  if (sequence & 1 || !slot.sequence.compare_exchange_strong(sequence, sequence + 1, std::memory_order_acq_rel)) {
    return;
  }
  // Release stores after the odd sequence: a reader that sees any of them sees the odd sequence too. The hash only says
  // where to look.
  const auto words = key.words();
  sets_[victim / ways].hashes[victim % ways].store(key.hash(), std::memory_order_relaxed);
  slot.count.store(words.size(), std::memory_order_release);
  slot.rate.store(note.rate, std::memory_order_release);
  slot.entities.store(note.entities, std::memory_order_release);
  slot.policy.store(note.policy, std::memory_order_release);
  for (std::size_t i = 0; i < words.size(); ++i) slot.words[i].store(words[i], std::memory_order_release);
  slot.used_at.store(tick, std::memory_order_release);
  slot.ends_at.store(tick + ttl.count(), std::memory_order_release);
  slot.sequence.store(sequence + 2, std::memory_order_release);
}

}  // namespace creto::authz

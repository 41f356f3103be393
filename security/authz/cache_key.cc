#include "cache_key.h"

#include "creto/common/assert.h"
#include "creto/crypto/hash.h"

namespace creto::authz {
namespace {

// The top byte of a word that begins a text or a value: a short text's size, a long one's mark, or a value's kind.

constexpr std::uint64_t mark_of(std::size_t kind) { return (16 + std::uint64_t{kind}) << 56; }
/// A number that does not fit under its mark is the next word.
constexpr std::uint64_t wide_mark = std::uint64_t{32} << 56;
static_assert(mark_of(std::variant_size_v<Value::Rep> - 1) < wide_mark);

}  // namespace

CacheKey::CacheKey(std::string_view org, std::int64_t state_version, std::span<const std::uint64_t> source_versions,
                   const CheckRequest& request) {
  Cursor to = number(words_.data(), static_cast<std::uint64_t>(state_version));
  for (const std::uint64_t version : source_versions) to = number(to, version);
  to = text(to, org);
  // Nearly always the last of the chain, and then said already.
  const bool acts_itself = !request.chain.empty() && request.chain.back() == request.principal;
  to = number(to, request.chain.size() << 1 | acts_itself);
  for (const Identity& link : request.chain) to = text(to, link.text());
  if (!acts_itself) to = text(to, request.principal.text());
  to = text(to, request.action);
  to = text(to, request.resource.type);
  to = text(to, request.resource.id);
  to = number(to, request.context.size());
  for (const auto& [name, member] : request.context) {
    to = text(to, name);
    to = value(to, member);
  }
  seal(to);
}

CacheKey::Cursor CacheKey::long_text(Cursor to, std::string_view text) {
  to = number(to, text.size() | long_mark);
  const char* from = text.data();
  const char* const end = from + text.size();
  for (; end - from >= 8; from += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, from, 8);
    to = number(to, word);
  }
  return from == end ? to : number(to, last_word(end, text.size()));
}

CacheKey::Cursor CacheKey::spill(Cursor to) {
  const auto* begin = reinterpret_cast<const std::uint8_t*>(words_.data());
  spilt_.insert(spilt_.end(), begin, reinterpret_cast<const std::uint8_t*>(to));
  return words_.data();
}

CacheKey::Cursor CacheKey::scalar(Cursor to, std::uint64_t mark, std::int64_t value) {
  const auto bits = static_cast<std::uint64_t>(value);
  if (static_cast<std::int64_t>(bits << 8) >> 8 == value) return number(to, mark | (bits << 8 >> 8));
  return number(number(to, mark | wide_mark), bits);
}

CacheKey::Cursor CacheKey::value(Cursor to, const Value& value) {
  if (const auto* v = value.as<std::string>()) return text(to, *v);
  const std::uint64_t mark = mark_of(value.rep().index());
  if (const auto* v = value.as<bool>()) return scalar(to, mark, *v);
  if (const auto* v = value.as<std::int64_t>()) return scalar(to, mark, *v);
  if (const auto* v = value.as<EntityUid>()) return text(text(number(to, mark), v->type), v->id);
  if (const auto* v = value.as<DecimalValue>()) return scalar(to, mark, v->ten_thousandths);
  if (const auto* v = value.as<DatetimeValue>()) return scalar(to, mark, v->unix_ms);
  if (const auto* v = value.as<DurationValue>()) return scalar(to, mark, v->ms);
  if (const auto* v = value.as<IpValue>()) {
    to = number(to, mark | static_cast<std::uint64_t>(v->v6) << 8 | v->prefix);
    return text(to, {reinterpret_cast<const char*>(v->address.data()), v->address.size()});
  }
  if (const auto* elements = value.as_set()) {
    to = number(to, mark | elements->size());
    for (const Value& element : *elements) to = this->value(to, element);
    return to;
  }
  const Attributes& attributes = *value.as_record();
  to = number(to, mark | attributes.size());
  for (const auto& [name, member] : attributes) to = this->value(text(to, name), member);
  return to;
}

void CacheKey::seal(Cursor to) {
  const bool hashed = !spilt_.empty();
  if (hashed) {
    spill(to);
    const Hash256 digest = crypto::blake3(spilt_);
    std::memcpy(words_.data(), digest.data(), digest.size());
    to = words_.data() + digest.size() / sizeof(std::uint64_t);
  }
  *to++ = hashed;
  *to = 0;
  count_ = static_cast<std::size_t>(to - words_.data());
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
    const char* const word = as_text(rest_).data();
    const std::uint64_t head = number();
    if (head < CacheKey::long_mark) return {word, head >> 56};
    const std::size_t size = head & ~CacheKey::long_mark;
    const std::size_t padded = (size + 7) / 8 * 8;
    CRETO_ASSERT(size <= rest_.size() && padded <= rest_.size());
    const std::string_view text = as_text(rest_.first(size));
    rest_ = rest_.subspan(padded);
    return text;
  }
  Attributes attributes(std::size_t count) {
    Attributes all(count, {std::string(), Value(false)});
    for (auto& [name, member] : all) {
      name = text();
      member = value();
    }
    return all;
  }
  Value value() {
    KeyReader ahead(rest_);
    const std::uint64_t head = ahead.number();
    if (head < mark_of(0)) return Value(text());
    rest_ = ahead.rest_;
    const std::size_t kind = (head >> 56) % (wide_mark >> 56) - (mark_of(0) >> 56);
    const auto rest = static_cast<std::int64_t>(head << 8) >> 8;
    const auto scalar = [&] { return head & wide_mark ? static_cast<std::int64_t>(number()) : rest; };
    const auto count = static_cast<std::size_t>(rest);
    if (kind == index<bool>()) return Value(scalar() != 0);
    if (kind == index<std::int64_t>()) return Value(scalar());
    if (kind == index<EntityUid>()) {
      EntityUid uid{std::string(text()), {}};
      uid.id = text();
      return Value(std::move(uid));
    }
    if (kind == index<DecimalValue>()) return Value(DecimalValue{scalar()});
    if (kind == index<DatetimeValue>()) return Value(DatetimeValue{scalar()});
    if (kind == index<DurationValue>()) return Value(DurationValue{scalar()});
    if (kind == index<IpValue>()) {
      IpValue ip{.v6 = count >> 8 != 0, .prefix = static_cast<std::uint8_t>(count), .address = {}};
      const std::string_view address = text();
      CRETO_ASSERT(address.size() == ip.address.size());
      std::memcpy(ip.address.data(), address.data(), address.size());
      return Value(ip);
    }
    if (kind == index<std::shared_ptr<const Value::SetBox>>()) {
      std::vector<Value> elements(count, Value(false));
      for (Value& element : elements) element = value();
      return Value::set(std::move(elements));
    }
    CRETO_ASSERT(kind == index<std::shared_ptr<const Value::RecordBox>>());
    return Value::record(attributes(count));
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
  const std::uint64_t chain = reader.number();
  const bool acts_itself = (chain & 1) != 0;
  key.chain.resize(chain >> 1);
  for (std::string_view& link : key.chain) link = reader.text();
  key.principal = acts_itself ? key.chain.back() : reader.text();
  key.action = reader.text();
  key.resource_type = reader.text();
  key.resource_id = reader.text();
  key.context = reader.attributes(reader.number());
  return key;
}

}  // namespace creto::authz

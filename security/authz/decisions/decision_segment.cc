#include "decisions/decision_segment.h"

#include <fmt/format.h>

#include <algorithm>

#include "cedar/format.h"
#include "check_request.h"
#include "creto/common/assert.h"

namespace creto::authz {
namespace {

constexpr std::uint64_t format_version = 1;
constexpr std::size_t value_depth_max = 64;
/// A block ends at the first item behind so many bytes: a journal's record has a limit, what is in force may be large.
constexpr std::size_t piece_bytes = 1 << 20;
constexpr std::size_t names_max = 100'000;
constexpr std::size_t names_bytes_max = 32 << 20;

enum class Kind : std::uint8_t { no, yes, integer, text, entity, set, record, decimal, ip, datetime, duration };

// Of a decision.
constexpr std::uint8_t cached_bit = 1 << 6;
constexpr std::uint8_t more_bit = 1 << 7;
constexpr std::uint8_t said_bit = 1 << 0;
constexpr std::uint8_t arguments_bit = 1 << 1;
constexpr std::uint8_t policies_bit = 1 << 2;
constexpr std::uint8_t lifts_bit = 1 << 3;
constexpr std::uint8_t reason_bit = 1 << 4;

Error bad(std::string message) {
  return Error(Product::platform, ErrorKind::invalid_input, "decision log: " + std::move(message));
}

void put_number(Bytes& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<std::uint8_t>(value | 0x80));
  out.push_back(static_cast<std::uint8_t>(value));
}
void put_signed(Bytes& out, std::int64_t value) {
  put_number(out, static_cast<std::uint64_t>(value) << 1 ^ static_cast<std::uint64_t>(value >> 63));
}
void put_bytes(Bytes& out, BytesView bytes) { out.insert(out.end(), bytes.begin(), bytes.end()); }

std::size_t depth(const Value& value) {
  std::size_t deepest = 0;
  if (const auto* elements = value.as_set())
    for (const Value& element : *elements) deepest = std::max(deepest, depth(element));
  if (const auto* members = value.as_record())
    for (const auto& [name, member] : *members) deepest = std::max(deepest, depth(member));
  return deepest + 1;
}

}  // namespace

std::string_view to_string(DecidedBy by) {
  static constexpr std::string_view names[] = {"policies", "extension", "token", "request", "trouble", "rate"};
  return names[static_cast<std::size_t>(by)];
}

std::string_view to_string(Outcome outcome) {
  static constexpr std::string_view names[] = {"allow", "deny", "requires_oversight", "quota_exceeded", "rate_limited"};
  return names[static_cast<std::size_t>(outcome)];
}

// --- writing
// -----------------------------------------------------------------------------------------------------------

SegmentWriter::SegmentWriter(const ByteArray<16>& log, std::uint64_t sequence, Instant created) {
  begin(Item::header);
  number(format_version);
  put_bytes(block_, log);
  number(sequence);
  signed_number(unix_ns(created));
}

const std::uint32_t* SegmentWriter::Numbers::find(std::string_view written) const {
  const auto known = known_.find(written);
  return known == known_.end() ? nullptr : &known->second;
}

void SegmentWriter::Numbers::add(std::string_view written, std::uint32_t number) {
  bytes_ += written.size();
  if (known_.size() >= names_max || bytes_ > names_bytes_max) {
    known_.clear();
    bytes_ = written.size();
  }
  known_.emplace(written, number);
}

void SegmentWriter::begin(Item item) {
  if (block_.size() - (cuts_.empty() ? 0 : cuts_.back()) >= piece_bytes) cuts_.push_back(block_.size());
  number(static_cast<std::uint64_t>(item));
}

void SegmentWriter::number(std::uint64_t value) { put_number(block_, value); }
void SegmentWriter::signed_number(std::int64_t value) { put_signed(block_, value); }

std::uint32_t SegmentWriter::text(std::string_view text) {
  if (const auto* known = texts_.find(text)) return *known;
  begin(Item::text);
  number(text.size());
  put_bytes(block_, as_bytes(text));
  texts_.add(text, text_count_);
  return text_count_++;
}

// Items that others refer to go to `block_` at once; so whoever encodes an item collects it in a buffer of its own
// until everything it names is written.

void SegmentWriter::encode(Bytes& out, const EntityUid& uid) {
  put_number(out, text(uid.type));
  put_number(out, text(uid.id));
}

void SegmentWriter::encode(Bytes& out, const Attributes& attributes) {
  put_number(out, attributes.size());
  for (const auto& [name, member] : attributes) {
    put_number(out, text(name));
    encode(out, member);
  }
}

void SegmentWriter::encode(Bytes& out, const Value& value) {
  const auto kind = [&out](Kind kind) { out.push_back(static_cast<std::uint8_t>(kind)); };
  if (const auto* v = value.as<bool>()) return kind(*v ? Kind::yes : Kind::no);
  if (const auto* v = value.as<std::int64_t>()) {
    kind(Kind::integer);
    return put_signed(out, *v);
  }
  if (const auto* v = value.as<std::string>()) {
    kind(Kind::text);
    return put_number(out, text(*v));
  }
  if (const auto* v = value.as<EntityUid>()) {
    kind(Kind::entity);
    return encode(out, *v);
  }
  if (const auto* v = value.as<DecimalValue>()) {
    kind(Kind::decimal);
    return put_signed(out, v->ten_thousandths);
  }
  if (const auto* v = value.as<DatetimeValue>()) {
    kind(Kind::datetime);
    return put_signed(out, v->unix_ms);
  }
  if (const auto* v = value.as<DurationValue>()) {
    kind(Kind::duration);
    return put_signed(out, v->ms);
  }
  if (const auto* v = value.as<IpValue>()) {
    kind(Kind::ip);
    out.push_back(v->v6 ? 6 : 4);
    out.push_back(v->prefix);
    return put_bytes(out, v->address);
  }
  if (const auto* elements = value.as_set()) {
    kind(Kind::set);
    put_number(out, elements->size());
    for (const Value& element : *elements) encode(out, element);
    return;
  }
  kind(Kind::record);
  encode(out, *value.as_record());
}

std::uint32_t SegmentWriter::entity(const Entity& entity) {
  const auto in_order = [](const Attributes& members) {
    return std::adjacent_find(members.begin(), members.end(),
                              [](const auto& a, const auto& b) { return a.first >= b.first; }) == members.end();
  };
  if (!in_order(entity.attributes) || !in_order(entity.tags)) {
    Entity sorted = entity;
    cedar::normalise(sorted);
    return this->entity(sorted);
  }
  Bytes body;
  encode(body, entity.uid);
  encode(body, entity.attributes);
  encode(body, entity.tags);
  put_number(body, entity.parents.size());
  for (const EntityUid& parent : entity.parents) encode(body, parent);
  const std::string_view written = as_text(body);
  if (const auto* known = entities_.find(written)) return *known;
  begin(Item::entity);
  put_bytes(block_, body);
  entities_.add(written, entity_count_);
  return entity_count_++;
}

std::uint32_t SegmentWriter::state(Org& all, std::string_view org, std::int64_t version,
                                   const LoggedDecision& decision) {
  auto& versions = decision.state_unknown ? all.unknown : all.versions;
  if (const auto at = versions.find(version); at != versions.end()) return at->second;

  std::vector<std::uint32_t> policies_added, policies_removed, entities_added, entities_removed;
  const std::uint64_t round = ++all.round;
  const auto see = [round](Known& known, std::vector<std::uint32_t>& added) {
    if (!known.present) added.push_back(known.number);
    known.present = true;
    known.seen = round;
  };
  const auto drop_unseen = [round](auto& table, std::vector<std::uint32_t>& removed) {
    for (auto& [address, known] : table) {
      if (!known.present || known.seen == round) continue;
      known.present = false;
      removed.push_back(known.number);
    }
    std::sort(removed.begin(), removed.end());
  };
  if (!decision.state_unknown) {
    if (decision.state) {
      for (const auto& policy : decision.state->policies.sorted()) {
        if (!policy->decides()) continue;
        Known& known = all.policies[static_cast<const cedar::PlannedPolicy*>(policy->planned.get())];
        if (!known.kept) {
          // What decided is logged: of a link the policy that its template has become.
          const std::string linked = policy->link ? cedar::to_text(policy->planned->ast) : std::string();
          const std::uint32_t name = text(policy->planned->id);
          const std::uint32_t source = text(policy->link ? linked : policy->stored.text);
          begin(Item::policy);
          number(name);
          number(source);
          known = {.kept = policy->planned, .number = policy_count_++};
        }
        see(known, policies_added);
      }
      const cedar::EntityStore& store = decision.state->entities;
      for (cedar::EntityId id = 0; id < store.names(); ++id) {
        const auto& stored = store.node(id).entity;
        if (!stored) continue;
        Known& known = all.entities[stored.get()];
        if (!known.kept) known = {.kept = stored, .number = entity(*stored)};
        see(known, entities_added);
      }
    }
    drop_unseen(all.policies, policies_removed);
    drop_unseen(all.entities, entities_removed);
  }
  const std::uint32_t name = text(org);
  begin(Item::state);
  number(name);
  signed_number(version);
  number(decision.state_unknown ? 1 : 0);
  if (!decision.state_unknown) {
    number(all.last ? *all.last + 1 : 0);
    for (const auto* list : {&policies_removed, &policies_added, &entities_removed, &entities_added}) {
      number(list->size());
      for (const std::uint32_t one : *list) number(one);
    }
    all.last = state_count_;
  }
  return versions.emplace(version, state_count_++).first->second;
}

std::uint32_t SegmentWriter::source_set(std::uint64_t name, const SourceEntities* entities) {
  if (name == 0 || !entities) return 0;
  if (const auto known = sets_.find(name); known != sets_.end()) return known->second;
  if (sets_.size() >= names_max) sets_.clear();
  std::vector<std::uint32_t> numbers;
  numbers.reserve(entities->size());
  for (const Entity& one : *entities) numbers.push_back(entity(one));
  begin(Item::set);
  number(numbers.size());
  for (const std::uint32_t one : numbers) number(one);
  return sets_[name] = ++set_count_;
}

std::uint32_t SegmentWriter::chain(const DecodedKey& key) {
  Bytes body;
  put_number(body, text(key.principal));
  put_number(body, key.chain.size());
  for (const std::string_view link : key.chain) put_number(body, text(link));
  const std::string_view written = as_text(body);
  if (const auto* known = chains_.find(written)) return *known;
  begin(Item::chain);
  put_bytes(block_, body);
  chains_.add(written, chain_count_);
  return chain_count_++;
}

std::uint32_t SegmentWriter::request(const LoggedDecision& decision) {
  // The versions before it change without the request.
  std::string_view name = as_text(decision.key);
  name.remove_prefix(DecodedKey::versions_size(decision.source_versions));
  // A request whose context was left out is another than one that has none.
  std::string marked;
  if (decision.context_left_out) name = marked = std::string(name) + "-";
  if (const auto* known = requests_.find(name)) return *known;

  DecodedKey key = DecodedKey::of(decision.key, decision.source_versions);
  Bytes body;
  put_number(body, text(key.org));
  put_number(body, chain(key));
  put_number(body, text(key.action));
  put_number(body, text(key.resource_type));
  put_number(body, text(key.resource_id));
  std::erase_if(key.context, [](const auto& member) { return member.first == "delegation"; });
  const Value context = Value::record(std::move(key.context));
  const bool left_out = decision.context_left_out || depth(context) > value_depth_max;
  body.push_back(left_out ? 1 : 0);
  encode(body, left_out ? Attributes() : *context.as_record());
  begin(Item::request);
  number(body.size());
  put_bytes(block_, body);
  requests_.add(name, request_count_);
  return request_count_++;
}

void SegmentWriter::add(const LoggedDecision& decision) {
  const auto [org, version] = DecodedKey::place_of(decision.key, decision.source_versions);
  const std::uint32_t asked = request(decision);
  auto known = orgs_.find(org);
  if (known == orgs_.end()) known = orgs_.emplace(std::string(org), Org()).first;
  Org& own = known->second;
  const std::uint32_t state = this->state(own, org, version, decision);
  const std::uint32_t set = source_set(decision.entities, decision.source_entities);
  // One that is not known is of a state that was loaded twice: better unnamed than named wrongly.
  const auto policy_number = [&own](const cedar::PlannedPolicy* policy) {
    const auto at = own.policies.find(policy);
    return at == own.policies.end() ? 0 : at->second.number + 1;
  };
  std::vector<std::pair<std::uint32_t, std::uint32_t>> lifts;
  lifts.reserve(decision.lifts.size());
  for (const auto& lift : decision.lifts) {
    const std::uint32_t forbid = text(lift.forbid);
    lifts.emplace_back(forbid, text(lift.oversight_policy));
  }
  const std::uint32_t reason = decision.reason.empty() ? 0 : text(decision.reason);

  std::uint8_t more = 0;
  if (decision.said != decision.outcome) more |= said_bit;
  if (decision.arguments_hash) more |= arguments_bit;
  if (decision.policies.size() > 1) more |= policies_bit;
  if (!lifts.empty()) more |= lifts_bit;
  if (!decision.reason.empty()) more |= reason_bit;
  begin(Item::decision);
  block_.push_back(static_cast<std::uint8_t>(static_cast<unsigned>(decision.outcome) |
                                             static_cast<unsigned>(decision.by) << 3 |
                                             (decision.cached ? cached_bit : 0) | (more != 0 ? more_bit : 0)));
  signed_number(unix_ns(decision.at) - unix_ns(last_at_));
  last_at_ = decision.at;
  number(asked);
  number(state);
  number(set);
  number(decision.policies.empty() ? 0 : policy_number(decision.policies.front()));
  if (more != 0) block_.push_back(more);
  if (more & said_bit) block_.push_back(static_cast<std::uint8_t>(decision.said));
  if (more & arguments_bit) put_bytes(block_, *decision.arguments_hash);
  if (more & policies_bit) {
    number(decision.policies.size() - 1);
    for (std::size_t i = 1; i < decision.policies.size(); ++i) number(policy_number(decision.policies[i]));
  }
  if (more & lifts_bit) {
    number(lifts.size());
    for (const auto& [forbid, oversight_policy] : lifts) {
      number(forbid);
      number(oversight_policy);
    }
  }
  if (more & reason_bit) number(reason);
  ++decisions_;
}

void SegmentWriter::add_refused(std::uint64_t count) {
  begin(Item::refused);
  number(count);
}

void SegmentWriter::add_end(bool recovered) {
  begin(Item::end);
  number(recovered ? 1 : 0);
}

std::vector<Bytes> SegmentWriter::take() {
  std::vector<Bytes> blocks;
  cuts_.push_back(block_.size());
  std::size_t from = 0;
  for (const std::size_t to : std::exchange(cuts_, {})) {
    if (to > from) blocks.push_back(to_bytes(BytesView(block_).subspan(from, to - from)));
    from = to;
  }
  block_.clear();
  return blocks;
}

// --- reading
// -----------------------------------------------------------------------------------------------------------

/// Reads on after a mistake, giving zeros; whoever uses it asks `failed` before believing anything.
class SegmentReader::Cursor {
 public:
  Cursor(BytesView bytes, const SegmentReader& reader) : rest_(bytes), reader_(reader) {}

  bool failed() const { return failed_; }
  bool at_end() const { return rest_.empty(); }
  std::size_t left() const { return rest_.size(); }
  void fail() {
    failed_ = true;
    rest_ = {};
  }

  std::uint8_t byte() {
    if (rest_.empty()) {
      fail();
      return 0;
    }
    const std::uint8_t byte = rest_.front();
    rest_ = rest_.subspan(1);
    return byte;
  }
  std::uint64_t number() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const std::uint8_t next = byte();
      value |= static_cast<std::uint64_t>(next & 0x7f) << shift;
      if (next < 0x80) return value;
    }
    fail();
    return 0;
  }
  std::int64_t signed_number() {
    const std::uint64_t value = number();
    return static_cast<std::int64_t>(value >> 1 ^ (~(value & 1) + 1));
  }
  /// A number below `end`.
  std::uint32_t below(std::size_t end) {
    const std::uint64_t value = number();
    if (value < end) return static_cast<std::uint32_t>(value);
    fail();
    return 0;
  }
  /// Of things that take a byte or more each.
  std::size_t count() {
    const std::uint64_t value = number();
    if (value <= rest_.size()) return value;
    fail();
    return 0;
  }
  BytesView bytes(std::size_t size) {
    if (size > rest_.size()) {
      fail();
      return {};
    }
    const BytesView bytes = rest_.first(size);
    rest_ = rest_.subspan(size);
    return bytes;
  }
  std::string_view text() {
    const std::uint32_t at = below(reader_.texts_.size());
    return failed_ ? std::string_view() : reader_.texts_[at];
  }
  void uid(EntityUid& into) {
    into.type = text();
    into.id = text();
  }
  void list(std::vector<std::uint32_t>& into, std::size_t end) {
    into.clear();
    const std::size_t size = count();
    for (std::size_t i = 0; i < size && !failed_; ++i) into.push_back(below(end));
  }
  void attributes(Attributes& into, std::size_t depth = 0) {
    const std::size_t size = count();
    into.clear();
    for (std::size_t i = 0; i < size && !failed_; ++i) {
      std::string_view name = text();
      into.emplace_back(std::string(name), value(depth));
    }
    // In order and without repetition: the engine relies on it.
    for (std::size_t i = 1; i < into.size(); ++i)
      if (into[i - 1].first >= into[i].first) fail();
  }
  Value value(std::size_t depth) {
    if (depth > value_depth_max) fail();
    switch (static_cast<Kind>(byte())) {
      case Kind::no:
        return Value(false);
      case Kind::yes:
        return Value(true);
      case Kind::integer:
        return Value(signed_number());
      case Kind::text:
        return Value(text());
      case Kind::entity: {
        EntityUid named;
        uid(named);
        return Value(std::move(named));
      }
      case Kind::set: {
        std::vector<Value> elements;
        const std::size_t size = count();
        for (std::size_t i = 0; i < size && !failed_; ++i) elements.push_back(value(depth + 1));
        return Value::set(std::move(elements));
      }
      case Kind::record: {
        Attributes members;
        attributes(members, depth + 1);
        return Value::record(std::move(members));
      }
      case Kind::decimal:
        return Value(DecimalValue{signed_number()});
      case Kind::ip: {
        IpValue ip;
        const std::uint8_t family = byte();
        ip.v6 = family == 6;
        ip.prefix = byte();
        const BytesView address = bytes(ip.address.size());
        if ((family != 4 && family != 6) || ip.prefix > (ip.v6 ? 128 : 32)) fail();
        if (!failed_) std::copy(address.begin(), address.end(), ip.address.begin());
        return Value(ip);
      }
      case Kind::datetime:
        return Value(DatetimeValue{signed_number()});
      case Kind::duration:
        return Value(DurationValue{signed_number()});
    }
    fail();
    return Value(false);
  }

 private:
  BytesView rest_;
  const SegmentReader& reader_;
  bool failed_ = false;
};

Result<> SegmentReader::read(BytesView block, const std::function<Result<>(const Decided&)>& use) {
  Cursor in(block, *this);
  while (!in.at_end()) {
    if (ended_) return bad("something follows the end");
    CRETO_TRY(read_item(in, use));
  }
  return {};
}

Result<> SegmentReader::read_item(Cursor& in, const std::function<Result<>(const Decided&)>& use) {
  const auto item = static_cast<Item>(in.byte());
  if (!header_ && item != Item::header) return bad("the header is missing");
  switch (item) {
    case Item::header: {
      if (header_) return bad("a second header");
      const std::uint64_t version = in.number();
      if (version != format_version) return bad(fmt::format("version {} is not known here", version));
      Header header;
      const BytesView log = in.bytes(header.log.size());
      header.sequence = in.number();
      header.created = from_unix_ns(in.signed_number());
      if (in.failed()) return bad("item `header` is malformed");
      std::copy(log.begin(), log.end(), header.log.begin());
      header_ = header;
      return {};
    }
    case Item::text: {
      const std::size_t size = in.count();
      const BytesView text = in.bytes(size);
      if (in.failed()) return bad("item `text` is malformed");
      texts_.push_back(as_text(text));
      return {};
    }
    case Item::policy: {
      const std::string_view id = in.text();
      const std::string_view source = in.text();
      if (in.failed()) return bad("item `policy` is malformed");
      policies_.push_back({id, source});
      return {};
    }
    case Item::entity: {
      Entity entity;
      in.uid(entity.uid);
      in.attributes(entity.attributes);
      in.attributes(entity.tags);
      const std::size_t parents = in.count();
      for (std::size_t i = 0; i < parents && !in.failed(); ++i) in.uid(entity.parents.emplace_back());
      if (in.failed()) return bad("item `entity` is malformed");
      entities_.push_back(std::make_shared<const Entity>(std::move(entity)));
      return {};
    }
    case Item::state:
      return read_state(in);
    case Item::set: {
      std::vector<std::uint32_t> set;
      in.list(set, entities_.size());
      if (in.failed()) return bad("item `set` is malformed");
      sets_.push_back(std::move(set));
      return {};
    }
    case Item::chain: {
      Chain chain;
      const std::string_view principal = in.text();
      const std::size_t size = in.count();
      for (std::size_t i = 0; i < size && !in.failed(); ++i) chain.links.push_back(in.text());
      if (in.failed() || size > delegation_chain_max_depth * 100) return bad("item `chain` is malformed");
      const Identity acting = CRETO_TRY(Identity::parse(principal));
      DelegationChain links;
      for (const std::string_view link : chain.links) {
        Identity one = CRETO_TRY(Identity::parse(link));
        links.push_back(std::move(one));
      }
      chain.principal = entity_of(acting);
      chain.delegation = delegation_of(acting, links);
      chains_.push_back(std::move(chain));
      return {};
    }
    case Item::request: {
      const std::size_t size = in.count();
      const BytesView body = in.bytes(size);
      if (in.failed()) return bad("item `request` is malformed");
      requests_.push_back(body);
      return {};
    }
    case Item::decision:
      CRETO_TRY(read_decision(in));
      return use(decided_);
    case Item::refused:
      refused_ += in.number();
      if (in.failed()) return bad("item `refused` is malformed");
      return {};
    case Item::end:
      recovered_ = in.below(2) == 1;
      if (in.failed()) return bad("item `end` is malformed");
      ended_ = true;
      return {};
  }
  return bad(fmt::format("there is no item {}", static_cast<unsigned>(item)));
}

Result<> SegmentReader::read_state(Cursor& in) {
  State state;
  state.org = in.text();
  state.version = in.signed_number();
  state.unknown = in.below(2) == 1;
  if (!state.unknown) {
    if (const std::uint32_t base = in.below(states_.size() + 1); base > 0) state.base = base - 1;
    in.list(state.policies_removed, policies_.size());
    in.list(state.policies_added, policies_.size());
    in.list(state.entities_removed, entities_.size());
    in.list(state.entities_added, entities_.size());
  }
  if (in.failed() || (state.base && states_[*state.base].unknown)) return bad("item `state` is malformed");
  states_.push_back(std::move(state));
  return {};
}

Result<> SegmentReader::read_decision(Cursor& in) {
  const std::uint8_t flags = in.byte();
  const unsigned outcome = flags & 7, by = flags >> 3 & 7;
  decided_.cached = (flags & cached_bit) != 0;
  // Unsigned, because what is not ours may be any number.
  last_ns_ =
      static_cast<std::int64_t>(static_cast<std::uint64_t>(last_ns_) + static_cast<std::uint64_t>(in.signed_number()));
  decided_.at = from_unix_ns(last_ns_);
  decided_.request = in.below(requests_.size());
  decided_.state = in.below(states_.size());
  decided_.set = in.below(sets_.size() + 1);
  decided_.policies.clear();
  const auto policy = [&] {
    if (const std::uint32_t number = in.below(policies_.size() + 1); number > 0)
      decided_.policies.push_back(number - 1);
  };
  policy();
  const std::uint8_t more = (flags & more_bit) != 0 ? in.byte() : std::uint8_t{0};
  const unsigned said = (more & said_bit) != 0 ? in.byte() : outcome;
  decided_.arguments_hash.reset();
  if (more & arguments_bit) {
    const BytesView hash = in.bytes(32);
    decided_.arguments_hash.emplace();
    std::copy(hash.begin(), hash.end(), decided_.arguments_hash->begin());
  }
  if (more & policies_bit) {
    const std::size_t size = in.count();
    for (std::size_t i = 0; i < size && !in.failed(); ++i) policy();
  }
  decided_.lifts.clear();
  if (more & lifts_bit) {
    const std::size_t size = in.count();
    for (std::size_t i = 0; i < size && !in.failed(); ++i) {
      const std::string_view forbid = in.text();
      decided_.lifts.push_back({forbid, in.text()});
    }
  }
  decided_.reason = (more & reason_bit) != 0 ? in.text() : std::string_view();
  if (in.failed() || outcome > 4 || said > 4 || by > 5 || more >= 1 << 5) return bad("item `decision` is malformed");
  decided_.outcome = static_cast<Outcome>(outcome);
  decided_.said = static_cast<Outcome>(said);
  decided_.by = static_cast<DecidedBy>(by);
  first_at_ = std::min(first_at_, decided_.at);
  latest_at_ = std::max(latest_at_, decided_.at);
  ++decisions_;
  return {};
}

Result<> SegmentReader::request(std::uint32_t number, Request& into) const {
  CRETO_ASSERT(number < requests_.size());
  Cursor in(requests_[number], *this);
  into.org = in.text();
  const std::uint32_t chain = in.below(chains_.size());
  into.action.type = "Action";
  into.action.id = in.text();
  in.uid(into.resource);
  into.context_left_out = in.below(2) == 1;
  in.attributes(into.context);
  if (in.failed() || !in.at_end()) return bad("item `request` is malformed");
  into.chain = &chains_[chain];
  const auto at = std::lower_bound(into.context.begin(), into.context.end(), "delegation",
                                   [](const auto& member, const char* name) { return member.first < name; });
  if (at != into.context.end() && at->first == "delegation") return bad("item `request` is malformed");
  into.context.emplace(at, "delegation", into.chain->delegation);
  return {};
}

}  // namespace creto::authz

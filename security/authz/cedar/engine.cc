#include "cedar/engine.h"

#include <algorithm>
#include <bit>
#include <map>
#include <span>
#include <utility>

#include "cedar/specialise.h"
#include "creto/common/assert.h"
#include "hash.h"

namespace creto::authz::cedar {

Engine::Engine(const PolicySet& policies, EntityStore& store) {
  std::vector<Member> members;
  members.reserve(policies.policies().size());
  for (const auto& policy : policies.policies()) members.push_back(link(next_order_++, policy, store));
  rebuild(members);
}

Engine::Member Engine::link(std::uint32_t order, std::shared_ptr<const PlannedPolicy> policy, EntityStore& store) {
  auto linked = std::make_shared<Linked>();
  const auto& literals = policy->program.literals();
  if (literals.size() > linked->few.size()) linked->many.resize(literals.size());
  EntityId* number = linked->many.empty() ? linked->few.data() : linked->many.data();
  for (const EntityUid* uid : literals) *number++ = store.intern(*uid);
  linked->policy = std::move(policy);
  const bool forbids = linked->policy->ast.effect == Effect::forbid;
  return {order, forbids, std::move(linked)};
}

std::uint64_t Engine::key(Shape shape, std::uint64_t action, std::uint64_t principal, std::uint64_t resource) {
  const std::uint64_t mixed = fold(shape.index() + 1, 0x9e3779b97f4a7c15u) ^ fold(action + 1, 0xa0761d6478bd642fu);
  return fold(mixed ^ principal, 0xe7037ed1a0b428dbu) ^ fold(std::rotl(resource, 32) ^ mixed, 0x8ebc6af09c88c6e3u);
}

Engine::Filing Engine::filing(const Linked& linked) {
  const Audience audience = audience_of(linked.policy->ast);
  // What the audience names, the program names too, at the same place.
  const auto& literals = linked.policy->program.literals();
  const auto number_of = [&](const EntityUid* uid) {
    const auto at = std::find(literals.begin(), literals.end(), uid);
    CRETO_ASSERT(at != literals.end());
    return linked.numbers()[at - literals.begin()];
  };
  const auto filed = [&](const Audience::Side& side) -> std::pair<Aspect, std::uint64_t> {
    if (side.uid) return {one, number_of(side.uid)};
    if (side.type) return {type, hash_text(*side.type)};
    return {any, 0};
  };
  const auto [principal, principal_key] = filed(audience.principal);
  const auto [resource, resource_key] = filed(audience.resource);
  Filing result{{audience.actions.has_value(), principal, resource}, {}};
  if (!audience.actions) result.keys.push_back(key(result.shape, 0, principal_key, resource_key));
  if (audience.actions)
    for (const EntityUid* action : *audience.actions)
      result.keys.push_back(key(result.shape, number_of(action), principal_key, resource_key));
  std::sort(result.keys.begin(), result.keys.end());
  result.keys.erase(std::unique(result.keys.begin(), result.keys.end()), result.keys.end());
  return result;
}

const Engine::Bucket* Engine::Part::find(std::uint64_t key) const {
  if (buckets.empty()) return nullptr;
  const std::size_t mask = buckets.size() - 1;
  for (std::size_t at = key & mask;; at = (at + 1) & mask) {
    const Bucket& bucket = buckets.data()[at];
    if (!bucket.used) return nullptr;
    if (bucket.key == key) return &bucket;
  }
}

void Engine::Part::resize(std::size_t size) {
  const std::vector<Bucket> old = std::exchange(buckets, std::vector<Bucket>(size));
  used = 0;
  for (const Bucket& bucket : old) {
    if (!bucket.used || bucket.count == 0) continue;
    std::size_t at = bucket.key & (size - 1);
    while (buckets[at].used) at = (at + 1) & (size - 1);
    buckets[at] = bucket;
    ++used;
  }
}

void Engine::Part::add(std::uint64_t key, Member member) {
  const Bucket* found = find(key);
  if (found == nullptr) {
    if ((used + 1) * 2 > buckets.size()) resize(std::max<std::size_t>(8, buckets.size() * 2));
    const std::size_t mask = buckets.size() - 1;
    std::size_t at = key & mask;
    while (buckets[at].used) at = (at + 1) & mask;
    buckets[at] = {key, static_cast<std::uint32_t>(members.size()), 0, true};
    ++used;
    found = &buckets[at];
  }
  Bucket& bucket = buckets[static_cast<std::size_t>(found - buckets.data())];
  const std::uint32_t place = bucket.first + bucket.count++;
  for (Bucket& other : buckets)
    if (other.used && &other != &bucket && other.first >= place) ++other.first;
  members.insert(members.begin() + place, std::move(member));
}

std::uint32_t Engine::Part::remove(std::uint64_t key, const PlannedPolicy* policy) {
  const Bucket* found = find(key);
  CRETO_ASSERT(found != nullptr);
  Bucket& bucket = buckets[static_cast<std::size_t>(found - buckets.data())];
  const auto begin = members.begin() + bucket.first, end = begin + bucket.count;
  const auto at = std::find_if(begin, end, [&](const Member& member) { return member.linked->policy.get() == policy; });
  CRETO_ASSERT(at != end);
  const std::uint32_t order = at->order;
  const auto place = static_cast<std::uint32_t>(at - members.begin());
  members.erase(at);
  --bucket.count;
  for (Bucket& other : buckets)
    if (other.used && other.first > place) --other.first;
  return order;
}

void Engine::count(const Filing& filed) {
  if (filed.keys.empty()) return;  // `action in []`: it is for nothing
  ++of_shape_[filed.shape.index()];
  shapes_present_ |= 1u << filed.shape.index();
}

/// More policies than these are not run before what was fetched for them is gone again.
constexpr std::size_t prefetched = 8;

/// A part has about so many entries; four times as many, and there are more parts.
constexpr std::size_t part_size = 32;

void Engine::rebuild(const std::vector<Member>& members) {
  std::vector<std::pair<std::uint64_t, const Member*>> entries;
  of_shape_ = {};
  shapes_present_ = 0;
  for (const Member& member : members) {
    const Filing filed = filing(*member.linked);
    count(filed);
    for (const std::uint64_t key : filed.keys) entries.emplace_back(key, &member);
  }
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first < b.first : a.second->order < b.second->order;
  });
  entries_ = entries.size();
  parts_.assign(std::bit_ceil(std::max<std::size_t>(1, entries_ / part_size)), nullptr);
  std::vector<std::shared_ptr<Part>> parts(parts_.size());
  for (auto& part : parts) part = std::make_shared<Part>();
  for (const auto& [key, member] : entries) {
    // Sorted by key, so what belongs to one bucket comes together, and last.
    Part& part = *parts[part_of(key)];
    if (part.members.empty() || part.buckets.empty() || part.buckets.back().key != key)
      part.buckets.push_back({key, static_cast<std::uint32_t>(part.members.size()), 0, true});
    part.members.push_back(*member);
    ++part.buckets.back().count;
  }
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (!parts[i]->buckets.empty())
      parts[i]->resize(std::bit_ceil(std::max<std::size_t>(8, parts[i]->buckets.size() * 2)));
    parts_[i] = std::move(parts[i]);
  }
}

void Engine::replace(const PlannedPolicy* removed, std::shared_ptr<const PlannedPolicy> added, EntityStore& store) {
  if (parts_.empty()) rebuild({});
  // A part that is copied once is changed in place from then on.
  std::map<std::size_t, std::shared_ptr<Part>> fresh;
  const auto part = [&](std::uint64_t key) -> Part& {
    auto& copy = fresh[part_of(key)];
    if (!copy) copy = std::make_shared<Part>(*parts_[part_of(key)]);
    return *copy;
  };
  std::uint32_t order = next_order_;
  if (removed != nullptr) {
    // The names are in the store already, with the numbers they always had.
    const Member old =
        link(0, std::shared_ptr<const PlannedPolicy>(std::shared_ptr<const PlannedPolicy>(), removed), store);
    const Filing filed = filing(*old.linked);
    for (const std::uint64_t key : filed.keys) order = part(key).remove(key, removed);
    entries_ -= filed.keys.size();
    if (!filed.keys.empty() && --of_shape_[filed.shape.index()] == 0) shapes_present_ &= ~(1u << filed.shape.index());
  }
  if (added != nullptr) {
    if (order == next_order_) ++next_order_;
    const Member member = link(order, std::move(added), store);
    const Filing filed = filing(*member.linked);
    for (const std::uint64_t key : filed.keys) part(key).add(key, member);
    entries_ += filed.keys.size();
    count(filed);
  }
  for (auto& [at, copy] : fresh) parts_[at] = std::move(copy);
  if (entries_ > parts_.size() * part_size * 4) rebuild(members());
}

std::vector<Engine::Member> Engine::members() const {
  std::vector<Member> all;
  for (const auto& part : parts_) all.insert(all.end(), part->members.begin(), part->members.end());
  std::sort(all.begin(), all.end(), [](const Member& a, const Member& b) { return a.order < b.order; });
  all.erase(std::unique(all.begin(), all.end(), [](const Member& a, const Member& b) { return a.order == b.order; }),
            all.end());
  return all;
}

void Engine::collect(std::vector<Candidate>& out, std::uint64_t key) const {
  const Part& part = *parts_.data()[part_of(key)];
  const Bucket* bucket = part.find(key);
  if (bucket == nullptr) return;
  const Member* member = part.members.data() + bucket->first;
  for (const Member* end = member + bucket->count; member != end; ++member)
    out.push_back({member->order, member->forbids, member->linked.get()});
}

/// Every policy of whose audience the request could be; two keys that collide only bring one more, which its own
/// program turns away.
void Engine::collect(std::vector<Candidate>& out, const Frame& frame, const IdSet& groups) const {
  const auto part = [](Aspect aspect, const Cell& entity) -> std::uint64_t {
    return aspect == any ? 0 : aspect == type ? hash_text(entity.uid->type) : entity.id;
  };
  for (std::uint32_t left = shapes_present_; left != 0; left &= left - 1) {
    const auto index = static_cast<std::uint32_t>(std::countr_zero(left));
    const Shape shape{index >= 9, static_cast<Aspect>(index / 3 % 3), static_cast<Aspect>(index % 3)};
    const std::uint64_t principal = part(shape.principal, frame.principal);
    const std::uint64_t resource = part(shape.resource, frame.resource);
    if (!shape.action) {
      collect(out, key(shape, 0, principal, resource));
    } else {
      if (frame.action.id != no_entity) collect(out, key(shape, frame.action.id, principal, resource));
      groups.for_each([&](EntityId group) { collect(out, key(shape, group, principal, resource)); });
    }
  }
  if (out.size() < 2) return;
  std::sort(out.begin(), out.end(), [](const Candidate& a, const Candidate& b) { return a.order < b.order; });
  out.erase(
      std::unique(out.begin(), out.end(), [](const Candidate& a, const Candidate& b) { return a.order == b.order; }),
      out.end());
}

bool Engine::evaluate(Scratch& scratch, const EntityStore& store, EntityOverlay* overlay, const RequestView& request,
                      Detail detail, const std::function<Error(const PlannedPolicy&)>& explain) const {
  Frame& frame = scratch.frame;
  frame.store = &store;
  frame.overlay = overlay;
  const auto cells = store.cells({&request.principal, &request.action, &request.resource});
  frame.principal = cells[0];
  frame.action = cells[1];
  frame.resource = cells[2];
  frame.context.assign(request.context, request.more);
  frame.trouble = false;
  if (!frame.made.empty()) frame.made.clear();
  scratch.result.permits.clear();
  scratch.result.forbids.clear();
  scratch.result.errors.clear();
  scratch.candidates.clear();
  if (shapes_present_ == 0) return true;
  if (overlay) {
    collect(scratch.candidates, frame, IdSet(overlay->ancestors(frame.action)));
  } else if (frame.action.id == no_entity) {
    collect(scratch.candidates, frame, {});
  } else {
    const EntityNode& action = store.node(frame.action.id);
    frame.trouble = action.too_many_ancestors;
    collect(scratch.candidates, frame, action.ancestors);
  }
  if (frame.trouble) return false;
  // Of many policies these have not been seen for long: all that is read of them is fetched at once.
  if (!overlay) {
    for (const Cell& cell : {frame.principal, frame.resource})
      if (cell.id != no_entity) store.node(cell.id).prefetch();
  }
  const std::size_t soon = std::min(scratch.candidates.size(), prefetched);
  for (const Candidate& candidate : std::span(scratch.candidates).first(soon))
    candidate.linked->policy->program.prefetch();

  const auto run = [&](Effect effect, bool first_suffices) {
    auto& satisfied = effect == Effect::permit ? scratch.result.permits : scratch.result.forbids;
    for (const Candidate& candidate : scratch.candidates) {
      if (candidate.forbids != (effect == Effect::forbid)) continue;
      const PlannedPolicy& policy = *candidate.linked->policy;
      switch (policy.program.run(frame, candidate.linked->numbers())) {
        case Program::Outcome::no:
          break;
        case Program::Outcome::yes:
          satisfied.push_back(&policy);
          if (first_suffices && policy.sufficient) return;
          break;
        case Program::Outcome::failed:
          if (frame.trouble) return;
          scratch.result.errors.emplace_back(&policy, explain(policy));
      }
    }
  };
  run(Effect::forbid, false);
  if (!frame.trouble) run(Effect::permit, detail == Detail::decision);
  return !frame.trouble;
}

}  // namespace creto::authz::cedar

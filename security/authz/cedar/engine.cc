#include "cedar/engine.h"

#include <algorithm>
#include <bit>

#include "hash.h"

namespace creto::authz::cedar {

Engine::Engine(const PolicySet& policies, EntityStore& store) {
  policies_.reserve(policies.policies().size());
  for (const auto& policy : policies.policies()) {
    const auto& literals = policy->program.literals();
    policies_.push_back(
        {policy, static_cast<std::uint32_t>(numbers_.size()), static_cast<std::uint32_t>(literals.size())});
    for (const EntityUid* uid : literals) numbers_.push_back(store.intern(*uid));
  }
  build_index();
}

std::uint64_t Engine::key(Shape shape, std::uint64_t action, std::uint64_t principal, std::uint64_t resource) {
  const std::uint64_t mixed = fold(shape.index() + 1, 0x9e3779b97f4a7c15u) ^ fold(action + 1, 0xa0761d6478bd642fu);
  return fold(mixed ^ principal, 0xe7037ed1a0b428dbu) ^ fold(std::rotl(resource, 32) ^ mixed, 0x8ebc6af09c88c6e3u);
}

void Engine::build_index() {
  using Scope = ScopeConstraint::Kind;
  std::vector<std::pair<std::uint64_t, std::uint32_t>> entries;
  for (std::uint32_t index = 0; index < policies_.size(); ++index) {
    const PolicyAst& ast = policies_[index].policy->ast;
    const EntityId* number = numbers_.data() + policies_[index].first;
    const auto side = [&number](const ScopeConstraint& scope) -> std::pair<Aspect, std::uint64_t> {
      const EntityId* own = number;
      number += scope.entities.size();
      if (scope.kind == Scope::equal) return {one, *own};
      if (scope.kind == Scope::is || scope.kind == Scope::is_in) return {type, hash_text(scope.type)};
      return {any, 0};
    };
    // In the order in which the program counts its literals.
    const auto [principal, principal_key] = side(ast.principal);
    const std::span<const EntityId> actions(number, ast.action.entities.size());
    number += actions.size();
    const auto [resource, resource_key] = side(ast.resource);
    const Shape shape{ast.action.kind != Scope::any, principal, resource};
    shapes_present_ |= 1u << shape.index();
    if (!shape.action) entries.emplace_back(key(shape, 0, principal_key, resource_key), index);
    for (const EntityId action : actions) entries.emplace_back(key(shape, action, principal_key, resource_key), index);
  }
  std::sort(entries.begin(), entries.end());
  std::size_t size = 16;
  while (size < entries.size() * 2) size *= 2;
  buckets_.assign(size, {});
  for (const auto& [key, index] : entries) {
    std::size_t at = key & (size - 1);
    while (buckets_[at].count != 0 && buckets_[at].key != key) at = (at + 1) & (size - 1);
    Bucket& bucket = buckets_[at];
    if (bucket.count == 0) bucket = {key, static_cast<std::uint32_t>(members_.size()), 0};
    // Sorted by key, so what belongs to one bucket lies together.
    members_.push_back(index);
    ++bucket.count;
  }
}

void Engine::collect(std::vector<std::uint32_t>& out, std::uint64_t key) const {
  const Bucket* buckets = buckets_.data();
  const std::size_t mask = buckets_.size() - 1;
  for (std::size_t at = key & mask; buckets[at].count != 0; at = (at + 1) & mask) {
    const Bucket& bucket = buckets[at];
    if (bucket.key != key) continue;
    out.insert(out.end(), members_.begin() + bucket.first, members_.begin() + bucket.first + bucket.count);
    return;
  }
}

/// Every policy whose scope could match; two keys that collide only bring one more, which its own scope turns away.
void Engine::collect(std::vector<std::uint32_t>& out, const Frame& frame, const IdSet& groups) const {
  const auto part = [](Aspect aspect, const Cell& entity, std::uint64_t type_hash) -> std::uint64_t {
    return aspect == any ? 0 : aspect == type ? type_hash : entity.id;
  };
  const std::uint64_t principal_type = hash_text(frame.principal.uid->type);
  const std::uint64_t resource_type = hash_text(frame.resource.uid->type);
  for (std::uint32_t left = shapes_present_; left != 0; left &= left - 1) {
    const auto index = static_cast<std::uint32_t>(std::countr_zero(left));
    const Shape shape{index >= 9, static_cast<Aspect>(index / 3 % 3), static_cast<Aspect>(index % 3)};
    const std::uint64_t principal = part(shape.principal, frame.principal, principal_type);
    const std::uint64_t resource = part(shape.resource, frame.resource, resource_type);
    if (!shape.action) {
      collect(out, key(shape, 0, principal, resource));
    } else {
      if (frame.action.id != no_entity) collect(out, key(shape, frame.action.id, principal, resource));
      groups.for_each([&](EntityId group) { collect(out, key(shape, group, principal, resource)); });
    }
  }
  if (out.size() < 2) return;
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
}

bool Engine::evaluate(Scratch& scratch, const EntityStore& store, EntityOverlay* overlay, const RequestView& request,
                      Detail detail, const std::function<Error(const PlannedPolicy&)>& explain) const {
  Frame& frame = scratch.frame;
  frame.store = &store;
  frame.overlay = overlay;
  frame.principal = store.cell(request.principal);
  frame.action = store.cell(request.action);
  frame.resource = store.cell(request.resource);
  frame.context = &request.context;
  frame.trouble = false;
  if (!frame.made.empty()) frame.made.clear();
  scratch.result.permits.clear();
  scratch.result.forbids.clear();
  scratch.result.errors.clear();
  scratch.candidates.clear();
  if (policies_.empty()) return true;
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

  const auto run = [&](Effect effect, bool first_suffices) {
    auto& satisfied = effect == Effect::permit ? scratch.result.permits : scratch.result.forbids;
    for (const std::uint32_t index : scratch.candidates) {
      const Linked& linked = policies_.data()[index];
      const PlannedPolicy& policy = *linked.policy;
      if (policy.ast.effect != effect) continue;
      switch (policy.program.run(frame, std::span(numbers_).subspan(linked.first, linked.count))) {
        case Program::Outcome::no:
          break;
        case Program::Outcome::yes:
          satisfied.push_back(&policy);
          if (first_suffices) return;
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

#include "cedar/entity_store.h"

#include <algorithm>

#include "cedar/interpreter.h"
#include "creto/common/assert.h"
#include "hash.h"

namespace creto::authz::cedar {
namespace {

constexpr std::size_t index_size_min = 64;

/// Schemas have fewer; whoever invents names has them beside his entities.
constexpr std::size_t shared_names_max = 4096;

bool same_name(const EntityUid& a, const EntityUid& b) { return same_text(a.id, b.id) && same_text(a.type, b.type); }

}  // namespace

IdSet::IdSet(std::vector<EntityId> ids) : size_(ids.size()) {
  std::sort(ids.begin(), ids.end());
  if (ids.empty() || ids.size() * 32 < ids.back()) {
    ids_ = std::move(ids);
    ids_.shrink_to_fit();
    return;
  }
  bits_.resize(ids.back() / 64 + 1);
  for (const EntityId id : ids) bits_[id / 64] |= std::uint64_t{1} << (id % 64);
}

std::vector<EntityId> IdSet::to_vector() const {
  std::vector<EntityId> all;
  all.reserve(size_);
  for_each([&](EntityId id) { all.push_back(id); });
  return all;
}

EntityStore::EntityStore()
    : index_(std::make_shared<Index>(index_size_min)), names_(std::make_shared<Names>()), own_names_(true) {}

std::uint64_t EntityStore::hash_of(const EntityUid& uid) { return hash_text(uid.id, hash_text(uid.type)); }

EntityId EntityStore::find(const EntityUid& uid) const { return find(uid, hash_of(uid)); }

EntityId EntityStore::find(const EntityUid& uid, std::uint64_t hash) const {
  const auto* slots = index_->slots.data();
  const std::size_t mask = index_->slots.size() - 1;
  for (std::size_t at = hash & mask;; at = (at + 1) & mask) {
    const std::uint64_t entry = slots[at].load(std::memory_order_acquire);
    if (entry == 0) return no_entity;
    const auto id = static_cast<EntityId>(entry) - 1;
    // A number that a later copy gave is none here.
    if (entry >> 32 == hash >> 32 && id < count_ && same_name(node(id).uid, uid)) return id;
  }
}

std::array<Cell, 3> EntityStore::cells(const std::array<const EntityUid*, 3>& uids) const {
  const auto* slots = index_->slots.data();
  const std::size_t mask = index_->slots.size() - 1;
  std::array<std::uint64_t, 3> hashes{};
  for (std::size_t i = 0; i < uids.size(); ++i) {
    hashes[i] = hash_of(*uids[i]);
    __builtin_prefetch(&slots[hashes[i] & mask]);
  }
  // Nearly always the first place has it, and only the name has to be compared.
  std::array<const EntityNode*, 3> nodes{};
  std::array<Cell, 3> cells;
  for (std::size_t i = 0; i < uids.size(); ++i) {
    const std::uint64_t entry = slots[hashes[i] & mask].load(std::memory_order_acquire);
    cells[i] = Cell::of(*uids[i], static_cast<EntityId>(entry) - 1);
    if (entry >> 32 != hashes[i] >> 32 || cells[i].id >= count_) continue;
    nodes[i] = &node(cells[i].id);
    const auto* bytes = reinterpret_cast<const std::byte*>(nodes[i]);
    for (std::size_t at = 0; at < sizeof(EntityNode); at += 64) __builtin_prefetch(bytes + at);
  }
  for (std::size_t i = 0; i < uids.size(); ++i)
    if (!nodes[i] || !same_name(nodes[i]->uid, *uids[i])) cells[i].id = find(*uids[i], hashes[i]);
  return cells;
}

void EntityStore::insert(std::uint64_t hash, EntityId id) {
  // Another copy has gone on with the index, or it is three quarters full.
  const bool forked = index_->used != id;
  if (forked || (index_->used + 1) * 4 > index_->slots.size() * 3) {
    std::size_t size = index_->slots.size();
    while ((std::size_t{id} + 1) * 2 > size) size *= 2;
    index_ = std::make_shared<Index>(size);
    for (EntityId known = 0; known < id; ++known) insert(hash_of(node(known).uid), known);
  }
  auto& slots = index_->slots;
  const std::size_t mask = slots.size() - 1;
  std::size_t at = hash & mask;
  while (slots[at].load(std::memory_order_relaxed) != 0) at = (at + 1) & mask;
  slots[at].store((hash >> 32) << 32 | (std::uint64_t{id} + 1), std::memory_order_release);
  ++index_->used;
}

EntityId EntityStore::intern(const EntityUid& uid) {
  const std::uint64_t hash = hash_of(uid);
  if (const EntityId known = find(uid, hash); known != no_entity) return known;
  CRETO_ASSERT(count_ < no_entity - 1);
  const auto id = static_cast<EntityId>(count_);
  auto mentioned = std::make_shared<EntityNode>();
  mentioned->uid = uid;
  replace(id, std::move(mentioned));
  insert(hash, id);
  ++count_;
  return id;
}

void EntityStore::replace(EntityId id, std::shared_ptr<const EntityNode> node) {
  const std::size_t at = id / chunk_size;
  if (at == chunks_.size()) {
    chunks_.push_back(std::make_shared<Chunk>());
    own_.push_back(true);
  }
  if (!own_[at]) chunks_[at] = std::make_shared<Chunk>(*chunks_[at]);
  own_[at] = true;
  auto& place = (*chunks_[at])[id % chunk_size];
  if (place) ancestors_ -= place->ancestors.size();
  ancestors_ += node->ancestors.size();
  place = std::move(node);
}

Cell EntityStore::cell(const Value& value) const {
  Cell cell;
  if (const auto* boolean = value.as<bool>()) return Cell::of(*boolean);
  if (const auto* integer = value.as<std::int64_t>()) return Cell::of(*integer);
  if (const auto* uid = value.as<EntityUid>()) return this->cell(*uid);
  if (const auto* string = value.as<std::string>()) {
    cell.kind = Cell::Kind::string;
    cell.string = string;
    return cell;
  }
  cell.kind = Cell::Kind::value;
  cell.value = &value;
  return cell;
}

std::vector<Field> EntityStore::fields(const Attributes& attributes, EntityNode& node) {
  std::vector<Field> out;
  out.reserve(attributes.size());
  for (const auto& [name, value] : attributes) {
    if (const auto* uid = value.as<EntityUid>()) intern(*uid);
    Field field{hash_text(name), &shared_name(name), cell(value)};
    const auto is_entity = [](const Value& element) { return element.as<EntityUid>() != nullptr; };
    const auto* elements = value.as_set();
    if (elements && std::all_of(elements->begin(), elements->end(), is_entity)) {
      auto set = std::make_unique<EntitySet>();
      set->value = &value;
      for (const Value& element : *elements) set->ids.push_back(intern(*element.as<EntityUid>()));
      std::sort(set->ids.begin(), set->ids.end());
      field.value.kind = Cell::Kind::entities;
      field.value.entities = set.get();
      node.sets.push_back(std::move(set));
    }
    out.push_back(field);
  }
  return out;
}

const std::string& EntityStore::shared_name(const std::string& own) {
  if (const auto known = names_->find(own); known != names_->end()) return *known->second;
  if (names_->size() == shared_names_max) return own;
  if (!own_names_) names_ = std::make_shared<Names>(*names_);
  own_names_ = true;
  auto name = std::make_shared<const std::string>(own);
  return *names_->emplace(*name, std::move(name)).first->second;
}

std::shared_ptr<EntityNode> EntityStore::compile(std::shared_ptr<const Entity> entity) {
  auto node = std::make_shared<EntityNode>();
  node->uid = entity->uid;
  node->attributes = fields(entity->attributes, *node);
  node->tags = fields(entity->tags, *node);
  for (const EntityUid& parent : entity->parents) node->parents.push_back(intern(parent));
  node->entity = std::move(entity);
  return node;
}

void EntityStore::gather_ancestors(EntityNode& node) const {
  std::vector<EntityId> found;
  std::vector<bool> seen(count_);
  const auto add = [&](const std::vector<EntityId>& parents) {
    for (const EntityId parent : parents) {
      if (!seen[parent]) found.push_back(parent);
      seen[parent] = true;
    }
  };
  add(node.parents);
  for (std::size_t at = 0; at < found.size() && found.size() <= ancestors_max; ++at) add(this->node(found[at]).parents);
  node.too_many_ancestors = found.size() > ancestors_max;
  node.ancestors = node.too_many_ancestors ? IdSet() : IdSet(std::move(found));
}

void EntityStore::put(std::vector<std::shared_ptr<const Entity>> entities) {
  std::vector<EntityId> changed;
  for (auto& entity : entities) {
    const EntityId id = intern(entity->uid);
    auto fresh = compile(std::move(entity));
    const EntityNode& old = node(id);
    if (!old.entity) ++known_;
    if (old.parents != fresh->parents) {
      changed.push_back(id);
    } else {
      fresh->ancestors = old.ancestors;
      fresh->too_many_ancestors = old.too_many_ancestors;
    }
    replace(id, std::move(fresh));
  }
  update_descendants(changed);
}

void EntityStore::erase(std::span<const EntityUid> uids) {
  std::vector<EntityId> changed;
  for (const EntityUid& uid : uids) {
    const EntityId id = find(uid);
    if (id == no_entity || !node(id).entity) continue;
    --known_;
    if (!node(id).parents.empty()) changed.push_back(id);
    auto mentioned = std::make_shared<EntityNode>();
    mentioned->uid = uid;
    replace(id, std::move(mentioned));
  }
  update_descendants(changed);
}

void EntityStore::update_descendants(const std::vector<EntityId>& changed) {
  if (changed.empty()) return;
  std::vector<bool> moved(count_);
  for (const EntityId id : changed) moved[id] = true;
  for (EntityId id = 0; id < count_; ++id) {
    const EntityNode& old = node(id);
    const auto is_above = [&](EntityId ancestor) { return old.ancestors.contains(ancestor); };
    const bool below = old.too_many_ancestors || std::any_of(changed.begin(), changed.end(), is_above);
    if (!moved[id] && !below) continue;
    auto fresh = std::make_shared<EntityNode>();
    fresh->uid = old.uid;
    if (old.entity) fresh = compile(old.entity);
    gather_ancestors(*fresh);
    replace(id, std::move(fresh));
  }
}

}  // namespace creto::authz::cedar

#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "creto/authz/value.h"
#include "hash.h"

namespace creto::authz::cedar {

/// The number of an entity's name in an `EntityStore`.
using EntityId = std::uint32_t;
inline constexpr EntityId no_entity = UINT32_MAX;

/// Entities as one value, by number.
struct EntitySet {
  const Value* value = nullptr;
  std::vector<EntityId> ids;  ///< sorted
};

/// Numbers, as a sorted list or, where that is shorter, a bit for each.
class IdSet {
 public:
  IdSet() = default;
  explicit IdSet(std::vector<EntityId> ids);

  bool contains(EntityId id) const {
    if (!bits_.empty()) return id / 64 < bits_.size() && (bits_[id / 64] >> (id % 64) & 1) != 0;
    return std::binary_search(ids_.begin(), ids_.end(), id);
  }
  void prefetch() const { __builtin_prefetch(bits_.empty() ? static_cast<const void*>(ids_.data()) : bits_.data()); }
  std::size_t size() const { return size_; }
  std::vector<EntityId> to_vector() const;  ///< sorted
  template <class F>
  void for_each(F&& use) const {
    for (const EntityId id : ids_) use(id);
    for (std::size_t word = 0; word < bits_.size(); ++word)
      for (std::uint64_t left = bits_[word]; left != 0; left &= left - 1)
        use(static_cast<EntityId>(word * 64) + static_cast<EntityId>(std::countr_zero(left)));
  }

 private:
  std::vector<EntityId> ids_;
  std::vector<std::uint64_t> bits_;
  std::size_t size_ = 0;
};

/// What an expression is worth: 16 bytes that borrow from policies, entities and request. A name that the store knows
/// always comes with its number, so two names are equal where their numbers are, and compared as text only where
/// neither has one.
struct Cell {
  enum class Kind : std::uint8_t {
    failed,  ///< the expression erred
    boolean,
    integer,
    string,
    entity,    ///< `id`, `uid`
    entities,  ///< a set of entities that are all numbered
    value,     ///< any other set; a record; an extension value
  };
  Kind kind = Kind::failed;
  EntityId id = no_entity;
  union {
    bool boolean;
    std::int64_t integer = 0;
    const std::string* string;
    const EntityUid* uid;
    const EntitySet* entities;
    const Value* value;
  };

  static Cell of(bool boolean) {
    Cell cell;
    cell.kind = Kind::boolean;
    cell.boolean = boolean;
    return cell;
  }
  static Cell of(std::int64_t integer) {
    Cell cell;
    cell.kind = Kind::integer;
    cell.integer = integer;
    return cell;
  }
  static Cell of(const EntityUid& uid, EntityId id) {
    Cell cell;
    cell.kind = Kind::entity;
    cell.id = id;
    cell.uid = &uid;
    return cell;
  }
};

/// An attribute or tag.
struct Field {
  std::uint64_t hash = 0;  ///< of the name
  const std::string* name = nullptr;
  Cell value;
};

/// An entity made ready: names numbered, ancestors gathered.
struct EntityNode {
  EntityUid uid;
  std::shared_ptr<const Entity> entity;  ///< null where the name is only mentioned
  std::vector<Field> attributes;
  std::vector<Field> tags;
  std::vector<EntityId> parents;
  IdSet ancestors;
  bool too_many_ancestors = false;  ///< over `ancestors_max`: then `ancestors` is empty, and nothing is decided by them
  std::vector<std::unique_ptr<EntitySet>> sets;

  /// Begins to fetch what is read first after the node itself.
  void prefetch() const {
    __builtin_prefetch(attributes.data());
    ancestors.prefetch();
  }
  static const Field* find(const std::vector<Field>& fields, std::uint64_t hash, const std::string& name) {
    for (const Field& field : fields) {
      if (field.hash == hash && same_text(*field.name, name)) return &field;
    }
    return nullptr;
  }
};

/// The entities of one organization. A value: a copy shares everything with its original, so a change to it costs what
/// it changes, and the original never sees it. An original that has been copied is not changed any more. Numbers are
/// for good. Reading allocates nothing and is thread-safe.
class EntityStore {
 public:
  EntityStore();
  EntityStore(const EntityStore& original)
      : chunks_(original.chunks_),
        own_(chunks_.size()),
        count_(original.count_),
        known_(original.known_),
        ancestors_(original.ancestors_),
        index_(original.index_),
        names_(original.names_) {}
  EntityStore(EntityStore&&) = default;
  EntityStore& operator=(EntityStore&&) = default;

  /// Adds or replaces.
  void put(std::vector<std::shared_ptr<const Entity>> entities);
  /// Their names keep their numbers.
  void erase(std::span<const EntityUid> uids);
  /// The number of a name that is mentioned somewhere.
  EntityId intern(const EntityUid& uid);

  /// `no_entity` where nobody has mentioned it.
  EntityId find(const EntityUid& uid) const;
  /// Requires: the number of this store or of one it was copied from.
  const EntityNode& node(EntityId id) const { return *chunks_.data()[id / chunk_size]->data()[id % chunk_size]; }
  Cell cell(const EntityUid& uid) const { return Cell::of(uid, find(uid)); }
  /// Several at once: none waits for memory alone. What is read first of their nodes is on its way then.
  std::array<Cell, 3> cells(const std::array<const EntityUid*, 3>& uids) const;
  /// `value` as a cell that borrows from it. Sets stay values.
  Cell cell(const Value& value) const;

  std::size_t names() const { return count_; }  ///< numbers run from 0
  std::size_t entities() const { return known_; }
  std::size_t ancestors() const { return ancestors_; }  ///< of all entities together

 private:
  static constexpr std::size_t chunk_size = 256;
  using Chunk = std::array<std::shared_ptr<const EntityNode>, chunk_size>;
  /// Open addressing; an entry is the upper half of the hash, then the number plus one. Only ever added to.
  struct Index {
    explicit Index(std::size_t size) : slots(size) {}
    std::vector<std::atomic<std::uint64_t>> slots;
    std::size_t used = 0;
  };

  /// Names of attributes and tags, each kept once for all entities: so the text with which a name is compared lies in
  /// the cache, wherever the entity lies.
  using Names = std::unordered_map<std::string_view, std::shared_ptr<const std::string>>;

  static std::uint64_t hash_of(const EntityUid& uid);
  EntityId find(const EntityUid& uid, std::uint64_t hash) const;
  void insert(std::uint64_t hash, EntityId id);
  void replace(EntityId id, std::shared_ptr<const EntityNode> node);
  std::shared_ptr<EntityNode> compile(std::shared_ptr<const Entity> entity);
  std::vector<Field> fields(const Attributes& attributes, EntityNode& node);
  /// One that lives as long as all stores that have it, and `own` does.
  const std::string& shared_name(const std::string& own);
  void gather_ancestors(EntityNode& node) const;
  void update_descendants(const std::vector<EntityId>& changed);

  std::vector<std::shared_ptr<Chunk>> chunks_;
  std::vector<bool> own_;  ///< which chunks are not shared
  std::size_t count_ = 0;
  std::size_t known_ = 0;
  std::size_t ancestors_ = 0;
  std::shared_ptr<Index> index_;
  std::shared_ptr<Names> names_;
  bool own_names_ = false;  ///< not shared
};

}  // namespace creto::authz::cedar

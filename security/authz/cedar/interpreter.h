#pragma once

#include <optional>
#include <unordered_map>

#include "cedar/ast.h"
#include "creto/authz/value.h"
#include "creto/common/result.h"

namespace creto::authz::cedar {

/// More above one entity, and nothing is decided by them.
inline constexpr std::size_t ancestors_max = 10'000;

/// The entities that one authorization sees; made for one check, used by one thread. Remembers what it was asked.
class EntityView {
 public:
  virtual ~EntityView() = default;

  /// Null where nobody knows the entity. Valid as long as the view. An error stays as `trouble`.
  Result<const Entity*> find(const EntityUid& uid);
  /// Whether `uid` is `ancestor` or below it. Trouble over `ancestors_max`.
  Result<bool> is_in(const EntityUid& uid, const EntityUid& ancestor);
  /// All above `uid`, sorted; valid as long as the view.
  Result<const std::vector<EntityUid>*> ancestors(const EntityUid& uid);
  /// Whether `uid` is below or one of `ancestors`, which are all entities.
  Result<bool> is_in_any(const EntityUid& uid, const std::vector<EntityUid>& ancestors);

  /// A failure of the source, as opposed to an error of a policy: nothing that was decided on this view counts.
  const std::optional<Error>& trouble() const { return trouble_; }

 protected:
  /// Attributes and tags of what it returns are sorted by name (`normalise`).
  virtual Result<const Entity*> load(const EntityUid& uid) = 0;

 private:
  std::unordered_map<EntityUid, const Entity*> found_;
  std::unordered_map<EntityUid, std::vector<EntityUid>> ancestors_;  ///< sorted
  std::optional<Error> trouble_;
};

/// Sorts attributes and tags as a record's are, later duplicates winning.
void normalise(Entity& entity);

struct Request {
  EntityUid principal, action, resource;
  Value context;  ///< a record
};

/// The reference: walks the tree as Cedar's specification reads.
///
/// Errors: the policy's error at its position, or the view's trouble.
Result<bool> is_satisfied(const PolicyAst& policy, const Request& request, EntityView& entities);

/// Any expression of `policy`; for tests and explanations.
Result<Value> evaluate(const PolicyAst& policy, NodeId expression, const Request& request, EntityView& entities);

bool matches(const Pattern& pattern, std::string_view text);

}  // namespace creto::authz::cedar

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "cedar/ast.h"
#include "cedar/entity_store.h"

namespace creto::authz::cedar {

/// Entities that come from elsewhere than the store, fetched as they are asked for. Sets `trouble` of the frame where
/// it cannot say. One check, one thread.
class EntityOverlay {
 public:
  virtual ~EntityOverlay() = default;
  /// Attributes and tags as a node; null where nobody knows the entity. Valid as long as this.
  virtual const EntityNode* find(const Cell& entity) = 0;
  /// Whether `entity` is below `ancestor`, another one.
  virtual bool is_below(const Cell& entity, const Cell& ancestor) = 0;
  /// Those above `entity` that have a number.
  virtual std::vector<EntityId> ancestors(const Cell& entity) = 0;
};

/// The attributes of a context, by name, each once; borrowed.
class ContextView {
 public:
  /// Of two attributes with one name the later counts, and `more`, unless null, before all.
  void assign(const Attributes& attributes, const Attributes::value_type* more);
  const Value* find(const std::string& name) const;
  Value to_record() const;

 private:
  std::vector<const Attributes::value_type*> by_name_;
};

/// A request and what it is decided by. Reused from check to check, so that nothing is allocated.
struct Frame {
  const EntityStore* store = nullptr;
  EntityOverlay* overlay = nullptr;  ///< null: the store knows everything
  Cell principal, action, resource;
  ContextView context;
  bool trouble = false;    ///< set where nothing that was decided counts
  std::deque<Value> made;  ///< values that expressions made
};

/// A policy as flat code, which borrows instead of copying and only says that it erred, not how: then the interpreter
/// runs the policy again and tells. Immutable; borrows from the policy it was compiled from.
class Program {
 public:
  enum class Outcome : std::uint8_t { no, yes, failed };

  /// Requires: `policy` has no slots, and outlives this at its place.
  static Program compile(const PolicyAst& policy);

  /// The entities that the policy names, to be numbered by the store it runs with.
  const std::vector<const EntityUid*>& literals() const { return literals_; }

  /// As the interpreter's `is_satisfied`. `numbers` are those of `literals`.
  Outcome run(Frame& frame, const EntityId* numbers) const;
  /// Begins to fetch what `run` will read first.
  void prefetch() const {
    const auto* code = reinterpret_cast<const std::byte*>(code_.data());
    const std::size_t bytes = std::min<std::size_t>(code_.size() * sizeof(Instruction), 8 * 64);
    for (std::size_t at = 0; at < bytes; at += 64) __builtin_prefetch(code + at);
  }

 private:
  friend class Compiler;
  friend class Machine;

  enum class Code : std::uint8_t {
    constant,  ///< `constant`
    name,      ///< `uid`, numbered as literal `a`
    principal,
    action,
    resource,
    context,
    all_of,
    any_of,
    logical_not,
    negate,
    if_then_else,
    equal,
    not_equal,
    less,
    less_equal,
    greater,
    greater_equal,
    add,
    subtract,
    multiply,
    in,
    in_names,  ///< one operand; entity literals a to a + b
    is,        ///< `name` is the type; with a second operand as `in`
    like,
    has,
    attribute,  ///< `name`
    contains,
    contains_element,  ///< a set written out, and an element: operands are the elements, then it
    contains_all,
    contains_any,
    is_empty,
    has_tag,
    get_tag,
    set,
    record,
    call,
  };
  struct Name {
    std::uint64_t hash;
    const std::string* text;
  };
  struct Instruction {
    Code code = Code::constant;
    std::uint32_t count = 0;                     ///< of operands
    std::array<std::uint32_t, 3> operands = {};  ///< over three: the first is where they begin in `operands_`
    std::uint32_t a = 0, b = 0;                  ///< see `Code`
    const Node* node = nullptr;                  ///< what it was compiled from
    union {
      Cell constant = {};
      Name name;
      const EntityUid* uid;
    };
  };
  struct Scope {
    ScopeConstraint::Kind kind = ScopeConstraint::Kind::any;
    const std::string* type = nullptr;
    std::uint32_t first = 0, count = 0;  ///< entity literals
  };

  Scope principal_, action_, resource_;
  std::vector<Instruction> code_;  ///< the last is the whole condition; empty where there is none
  std::vector<std::uint32_t> operands_;
  std::vector<Name> names_;  ///< of `has`, a to a + b
  std::vector<const EntityUid*> literals_;
};

}  // namespace creto::authz::cedar

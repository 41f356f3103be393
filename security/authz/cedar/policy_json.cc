#include "cedar/policy_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "cedar/json_places.h"
#include "cedar/schema.h"
#include "cedar/text.h"
#include "creto/common/assert.h"

namespace creto::authz::cedar {
namespace {

Error bad(std::string_view path, std::string_view rule) {
  return Error(Product::platform, ErrorKind::invalid_input, fmt::format("{}: {}", path, rule));
}

/// How deeply expressions may be nested, chains of `+` and the like included; as in the parser of texts.
std::size_t depth_limit(const ParseLimits& limits) { return limits.depth_max * 5; }

struct BinaryName {
  std::string_view name;
  Op op;
};
constexpr BinaryName binaries[] = {
    {"==", Op::equal},
    {"!=", Op::not_equal},
    {"<", Op::less},
    {"<=", Op::less_equal},
    {">", Op::greater},
    {">=", Op::greater_equal},
    {"in", Op::in},
    {"+", Op::add},
    {"-", Op::subtract},
    {"*", Op::multiply},
    {"contains", Op::contains},
    {"containsAll", Op::contains_all},
    {"containsAny", Op::contains_any},
    {"hasTag", Op::has_tag},
    {"getTag", Op::get_tag},
};
constexpr std::pair<std::string_view, Variable> variables[] = {{"principal", Variable::principal},
                                                               {"action", Variable::action},
                                                               {"resource", Variable::resource},
                                                               {"context", Variable::context}};

Json uid_json(const EntityUid& uid) { return Json{{"type", uid.type}, {"id", uid.id}}; }

// --- writing
// ----------------------------------------------------------------------------------------------------------

class Writer {
 public:
  explicit Writer(const PolicyAst& policy) : policy_(policy) {}

  Result<Json> policy() const {
    Json json{{"effect", policy_.effect == Effect::permit ? "permit" : "forbid"}};
    json["principal"] = scope(policy_.principal, "?principal");
    json["action"] = scope(policy_.action, {});
    json["resource"] = scope(policy_.resource, "?resource");
    json["conditions"] = Json::array();
    for (const Condition& condition : policy_.conditions) {
      Json body = CRETO_TRY(expression(condition.expression, 0));
      Json part{{"kind", condition.unless ? "unless" : "when"}};
      part["body"] = std::move(body);
      json["conditions"].push_back(std::move(part));
    }
    if (!policy_.annotations.empty()) json["annotations"] = policy_.annotations;
    return json;
  }

 private:
  static Json scope(const ScopeConstraint& scope, std::string_view slot) {
    const auto target = [&](Json& json) {
      if (scope.slot) {
        json["slot"] = slot;
      } else {
        json["entity"] = uid_json(scope.entities[0]);
      }
    };
    Json json;
    switch (scope.kind) {
      case ScopeConstraint::Kind::any:
        json["op"] = "All";
        return json;
      case ScopeConstraint::Kind::equal:
        json["op"] = "==";
        target(json);
        return json;
      case ScopeConstraint::Kind::in:
        json["op"] = "in";
        target(json);
        return json;
      case ScopeConstraint::Kind::in_any:
        json["op"] = "in";
        json["entities"] = Json::array();
        for (const EntityUid& uid : scope.entities) json["entities"].push_back(uid_json(uid));
        return json;
      case ScopeConstraint::Kind::is:
      case ScopeConstraint::Kind::is_in:
        json["op"] = "is";
        json["entity_type"] = scope.type;
        if (scope.kind == ScopeConstraint::Kind::is_in) target(json["in"]);
        return json;
    }
    CRETO_ASSERT(false);
    return json;
  }

  static Json pair(std::string_view op, Json left, Json right) {
    Json body;
    body["left"] = std::move(left);
    body["right"] = std::move(right);
    Json json;
    json[op] = std::move(body);
    return json;
  }
  static Json with_attribute(std::string_view op, Json left, std::string_view name) {
    Json body;
    body["left"] = std::move(left);
    body["attr"] = name;
    Json json;
    json[op] = std::move(body);
    return json;
  }

  Result<Json> expression(NodeId id, std::size_t depth) const {
    const Node& node = policy_.nodes[id];
    // Written as pairs within pairs: `&&`, `||`, and the `&&` and `.` of a longer path.
    const bool chained = node.op == Op::all_of || node.op == Op::any_of;
    const bool path = node.op == Op::has && node.path.size() > 1;
    const std::size_t levels = chained ? node.operands.size() : path ? node.path.size() + 1 : 1;
    if (depth + levels > depth_limit({})) {
      return Error(Product::platform, ErrorKind::too_large,
                   fmt::format("operators are nested more than {} deep in JSON", depth_limit({})));
    }
    std::vector<Json> operands;
    for (std::size_t i = 0; i < node.operands.size(); ++i) {
      Json operand = CRETO_TRY(expression(node.operands[i], depth + levels - (chained ? i : 0)));
      operands.push_back(std::move(operand));
    }
    return write(node, std::move(operands));
  }

  static Json write(const Node& node, std::vector<Json> operands) {
    Json json;
    switch (node.op) {
      case Op::literal:
        json["Value"] = value_to_json(*node.value);
        return json;
      case Op::variable:
        json["Var"] = variables[static_cast<std::size_t>(node.variable)].first;
        return json;
      case Op::all_of:
      case Op::any_of: {
        json = std::move(operands[0]);
        for (std::size_t i = 1; i < operands.size(); ++i) {
          json = pair(node.op == Op::all_of ? "&&" : "||", std::move(json), std::move(operands[i]));
        }
        return json;
      }
      case Op::logical_not:
        json["!"]["arg"] = std::move(operands[0]);
        return json;
      case Op::negate:
        json["neg"]["arg"] = std::move(operands[0]);
        return json;
      case Op::is_empty:
        json["isEmpty"]["arg"] = std::move(operands[0]);
        return json;
      case Op::if_then_else: {
        Json& body = json["if-then-else"];
        body["if"] = std::move(operands[0]);
        body["then"] = std::move(operands[1]);
        body["else"] = std::move(operands[2]);
        return json;
      }
      case Op::is: {
        Json& body = json["is"];
        body["left"] = std::move(operands[0]);
        body["entity_type"] = node.name;
        if (operands.size() == 2) body["in"] = std::move(operands[1]);
        return json;
      }
      case Op::like: {
        Json& body = json["like"];
        body["left"] = std::move(operands[0]);
        body["pattern"] = Json::array();
        for (std::size_t i = 0; i < node.pattern.size(); ++i) {
          if (i > 0) body["pattern"].push_back("Wildcard");
          if (!node.pattern[i].empty()) body["pattern"].push_back(Json{{"Literal", node.pattern[i]}});
        }
        return json;
      }
      case Op::has: {
        // Cedar's JSON has no longer path: `x has a.b` is `x has a && x.a has b`.
        Json of = std::move(operands[0]);
        json = with_attribute("has", of, node.path[0]);
        for (std::size_t i = 1; i < node.path.size(); ++i) {
          of = with_attribute(".", std::move(of), node.path[i - 1]);
          json = pair("&&", std::move(json), with_attribute("has", of, node.path[i]));
        }
        return json;
      }
      case Op::attribute:
        return with_attribute(".", std::move(operands[0]), node.name);
      case Op::set:
        json["Set"] = std::move(operands);
        return json;
      case Op::record: {
        Json& body = json["Record"];
        body = Json::object();
        for (std::size_t i = 0; i < operands.size(); ++i) body[node.path[i]] = std::move(operands[i]);
        return json;
      }
      case Op::call:
        json[node.function->name] = std::move(operands);
        return json;
      default:
        break;
    }
    const auto* binary =
        std::find_if(std::begin(binaries), std::end(binaries), [&](const BinaryName& b) { return b.op == node.op; });
    CRETO_ASSERT(binary != std::end(binaries));
    return pair(binary->name, std::move(operands[0]), std::move(operands[1]));
  }

  const PolicyAst& policy_;
};

// --- reading
// ----------------------------------------------------------------------------------------------------------

/// Requires of callers: `object` was checked before a member is asked for.
class Reader {
 public:
  explicit Reader(ParseLimits limits) : depth_max_(depth_limit(limits)) {}

  Result<PolicyAst> policy(const Json& json, const std::string& path) {
    CRETO_TRY(object(json, path, {"effect", "principal", "action", "resource", "conditions"}, {"annotations"}));
    policy_.where = {0, 0};
    const std::string effect = CRETO_TRY(text(json.at("effect"), path + "effect"));
    if (effect != "permit" && effect != "forbid") return bad(path + "effect", "must be \"permit\" or \"forbid\"");
    policy_.effect = effect == "permit" ? Effect::permit : Effect::forbid;
    policy_.principal = CRETO_TRY(scope(json.at("principal"), path + "principal", "?principal"));
    policy_.action = CRETO_TRY(scope(json.at("action"), path + "action", {}));
    policy_.resource = CRETO_TRY(scope(json.at("resource"), path + "resource", "?resource"));
    if (!json.at("conditions").is_array()) return bad(path + "conditions", "must be an array");
    std::size_t i = 0;
    for (const Json& part : json.at("conditions")) {
      const std::string at = fmt::format("{}conditions[{}].", path, i++);
      CRETO_TRY(object(part, at, {"kind", "body"}));
      const std::string kind = CRETO_TRY(text(part.at("kind"), at + "kind"));
      if (kind != "when" && kind != "unless") return bad(at + "kind", "must be \"when\" or \"unless\"");
      Condition condition;
      condition.unless = kind == "unless";
      condition.expression = CRETO_TRY(expression(part.at("body"), at + "body", 0));
      policy_.conditions.push_back(condition);
    }
    if (json.contains("annotations")) CRETO_TRY(annotations(json.at("annotations"), path + "annotations"));
    return std::move(policy_);
  }

  static Result<> object(const Json& json, std::string_view path, std::initializer_list<const char*> required,
                         std::initializer_list<const char*> optional = {}) {
    if (!json.is_object()) return bad(path, "must be an object");
    for (const char* name : required) {
      if (!json.contains(name)) return bad(fmt::format("{}{}", path, name), "is missing");
    }
    for (const auto& [name, member] : json.items()) {
      const auto is_name = [&, &name = name](const char* known) { return name == known; };
      if (std::any_of(required.begin(), required.end(), is_name)) continue;
      if (std::any_of(optional.begin(), optional.end(), is_name)) continue;
      return bad(fmt::format("{}{}", path, name), "unknown member");
    }
    return {};
  }

  static Result<EntityUid> entity(const Json& json, const std::string& path) {
    const bool escaped = json.is_object() && json.size() == 1 && json.contains("__entity");
    const Json& body = escaped ? json.at("__entity") : json;
    CRETO_TRY(object(body, path + ".", {"type", "id"}));
    EntityUid uid;
    uid.type = CRETO_TRY(text(body.at("type"), path + ".type"));
    uid.id = CRETO_TRY(text(body.at("id"), path + ".id"));
    if (!is_path(uid.type))
      return bad(path + ".type", fmt::format("{} is no entity type", quote(uid.type.substr(0, 100))));
    return uid;
  }

  static Result<std::string> text(const Json& json, std::string_view path) {
    if (!json.is_string()) return bad(path, "must be a string");
    return json.get<std::string>();
  }

 private:
  Result<> annotations(const Json& json, const std::string& path) {
    if (!json.is_object()) return bad(path, "must be an object");
    for (const auto& [key, value] : json.items()) {
      if (!is_identifier(key)) return bad(path, fmt::format("{} is no name", quote(key.substr(0, 100))));
      std::string& into = policy_.annotations[key];
      if (!value.is_null()) into = CRETO_TRY(text(value, path + "." + key));
    }
    return {};
  }

  static Result<> target(const Json& json, const std::string& path, std::string_view slot, ScopeConstraint& scope) {
    if (json.contains("slot") == json.contains("entity")) return bad(path, "has either `entity` or `slot`");
    if (json.contains("entity")) {
      EntityUid uid = CRETO_TRY(entity(json.at("entity"), path + ".entity"));
      scope.entities.push_back(std::move(uid));
      return {};
    }
    if (slot.empty() || json.at("slot") != slot) return bad(path + ".slot", "is no slot that may stand here");
    scope.slot = true;
    return {};
  }

  /// `slot` is empty for the action, which has none and whose types are actions.
  static Result<ScopeConstraint> scope(const Json& json, const std::string& path, std::string_view slot) {
    const std::string dotted = path + ".";
    CRETO_TRY(object(json, dotted, {"op"}, {"entity", "entities", "slot", "entity_type", "in"}));
    const std::string op = CRETO_TRY(text(json.at("op"), dotted + "op"));
    ScopeConstraint scope;
    scope.where = {0, 0};
    if (op == "All" || op == "all") {
      CRETO_TRY(object(json, dotted, {"op"}));
    } else if (op == "==") {
      CRETO_TRY(object(json, dotted, {"op"}, {"entity", "slot"}));
      scope.kind = ScopeConstraint::Kind::equal;
      CRETO_TRY(target(json, path, slot, scope));
    } else if (op == "in" && slot.empty() && json.contains("entities")) {
      CRETO_TRY(object(json, dotted, {"op", "entities"}));
      scope.kind = ScopeConstraint::Kind::in_any;
      if (!json.at("entities").is_array()) return bad(dotted + "entities", "must be an array");
      for (const Json& member : json.at("entities")) {
        EntityUid uid = CRETO_TRY(entity(member, dotted + "entities"));
        scope.entities.push_back(std::move(uid));
      }
    } else if (op == "in") {
      CRETO_TRY(object(json, dotted, {"op"}, {"entity", "slot"}));
      scope.kind = ScopeConstraint::Kind::in;
      CRETO_TRY(target(json, path, slot, scope));
    } else if (op == "is" && !slot.empty()) {
      CRETO_TRY(object(json, dotted, {"op", "entity_type"}, {"in"}));
      scope.kind = ScopeConstraint::Kind::is;
      scope.type = CRETO_TRY(text(json.at("entity_type"), dotted + "entity_type"));
      if (!is_path(scope.type)) return bad(dotted + "entity_type", "is no entity type");
      if (json.contains("in")) {
        CRETO_TRY(object(json.at("in"), dotted + "in.", {}, {"entity", "slot"}));
        scope.kind = ScopeConstraint::Kind::is_in;
        CRETO_TRY(target(json.at("in"), dotted + "in", slot, scope));
      }
    } else {
      return bad(dotted + "op", slot.empty() ? "must be All, == or in" : "must be All, ==, in or is");
    }
    for (const EntityUid& uid : scope.entities) {
      if (slot.empty() && !is_action_type(uid.type)) return bad(path, fmt::format("{} is no action", uid.to_string()));
    }
    return scope;
  }

  // --- expressions

  NodeId add(Node node) {
    policy_.nodes.push_back(std::move(node));
    return static_cast<NodeId>(policy_.nodes.size() - 1);
  }
  NodeId add(Op op, std::vector<NodeId> operands) {
    return add(Node{.op = op, .where = {0, 0}, .operands = std::move(operands)});
  }

  Result<NodeId> expression(const Json& json, const std::string& path, std::size_t depth) {
    if (depth > depth_max_) return bad(path, fmt::format("operators are nested more than {} deep", depth_max_));
    if (!json.is_object() || json.size() != 1) return bad(path, "an expression is an object with one member");
    const std::string& op = json.begin().key();
    const Json& body = *json.begin();
    const std::string at = fmt::format("{}.{}", path, op);
    if (op == "Value") return value(body, at, depth);
    if (op == "Var") return variable(body, at);
    if (op == "Slot") return bad(at, "a slot may only stand in the scope of a policy");
    if (op == "!" || op == "neg" || op == "isEmpty") {
      CRETO_TRY(object(body, at + ".", {"arg"}));
      const NodeId operand = CRETO_TRY(expression(body.at("arg"), at + ".arg", depth + 1));
      return add(op == "!" ? Op::logical_not : op == "neg" ? Op::negate : Op::is_empty, {operand});
    }
    if (op == "&&" || op == "||") return chain(json, path, depth);
    for (const BinaryName& binary : binaries) {
      if (binary.name != op) continue;
      CRETO_TRY(object(body, at + ".", {"left", "right"}));
      const NodeId left = CRETO_TRY(expression(body.at("left"), at + ".left", depth + 1));
      const NodeId right = CRETO_TRY(expression(body.at("right"), at + ".right", depth + 1));
      return add(binary.op, {left, right});
    }
    if (op == "." || op == "has") return attribute(op == "has", body, at, depth);
    if (op == "is") return is(body, at, depth);
    if (op == "like") return like(body, at, depth);
    if (op == "if-then-else") {
      CRETO_TRY(object(body, at + ".", {"if", "then", "else"}));
      const NodeId condition = CRETO_TRY(expression(body.at("if"), at + ".if", depth + 1));
      const NodeId then = CRETO_TRY(expression(body.at("then"), at + ".then", depth + 1));
      const NodeId otherwise = CRETO_TRY(expression(body.at("else"), at + ".else", depth + 1));
      return add(Op::if_then_else, {condition, then, otherwise});
    }
    if (op == "Set") {
      auto operands = CRETO_TRY(expressions(body, at, depth));
      return add(Op::set, std::move(operands));
    }
    if (op == "Record") return record(body, at, depth);
    return call(op, body, at, depth);
  }

  Result<std::vector<NodeId>> expressions(const Json& json, const std::string& path, std::size_t depth) {
    if (!json.is_array()) return bad(path, "must be an array of expressions");
    std::vector<NodeId> operands;
    for (std::size_t i = 0; i < json.size(); ++i) {
      const NodeId operand = CRETO_TRY(expression(json[i], fmt::format("{}[{}]", path, i), depth + 1));
      operands.push_back(operand);
    }
    return operands;
  }

  /// `a && b && c`, written as pairs that nest to the left.
  Result<NodeId> chain(const Json& json, const std::string& path, std::size_t depth) {
    const std::string op = json.begin().key();
    std::vector<const Json*> parts;
    const Json* at = &json;
    while (at->is_object() && at->size() == 1 && at->begin().key() == op) {
      const Json& body = *at->begin();
      CRETO_TRY(object(body, fmt::format("{}.{}.", path, op), {"left", "right"}));
      parts.push_back(&body.at("right"));
      at = &body.at("left");
    }
    parts.push_back(at);
    std::reverse(parts.begin(), parts.end());
    if (parts.size() > depth_max_) return bad(path, fmt::format("operators are nested more than {} deep", depth_max_));

    std::vector<NodeId> operands;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const NodeId operand = CRETO_TRY(expression(*parts[i], fmt::format("{}.{}[{}]", path, op, i), depth + 1));
      operands.push_back(operand);
    }
    return add(op == "&&" ? Op::all_of : Op::any_of, std::move(operands));
  }

  Result<NodeId> variable(const Json& json, const std::string& path) {
    for (const auto& [name, variable] : variables) {
      if (json == name) return add(Node{.op = Op::variable, .variable = variable, .where = {0, 0}});
    }
    return bad(path, "must be principal, action, resource or context");
  }

  NodeId literal(Value value) {
    Node node{.op = Op::literal, .where = {0, 0}};
    node.value = std::move(value);
    return add(std::move(node));
  }

  /// A value becomes the expression that makes it, for that is how it would be written.
  Result<NodeId> value(const Json& json, const std::string& path, std::size_t depth) {
    if (depth > depth_max_) return bad(path, fmt::format("nested more than {} deep", depth_max_));
    if (json.is_array()) {
      std::vector<NodeId> operands;
      for (const Json& element : json) {
        const NodeId operand = CRETO_TRY(value(element, path, depth + 1));
        operands.push_back(operand);
      }
      return add(Op::set, std::move(operands));
    }
    if (json.is_object() && json.size() == 1 && json.contains("__extn")) {
      const Json& body = json.at("__extn");
      if (body.is_object() && body.contains("args")) {
        CRETO_TRY(object(body, path + ".__extn.", {"fn", "args"}));
        const std::string name = CRETO_TRY(text(body.at("fn"), path + ".__extn.fn"));
        std::vector<NodeId> operands;
        if (!body.at("args").is_array()) return bad(path + ".__extn.args", "must be an array");
        for (const Json& argument : body.at("args")) {
          const NodeId operand = CRETO_TRY(value(argument, path, depth + 1));
          operands.push_back(operand);
        }
        return call(name, std::move(operands), path);
      }
      CRETO_TRY(object(body, path + ".__extn.", {"fn", "arg"}));
      const std::string name = CRETO_TRY(text(body.at("fn"), path + ".__extn.fn"));
      const NodeId operand = CRETO_TRY(value(body.at("arg"), path, depth + 1));
      return call(name, {operand}, path);
    }
    if (json.is_object() && !(json.size() == 1 && json.contains("__entity"))) {
      Node node{.op = Op::record, .where = {0, 0}};
      for (const auto& [name, member] : json.items()) {
        const NodeId operand = CRETO_TRY(value(member, path + "." + name, depth + 1));
        node.operands.push_back(operand);
        node.path.push_back(name);
      }
      return add(std::move(node));
    }
    auto plain = value_from_json(json);
    if (!plain) return bad(path, plain.error().message());
    return literal(*std::move(plain));
  }

  Result<NodeId> attribute(bool has, const Json& body, const std::string& path, std::size_t depth) {
    CRETO_TRY(object(body, path + ".", {"left", "attr"}));
    Node node{.op = has ? Op::has : Op::attribute, .where = {0, 0}};
    if (has && body.at("attr").is_array()) {
      node.path = CRETO_TRY(has_path(body.at("attr"), path + ".attr"));
    } else {
      std::string name = CRETO_TRY(text(body.at("attr"), path + ".attr"));
      (has ? node.path.emplace_back() : node.name) = std::move(name);
    }
    const NodeId operand = CRETO_TRY(expression(body.at("left"), path + ".left", depth + 1));
    node.operands.push_back(operand);
    return add(std::move(node));
  }

  /// Later versions of Cedar write `has a.b` so.
  Result<std::vector<std::string>> has_path(const Json& json, const std::string& path) {
    if (json.empty() || json.size() > depth_max_) {
      return bad(path, fmt::format("must be a name, or an array of 1 to {} names", depth_max_));
    }
    std::vector<std::string> names;
    for (const Json& part : json) {
      std::string name = CRETO_TRY(text(part, path));
      if (json.size() > 1 && (!is_identifier(name) || is_reserved(name))) {
        return bad(path, fmt::format("{} cannot be a part of a path", quote(name.substr(0, 100))));
      }
      names.push_back(std::move(name));
    }
    return names;
  }

  Result<NodeId> is(const Json& body, const std::string& path, std::size_t depth) {
    CRETO_TRY(object(body, path + ".", {"left", "entity_type"}, {"in"}));
    Node node{.op = Op::is, .where = {0, 0}};
    node.name = CRETO_TRY(text(body.at("entity_type"), path + ".entity_type"));
    if (!is_path(node.name)) return bad(path + ".entity_type", "is no entity type");
    const NodeId left = CRETO_TRY(expression(body.at("left"), path + ".left", depth + 1));
    node.operands.push_back(left);
    if (body.contains("in")) {
      const NodeId in = CRETO_TRY(expression(body.at("in"), path + ".in", depth + 1));
      node.operands.push_back(in);
    }
    return add(std::move(node));
  }

  Result<NodeId> like(const Json& body, const std::string& path, std::size_t depth) {
    CRETO_TRY(object(body, path + ".", {"left", "pattern"}));
    Node node{.op = Op::like, .where = {0, 0}};
    const NodeId left = CRETO_TRY(expression(body.at("left"), path + ".left", depth + 1));
    node.operands.push_back(left);
    node.pattern.emplace_back();
    if (!body.at("pattern").is_array()) return bad(path + ".pattern", "must be an array");
    for (const Json& part : body.at("pattern")) {
      if (part == "Wildcard") {
        node.pattern.emplace_back();
        continue;
      }
      CRETO_TRY(object(part, path + ".pattern.", {"Literal"}));
      const std::string piece = CRETO_TRY(text(part.at("Literal"), path + ".pattern.Literal"));
      node.pattern.back() += piece;
    }
    return add(std::move(node));
  }

  Result<NodeId> record(const Json& body, const std::string& path, std::size_t depth) {
    if (!body.is_object()) return bad(path, "must be an object of expressions");
    Node node{.op = Op::record, .where = {0, 0}};
    for (const auto& [name, member] : body.items()) {
      const NodeId operand = CRETO_TRY(expression(member, path + "." + name, depth + 1));
      node.operands.push_back(operand);
      node.path.push_back(name);
    }
    return add(std::move(node));
  }

  Result<NodeId> call(const std::string& name, const Json& body, const std::string& path, std::size_t depth) {
    if (!find_extension_function(name)) return bad(path, "there is no such operator or function");
    auto operands = CRETO_TRY(expressions(body, path, depth));
    return call(name, std::move(operands), path);
  }

  Result<NodeId> call(const std::string& name, std::vector<NodeId> operands, const std::string& path) {
    const ExtensionFunction* function = find_extension_function(name);
    if (!function) return bad(path, fmt::format("there is no function {}", quote(name.substr(0, 100))));
    if (function->is_method && operands.empty()) return bad(path, "a method is called on something");
    Node node{.op = Op::call, .where = {0, 0}, .operands = std::move(operands)};
    node.function = function;
    return add(std::move(node));
  }

  const std::size_t depth_max_;
  PolicyAst policy_;
};

Result<> fill(ScopeConstraint& scope, const std::optional<EntityUid>& value, std::string_view slot) {
  if (scope.slot != value.has_value()) {
    return bad(slot, scope.slot ? "the template has this slot, and nothing was given for it"
                                : "the template has no such slot");
  }
  if (!scope.slot) return {};
  scope.slot = false;
  scope.entities = {*value};
  return {};
}

}  // namespace

Result<PolicyAst> link(const PolicyAst& policy_template, const SlotValues& values) {
  PolicyAst policy = policy_template;
  CRETO_TRY(fill(policy.principal, values.principal, "?principal"));
  CRETO_TRY(fill(policy.resource, values.resource, "?resource"));
  return policy;
}

Result<std::map<std::string, PolicyAst>> PolicySetDecl::linked() const {
  std::map<std::string, PolicyAst> all = policies;
  for (const TemplateLink& link : links) {
    const auto from = templates.find(link.template_id);
    if (from == templates.end()) return bad(link.id, fmt::format("there is no template {}", quote(link.template_id)));
    auto policy = cedar::link(from->second, link.values);
    if (!policy) return bad(link.id, policy.error().message());
    if (templates.contains(link.id) || !all.emplace(link.id, *std::move(policy)).second) {
      return bad(link.id, "this id is in use");
    }
  }
  return all;
}

Result<Json> to_json(const PolicyAst& policy) { return Writer(policy).policy(); }

Json to_json(const TemplateLink& link) {
  Json values = Json::object();
  if (link.values.principal) values["?principal"] = uid_json(*link.values.principal);
  if (link.values.resource) values["?resource"] = uid_json(*link.values.resource);
  return Json{{"templateId", link.template_id}, {"newId", link.id}, {"values", std::move(values)}};
}

Result<Json> to_json(const PolicySetDecl& set) {
  Json json{{"staticPolicies", Json::object()}, {"templates", Json::object()}, {"templateLinks", Json::array()}};
  for (const auto& [id, policy] : set.policies) json["staticPolicies"][id] = CRETO_TRY(to_json(policy));
  for (const auto& [id, policy] : set.templates) json["templates"][id] = CRETO_TRY(to_json(policy));
  for (const TemplateLink& link : set.links) json["templateLinks"].push_back(to_json(link));
  return json;
}

Result<PolicyAst> policy_from_json(const Json& json, ParseLimits limits) { return Reader(limits).policy(json, ""); }

namespace {

/// `path` is empty or ends with a dot.
Result<TemplateLink> read_link(const Json& json, const std::string& path) {
  CRETO_TRY(Reader::object(json, path, {"templateId", "newId", "values"}));
  TemplateLink link;
  link.template_id = CRETO_TRY(Reader::text(json.at("templateId"), path + "templateId"));
  link.id = CRETO_TRY(Reader::text(json.at("newId"), path + "newId"));
  const Json& values = json.at("values");
  CRETO_TRY(Reader::object(values, path + "values.", {}, {"?principal", "?resource"}));
  if (values.contains("?principal"))
    link.values.principal = CRETO_TRY(Reader::entity(values.at("?principal"), path + "values.?principal"));
  if (values.contains("?resource"))
    link.values.resource = CRETO_TRY(Reader::entity(values.at("?resource"), path + "values.?resource"));
  return link;
}

/// As far as it can be read; each mistake is told to `wrong`, which says whether to go on.
void read_set(const Json& json, ParseLimits limits, PolicySetDecl& set, const std::function<bool(Error)>& wrong) {
  if (auto is_set = Reader::object(json, "", {"staticPolicies"}, {"templates", "templateLinks"}); !is_set) {
    wrong(is_set.error());
    return;
  }
  for (const char* group : {"staticPolicies", "templates"}) {
    if (!json.contains(group)) continue;
    const Json& policies = json.at(group);
    if (!policies.is_object()) {
      if (!wrong(bad(group, "must be an object of policies"))) return;
      continue;
    }
    if (policies.size() > limits.policies_max) {
      wrong(Error(Product::platform, ErrorKind::too_large,
                  fmt::format("more than {} policies in one set", limits.policies_max)));
      return;
    }
    const bool templates = group == std::string_view("templates");
    for (const auto& [id, member] : policies.items()) {
      const std::string path = fmt::format("{}[{}].", group, quote(id.substr(0, 100)));
      auto policy = Reader(limits).policy(member, path);
      if (policy && policy->is_template() != templates)
        policy = bad(path, templates ? "a template has a slot" : "a policy with a slot belongs to the templates");
      if (policy) {
        (templates ? set.templates : set.policies).emplace(id, *std::move(policy));
      } else if (!wrong(policy.error())) {
        return;
      }
    }
  }
  if (!json.contains("templateLinks")) return;
  if (!json.at("templateLinks").is_array()) {
    wrong(bad("templateLinks", "must be an array"));
    return;
  }
  for (std::size_t i = 0; i < json.at("templateLinks").size(); ++i) {
    auto link = read_link(json.at("templateLinks")[i], fmt::format("templateLinks[{}].", i));
    if (link) {
      set.links.push_back(*std::move(link));
    } else if (!wrong(link.error())) {
      return;
    }
  }
}

}  // namespace

Result<TemplateLink> link_from_json(const Json& json) { return read_link(json, ""); }

Result<PolicySetDecl> policy_set_from_json(const Json& json, ParseLimits limits) {
  PolicySetDecl set;
  std::optional<Error> first;
  read_set(json, limits, set, [&](Error error) {
    first = std::move(error);
    return false;
  });
  if (first) return *std::move(first);
  return set;
}

namespace {

JsonLimits json_limits(const ParseLimits& limits) {
  return {.bytes_max = limits.bytes_max, .depth_max = 2 * depth_limit(limits) + 16};
}

bool is_one_policy(const Json& json) { return json.is_object() && json.contains("effect"); }

PolicySetDecl set_of(PolicyAst policy) {
  PolicySetDecl set;
  auto& group = policy.is_template() ? set.templates : set.policies;
  group.emplace("policy0", std::move(policy));
  return set;
}

}  // namespace

Result<PolicySetDecl> parse_policies_json(std::string_view text, ParseLimits limits) {
  const Json json = CRETO_TRY(parse_json(text, json_limits(limits)));
  if (!is_one_policy(json)) return policy_set_from_json(json, limits);
  PolicyAst policy = CRETO_TRY(policy_from_json(json, limits));
  return set_of(std::move(policy));
}

Parsed<PolicySetDecl> read_policies_json(std::string_view text, ParseLimits limits) {
  auto read = read_json(text, json_limits(limits));
  Parsed<PolicySetDecl> parsed{{}, std::move(read.problems)};
  if (!read.value.whole) return parsed;
  text = read.value.text;
  const Json& json = read.value.json;
  std::size_t placed = 0;
  const auto wrong = [&](const Error& error) {
    Problem problem = problem_of(error);
    if (placed++ < json_problems_placed) problem.where = json_place(text, problem.what);
    parsed.problems.push_back(std::move(problem));
    return true;
  };
  if (is_one_policy(json)) {
    auto policy = policy_from_json(json, limits);
    if (!policy) wrong(policy.error());
    if (policy) parsed.value = set_of(*std::move(policy));
  } else {
    read_set(json, limits, parsed.value, wrong);
  }
  const auto places = json_members(text);
  for (auto* group : {&parsed.value.policies, &parsed.value.templates}) {
    const char* const name = group == &parsed.value.policies ? "staticPolicies" : "templates";
    for (auto& [id, policy] : *group) {
      const auto place = places.find({name, id});
      policy.where = place == places.end() ? json_place(text, "") : place->second;
    }
  }
  std::sort(parsed.problems.begin(), parsed.problems.end());
  return parsed;
}

}  // namespace creto::authz::cedar

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "cedar/lexer.h"
#include "cedar/schema.h"
#include "cedar/text.h"

namespace creto::authz::cedar {
namespace {

/// Recursive descent over Cedar's schema syntax. A broken declaration is skipped and the next one read.
class SchemaParser : private TokenReader {
 public:
  SchemaParser(const std::vector<Token>& tokens, SchemaLimits limits) : TokenReader(tokens), limits_(limits) {}

  Parsed<SchemaDecl> run() {
    while (!at_end()) {
      if (const auto parsed = item(); !parsed) recover(parsed.error());
    }
    if (in_namespace_) lost(unexpected("`entity`, `action`, `type` or `}`"));
    std::stable_sort(result_.problems.begin(), result_.problems.end(),
                     [](const Problem& a, const Problem& b) { return a.where < b.where; });
    return std::move(result_);
  }

 private:
  /// A namespace, a declaration, or the end of the namespace that is open.
  Result<> item() {
    if (in_namespace_ && take_symbol("}")) {
      in_namespace_ = false;
      space_.clear();
      return {};
    }
    began_ = at();
    Annotations notes;
    CRETO_TRY(annotations(notes));
    const Position where = peek().where;
    if (take_word("entity")) return entity_decl(std::move(notes), where);
    if (take_word("action")) return action_decl(std::move(notes), where);
    if (take_word("type")) return type_decl(std::move(notes), where);
    if (!in_namespace_ && take_word("namespace")) return begin_namespace(std::move(notes), where);
    return unexpected(in_namespace_ ? "`entity`, `action`, `type` or `}`"
                                    : "`namespace`, `entity`, `action` or `type`");
  }

  void problem(Position where, std::string what, std::string hint = {}) {
    result_.problems.push_back({where, std::move(what), std::move(hint)});
  }

  /// Of what could not be read.
  void lost(const Error& error) {
    result_.problems.push_back(problem_of(error));
    result_.value.whole = false;
  }

  /// Behind the `;` of the broken declaration, or to where the next one seems to begin.
  void recover(const Error& error) {
    lost(error);
    std::size_t open = 0;
    while (!at_end()) {
      const bool keyword = is_word("entity") || is_word("action") || is_word("type") || is_word("namespace");
      const bool declares = keyword && !is_symbol(":", 1) && !is_symbol("?", 1) && !is_symbol("::", 1) &&
                            (peek(1).kind == TokenKind::identifier || peek(1).kind == TokenKind::string);
      if (at() > began_ && declares && !is_symbol(",", 1)) return;
      if (open == 0 && in_namespace_ && is_symbol("}") && at() > began_) return;
      if (is_symbol("{")) ++open;
      if (is_symbol("}") && open > 0) --open;
      if (take_symbol(";")) return;
      next();
    }
  }

  Result<> begin_namespace(Annotations notes, Position where) {
    std::string name = CRETO_TRY(path("the name of the namespace"));
    CRETO_TRY(expect("{"));
    if (result_.value.namespaces.contains(name)) {
      problem(where, fmt::format("namespace `{}` is declared twice", name));
    }
    result_.value.namespaces[name].annotations = std::move(notes);
    space_ = std::move(name);
    in_namespace_ = true;
    return {};
  }

  template <class Decl>
  void declare(std::map<std::string, Decl> NamespaceDecl::* group, const PlacedName& name, Decl decl,
               std::string_view what) {
    decl.where = name.where;
    if ((result_.value.namespaces[space_].*group).try_emplace(name.name, std::move(decl)).second) return;
    problem(name.where, fmt::format("{} `{}` is declared twice", what, name.name));
    NamespaceDecl again;
    (again.*group).emplace(name.name, std::move(decl));
    result_.value.repeated.emplace_back(space_, std::move(again));
  }

  Result<PlacedName> placed_identifier(std::string_view expected) {
    const Position where = peek().where;
    std::string name = CRETO_TRY(identifier(expected));
    return PlacedName{std::move(name), where};
  }
  /// An identifier, or any text in quotes.
  Result<PlacedName> placed_name(std::string_view expected) {
    if (peek().kind != TokenKind::string) return placed_identifier(expected);
    const Position where = peek().where;
    std::string name = CRETO_TRY(string(expected));
    return PlacedName{std::move(name), where};
  }
  /// A path whose first name may be `__cedar`.
  Result<PlacedName> type_path(std::string_view expected) {
    const Position where = peek().where;
    if (is_word("__cedar") && is_symbol("::", 1)) {
      next();
      next();
      const std::string name = CRETO_TRY(identifier("the name of a built-in type"));
      return PlacedName{"__cedar::" + name, where};
    }
    std::string name = CRETO_TRY(path(expected));
    return PlacedName{std::move(name), where};
  }

  template <class Item>
  Result<std::vector<PlacedName>> comma_separated(Item item) {
    std::vector<PlacedName> names;
    do {
      PlacedName name = CRETO_TRY(item());
      names.push_back(std::move(name));
    } while (take_symbol(","));
    return names;
  }

  /// What follows a `[`; unlike those in braces, no comma may end such a list.
  template <class Item>
  Result<> bracketed(std::string_view what, Item item) {
    do {
      CRETO_TRY(item());
    } while (take_symbol(","));
    return expect("]", fmt::format("`,` or `]` after {}", what));
  }

  /// One path, or several in brackets.
  Result<std::vector<PlacedName>> type_paths() {
    if (!take_symbol("[")) {
      PlacedName one = CRETO_TRY(type_path("an entity type or `[`"));
      return std::vector<PlacedName>{std::move(one)};
    }
    std::vector<PlacedName> names;
    if (take_symbol("]")) return names;
    CRETO_TRY(bracketed("an entity type", [&]() -> Result<> {
      PlacedName name = CRETO_TRY(type_path("an entity type"));
      names.push_back(std::move(name));
      return {};
    }));
    return names;
  }

  Result<> entity_decl(Annotations notes, Position) {
    const auto names = CRETO_TRY(comma_separated([&] { return placed_identifier("the name of an entity type"); }));
    EntityTypeDecl decl;
    decl.annotations = std::move(notes);
    if (take_word("enum")) {
      CRETO_TRY(expect("["));
      CRETO_TRY(bracketed("an id", [&]() -> Result<> {
        std::string choice = CRETO_TRY(string("an id in quotes"));
        decl.choices.push_back(std::move(choice));
        return {};
      }));
    } else {
      if (take_word("in")) decl.member_of = CRETO_TRY(type_paths());
      const bool equals = take_symbol("=");
      if (equals || is_symbol("{")) {
        const Position where = peek().where;
        CRETO_TRY(expect("{"));
        decl.shape = CRETO_TRY(record(where));
      }
      if (take_word("tags")) decl.tags = CRETO_TRY(type());
    }
    CRETO_TRY(expect(";", decl.choices.empty() ? "`in`, `=`, `tags` or `;`" : "`;`"));
    for (const PlacedName& name : names) {
      if (name.name == "Action") {
        problem(name.where, "an entity type cannot be named `Action`: actions are declared with `action`");
        continue;
      }
      declare(&NamespaceDecl::entities, name, decl, "entity type");
    }
    return {};
  }

  Result<> type_decl(Annotations notes, Position) {
    static constexpr std::array<std::string_view, 8> reserved = {"Bool", "Boolean", "Entity", "Extension",
                                                                 "Long", "Record",  "Set",    "String"};
    const PlacedName name = CRETO_TRY(placed_identifier("the name of a type"));
    CRETO_TRY(expect("="));
    CommonTypeDecl decl;
    decl.type = CRETO_TRY(type());
    decl.annotations = std::move(notes);
    CRETO_TRY(expect(";"));
    if (std::find(reserved.begin(), reserved.end(), name.name) != reserved.end()) {
      problem(name.where, fmt::format("`{}` is the name of a built-in type", name.name));
      return {};
    }
    declare(&NamespaceDecl::types, name, std::move(decl), "type");
    return {};
  }

  Result<ActionRef> action_ref() {
    const Position where = peek().where;
    if (peek().kind == TokenKind::string || !is_symbol("::", 1)) {
      PlacedName name = CRETO_TRY(placed_name("the name of an action"));
      return ActionRef{{}, std::move(name.name), where};
    }
    std::string type = CRETO_TRY(identifier("the name of an action"));
    while (true) {
      CRETO_TRY(expect("::", "`::` and the id of the action in quotes"));
      if (peek().kind == TokenKind::string) break;
      const std::string part = CRETO_TRY(identifier("a name or an id in quotes after `::`"));
      type += "::" + part;
    }
    std::string id = CRETO_TRY(string("an id in quotes"));
    return ActionRef{std::move(type), std::move(id), where};
  }

  Result<> action_decl(Annotations notes, Position) {
    const auto names = CRETO_TRY(comma_separated([&] { return placed_name("the name of an action"); }));
    ActionDecl decl;
    decl.annotations = std::move(notes);
    if (take_word("in")) {
      const auto group = [&]() -> Result<> {
        ActionRef ref = CRETO_TRY(action_ref());
        decl.member_of.push_back(std::move(ref));
        return {};
      };
      if (take_symbol("[")) {
        CRETO_TRY(bracketed("an action", group));
      } else {
        CRETO_TRY(group());
      }
    }
    if (take_word("appliesTo")) decl.applies_to = CRETO_TRY(applies_to());
    if (take_word("attributes")) {
      CRETO_TRY(expect("{"));
      CRETO_TRY(expect("}", "`}`: actions have no attributes"));
    }
    CRETO_TRY(expect(";", decl.applies_to ? "`;`" : "`in`, `appliesTo` or `;`"));
    for (const PlacedName& name : names) declare(&NamespaceDecl::actions, name, decl, "action");
    return {};
  }

  Result<AppliesTo> applies_to() {
    AppliesTo result;
    const Position begin = peek().where;
    std::set<std::string, std::less<>> seen;
    CRETO_TRY(expect("{"));
    CRETO_TRY(list("}", "a part of `appliesTo`", [&]() -> Result<> {
      const Token& part = peek();
      if (!is_word("principal") && !is_word("resource") && !is_word("context")) {
        return unexpected("`principal`, `resource`, `context` or `}`");
      }
      next();
      if (!seen.emplace(part.text).second) problem(part.where, fmt::format("`{}` stands twice", part.text));
      CRETO_TRY(expect(":"));
      const Position where = peek().where;
      if (part.text == "context") {
        result.context = CRETO_TRY(type());
        const bool fits =
            result.context->kind == TypeExpr::Kind::named || result.context->kind == TypeExpr::Kind::record;
        if (!fits) problem(where, "the context is a record or the name of one");
        return {};
      }
      auto types = CRETO_TRY(type_paths());
      if (types.empty()) {
        problem(where, fmt::format("`{}` names no entity type", part.text),
                "leave out `appliesTo` for an action that is a group alone");
      }
      (part.text == "principal" ? result.principals : result.resources) = std::move(types);
      return {};
    }));
    for (const char* part : {"principal", "resource"}) {
      if (!seen.contains(part)) problem(begin, fmt::format("`appliesTo` without `{}`", part));
    }
    return result;
  }

  // --- types

  Result<TypeExpr> type() {
    const Position where = peek().where;
    if (depth_ == limits_.depth_max) {
      return error_at(where, fmt::format("types are nested more than {} deep", limits_.depth_max));
    }
    if (take_symbol("{")) return record(where);
    if (is_word("Set") && is_symbol("<", 1)) {
      next();
      next();
      ++depth_;
      auto element = type();
      --depth_;
      if (!element) return element;
      CRETO_TRY(expect(">"));
      TypeExpr set = TypeExpr::simple(TypeExpr::Kind::set, where);
      set.element.push_back(*std::move(element));
      return set;
    }
    PlacedName name = CRETO_TRY(type_path("a type"));
    return TypeExpr::simple(TypeExpr::Kind::named, where, std::move(name.name));
  }

  /// What follows the `{`.
  Result<TypeExpr> record(Position where) {
    TypeExpr record = TypeExpr::simple(TypeExpr::Kind::record, where);
    std::set<std::string, std::less<>> seen;
    ++depth_;
    const auto attributes = list("}", "an attribute", [&]() -> Result<> {
      AttributeDecl attribute;
      CRETO_TRY(annotations(attribute.annotations));
      const PlacedName name = CRETO_TRY(placed_name("the name of an attribute or `}`"));
      attribute.name = name.name;
      attribute.required = !take_symbol("?");
      CRETO_TRY(expect(":", attribute.required ? "`:` or `?:`" : "`:`"));
      attribute.type = CRETO_TRY(type());
      if (!seen.insert(name.name).second) {
        problem(name.where, fmt::format("attribute `{}` stands twice", name.name));
        return {};
      }
      record.attributes.push_back(std::move(attribute));
      return {};
    });
    --depth_;
    if (!attributes) return attributes.error();
    return record;
  }

  const SchemaLimits limits_;
  Parsed<SchemaDecl> result_;
  std::string space_;
  bool in_namespace_ = false;
  std::size_t began_ = 0;
  std::size_t depth_ = 0;
};

// --- the other way ---------------------------------------------------------------------------------------------------

/// Requires: types are nested no deeper than a parser lets them.
class SchemaPrinter {
 public:
  explicit SchemaPrinter(const SchemaDecl& schema) : schema_(schema) {}

  Result<std::string> run() {
    for (const auto& [name, space] : schema_.namespaces) {
      space_ = name;
      if (name.empty()) {
        CRETO_TRY(declarations(space));
        continue;
      }
      blank_line();
      annotations(space.annotations);
      line(fmt::format("namespace {} {{", name));
      ++indent_;
      first_ = true;
      CRETO_TRY(declarations(space));
      --indent_;
      first_ = false;
      line("}");
    }
    return std::move(out_);
  }

 private:
  void line(std::string_view text) {
    out_.append(indent_ * 2, ' ');
    out_ += text;
    out_ += '\n';
  }
  void blank_line() {
    if (!std::exchange(first_, false)) out_ += '\n';
  }
  static std::string name(std::string_view text) {
    return is_identifier(text) && !is_reserved(text) ? std::string(text) : quote(text);
  }
  void annotations(const Annotations& annotations) {
    for (const auto& [key, value] : annotations) {
      line(value.empty() ? fmt::format("@{}", key) : fmt::format("@{}({})", key, quote(value)));
    }
  }

  Result<> declarations(const NamespaceDecl& space) {
    for (const auto& [id, type] : space.types) {
      blank_line();
      annotations(type.annotations);
      const std::string text = CRETO_TRY(this->type(type.type));
      line(fmt::format("type {} = {};", id, text));
    }
    for (const auto& [id, entity] : space.entities) {
      blank_line();
      annotations(entity.annotations);
      std::string text = "entity " + id;
      if (!entity.choices.empty()) {
        text += " enum [";
        for (std::size_t i = 0; i < entity.choices.size(); ++i) text += (i ? ", " : "") + quote(entity.choices[i]);
        text += "]";
      }
      if (!entity.member_of.empty()) text += " in " + names(entity.member_of);
      if (entity.shape && (entity.shape->kind != TypeExpr::Kind::record || !entity.shape->attributes.empty())) {
        if (entity.shape->kind != TypeExpr::Kind::record) {
          return Error(Product::platform, ErrorKind::invalid_input,
                       fmt::format("entity type `{}`: Cedar's syntax has no name for a shape", id));
        }
        const std::string shape = CRETO_TRY(type(*entity.shape));
        text += " = " + shape;
      }
      if (entity.tags) {
        const std::string tags = CRETO_TRY(type(*entity.tags));
        text += " tags " + tags;
      }
      line(text + ";");
    }
    for (const auto& [id, action] : space.actions) {
      blank_line();
      annotations(action.annotations);
      CRETO_TRY(this->action(id, action));
    }
    return {};
  }

  Result<> action(const std::string& id, const ActionDecl& action) {
    std::string text = "action " + name(id);
    if (!action.member_of.empty()) {
      text += " in [";
      for (std::size_t i = 0; i < action.member_of.size(); ++i) {
        const ActionRef& ref = action.member_of[i];
        text += i ? ", " : "";
        text += ref.type ? fmt::format("{}::{}", *ref.type, quote(ref.id)) : name(ref.id);
      }
      text += "]";
    }
    // An action that applies to nothing is one without `appliesTo`: Cedar's syntax has no empty list of types.
    const auto& applies = action.applies_to;
    if (!applies || applies->principals.empty() || applies->resources.empty()) {
      line(text + ";");
      return {};
    }
    line(text + " appliesTo {");
    ++indent_;
    line(fmt::format("principal: {},", names(applies->principals)));
    line(fmt::format("resource: {},", names(applies->resources)));
    if (applies->context) {
      const std::string context = CRETO_TRY(type(*applies->context));
      line(fmt::format("context: {},", context));
    }
    --indent_;
    line("};");
    return {};
  }

  static std::string names(const std::vector<PlacedName>& names) {
    std::string text = "[";
    for (std::size_t i = 0; i < names.size(); ++i) text += (i ? ", " : "") + names[i].name;
    return text + "]";
  }

  /// What `text` would be read as in the current namespace.
  TypeExpr::Kind meaning(const std::string& text) const {
    const auto look = [&](const std::string& space, const std::string& id) -> std::optional<TypeExpr::Kind> {
      const auto at = schema_.namespaces.find(space);
      if (at == schema_.namespaces.end()) return {};
      if (at->second.types.contains(id)) return TypeExpr::Kind::common;
      if (at->second.entities.contains(id) || (id == "Action" && !at->second.actions.empty())) {
        return TypeExpr::Kind::entity;
      }
      return {};
    };
    const auto split = text.rfind("::");
    if (split != std::string::npos) {
      return look(text.substr(0, split), text.substr(split + 2)).value_or(TypeExpr::Kind::named);
    }
    if (const auto here = look(space_, text)) return *here;
    return look("", text).value_or(TypeExpr::Kind::named);
  }

  Result<std::string> builtin(const std::string& name) const {
    return meaning(name) == TypeExpr::Kind::named ? name : "__cedar::" + name;
  }

  Result<std::string> type(const TypeExpr& expr) {
    switch (expr.kind) {
      case TypeExpr::Kind::named:
        return expr.name;
      case TypeExpr::Kind::common:
      case TypeExpr::Kind::entity:
        if (meaning(expr.name) != expr.kind) {
          return Error(Product::platform, ErrorKind::invalid_input,
                       fmt::format("Cedar's syntax cannot say that `{}` is {}", expr.name,
                                   expr.kind == TypeExpr::Kind::entity ? "an entity type" : "a common type"));
        }
        return expr.name;
      case TypeExpr::Kind::extension:
        return builtin(expr.name);
      case TypeExpr::Kind::boolean:
        return builtin("Bool");
      case TypeExpr::Kind::integer:
        return builtin("Long");
      case TypeExpr::Kind::string:
        return builtin("String");
      case TypeExpr::Kind::set: {
        const std::string element = CRETO_TRY(type(expr.element[0]));
        return fmt::format("Set<{}>", element);
      }
      case TypeExpr::Kind::record:
        break;
    }
    if (expr.attributes.empty()) return std::string("{}");
    std::string text = "{\n";
    ++indent_;
    for (const AttributeDecl& attribute : expr.attributes) {
      for (const auto& [key, value] : attribute.annotations) {
        text.append(indent_ * 2, ' ');
        text += value.empty() ? fmt::format("@{}\n", key) : fmt::format("@{}({})\n", key, quote(value));
      }
      const std::string of = CRETO_TRY(type(attribute.type));
      text.append(indent_ * 2, ' ');
      text += fmt::format("{}{}: {},\n", name(attribute.name), attribute.required ? "" : "?", of);
    }
    --indent_;
    text.append(indent_ * 2, ' ');
    return text + "}";
  }

  const SchemaDecl& schema_;
  std::string out_;
  std::string space_;
  std::size_t indent_ = 0;
  bool first_ = true;
};

}  // namespace

Parsed<SchemaDecl> parse_schema(std::string_view text, SchemaLimits limits) {
  if (text.size() > limits.bytes_max) {
    return {{}, {{{0, 0}, fmt::format("the text of the schema is longer than {} bytes", limits.bytes_max)}}};
  }
  const auto lexed = lex(text);
  if (!lexed) return {{}, {problem_of(lexed.error())}};
  return SchemaParser(lexed->tokens, limits).run();
}

Result<std::string> schema_to_text(const SchemaDecl& schema) { return SchemaPrinter(schema).run(); }

}  // namespace creto::authz::cedar

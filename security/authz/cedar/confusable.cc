#include "cedar/confusable.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "cedar/text.h"

namespace creto::authz::cedar {
namespace {

/// A bit for each script; those that Japanese, Korean and Chinese are written in together have one of their own.
using ScriptSet = std::array<std::uint64_t, 3>;

// `script_sets`, and `script_ranges` by code point: where a range begins << 11 | its set << 1 | fit for identifiers.
#include "cedar/unicode_scripts.inc"

struct Character {
  char32_t value;
  const ScriptSet& scripts;
  bool in_identifiers;
};

/// Takes the first character off `text`.
Character next(std::string_view& text) {
  const auto first = static_cast<unsigned char>(text[0]);
  const std::size_t size = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  char32_t value = size == 1 ? first : first & (0xff >> (size + 1));
  for (std::size_t i = 1; i < std::min(size, text.size()); ++i)
    value = value << 6 | (static_cast<unsigned char>(text[i]) & 0x3f);
  text.remove_prefix(std::min(size, text.size()));
  const auto* after = std::upper_bound(std::begin(script_ranges), std::end(script_ranges), value << 11 | 0x7ff);
  const std::uint32_t range = *(after - 1);
  return {value, script_sets[range >> 1 & 0x3ff], (range & 1) != 0};
}

/// Marks that turn the direction of what follows, so that it stands elsewhere than it is read.
bool turns_direction(char32_t c) { return (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069); }

std::string_view confusable(std::string_view text, bool name) {
  ScriptSet common = {~std::uint64_t{0}, ~std::uint64_t{0}, ~std::uint64_t{0}};
  bool odd = false;
  while (!text.empty()) {
    const Character c = next(text);
    if (turns_direction(c.value)) return "turns the direction of reading";
    const bool printable = c.value >= 0x20 && c.value < 0x7f;
    odd = odd || (!printable && !c.in_identifiers);
    for (std::size_t i = 0; i < common.size(); ++i) common[i] &= c.scripts[i];
  }
  if (name && odd) return "has characters that Unicode advises to keep out of names";
  return common == ScriptSet{} ? "mixes scripts" : "";
}

/// Quoted, with what cannot be seen as an escape.
std::string visible(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::string_view from = text;
    const char32_t c = next(text).value;
    if (turns_direction(c) || c == 0x200b) {
      out += fmt::format("\\u{{{:x}}}", static_cast<std::uint32_t>(c));
    } else {
      out += from.substr(0, from.size() - text.size());
    }
  }
  return fmt::format("`{}`", out);
}

class Finder {
 public:
  explicit Finder(const PolicyAst& policy) : policy_(policy) {}

  std::vector<Problem> run() {
    for (const ScopeConstraint* scope : {&policy_.principal, &policy_.action, &policy_.resource})
      for (const EntityUid& uid : scope->entities) name(uid.id, scope->where);
    for (const Node& node : policy_.nodes) look_at(node);
    return std::move(found_);
  }

 private:
  void look_at(const Node& node) {
    name(node.name, node.where);
    for (const std::string& part : node.path) name(part, node.where);
    if (node.value) {
      if (const auto* uid = node.value->as<EntityUid>()) name(uid->id, node.where);
      if (const auto* string = node.value->as<std::string>()) text(*string, node.where);
    }
    if (node.op != Op::like) return;
    std::string pattern = node.pattern[0];
    for (std::size_t i = 1; i < node.pattern.size(); ++i) pattern += '*' + node.pattern[i];
    text(pattern, node.where);
  }

  void name(std::string_view what, Position where) { note("name", what, confusable_name(what), where); }
  void text(std::string_view what, Position where) { note("text", what, confusable_text(what), where); }
  void note(std::string_view kind, std::string_view what, std::string_view why, Position where) {
    if (why.empty()) return;
    found_.push_back({where, fmt::format("the {} {} {}: it may be read as another", kind, visible(what), why)});
  }

  const PolicyAst& policy_;
  std::vector<Problem> found_;
};

}  // namespace

std::string_view confusable_text(std::string_view text) { return confusable(text, false); }
std::string_view confusable_name(std::string_view name) { return confusable(name, true); }
std::vector<Problem> confusables(const PolicyAst& policy) { return Finder(policy).run(); }

}  // namespace creto::authz::cedar

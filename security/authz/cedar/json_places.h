#pragma once

#include <cstddef>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "cedar/problem.h"
#include "creto/common/json.h"

/// Where in a JSON text something stands, for messages about it.
namespace creto::authz::cedar {

/// A text and what a parser made of it.
struct JsonText {
  std::string text;  ///< as given, but for members that stood twice: only the first of each is there
  Json json;
  bool whole = false;  ///< false: no parser accepts it
};

/// Reads JSON for messages. Problems: each member that stands twice, with its place; else what made it unreadable.
Parsed<JsonText> read_json(std::string_view text, JsonLimits limits);

/// Where the value at `path` begins: `actions.view.appliesTo`, `staticPolicies["a"].conditions[0]`, `[2].attrs`. What
/// follows the last member or element that is there ("…: must be a string") is passed over, so a message that begins
/// with a path will do. Of names that could be meant the longest counts. Requires: a parser has accepted `text`.
Position json_place(std::string_view text, std::string_view path);

/// Where the members of the members of an object begin, by both names, from one reading. Requires: as `json_place`.
std::map<std::pair<std::string, std::string>, Position> json_members(std::string_view text);

/// Where each value of `json` begins. Requires: `json` is what a parser made of `text`. Valid as long as `json` stays
/// where and as it is.
using JsonPositions = std::unordered_map<const Json*, Position>;
JsonPositions json_positions(std::string_view text, const Json& json);

/// To find a place is to read the text up to it: of a text with more problems the others have none.
inline constexpr std::size_t json_problems_placed = 100;

}  // namespace creto::authz::cedar

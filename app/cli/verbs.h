#pragma once

#include <span>
#include <string_view>
#include <vector>

/// The verbs that are one call each, as data. A module that gains a method gains a verb by a row in verbs.cc; what
/// needs more than a call (init, serve, approve, audit verify) is a function in commands.cc.
namespace creto::app::cli {

struct Parameter {
  enum class Kind {
    text,
    number,
    flag,
    duration,   ///< "15m"; sent as the proto's Duration
    instant,    ///< RFC 3339
    json,       ///< a JSON value, or @FILE with JSON or YAML
    file,       ///< the text of a file; `-` is standard input
    secret,     ///< as file, sent as bytes; never a value in argv
    pair,       ///< KEY=VALUE, repeatable: a map
    list,       ///< repeatable
    reference,  ///< PATH/NAME or BUCKET/KEY: an object {path, name} or {bucket, key}, as the verb's field ends
    self,       ///< not asked for: the identity of this home's human
  };
  std::string_view name;   ///< "--limit", or "ID" for a positional one
  std::string_view field;  ///< where it goes in the request, dotted: "filter.owner"
  std::string_view help;
  Kind kind = Kind::text;
  bool required = false;
};

struct Verb {
  std::string_view path;  ///< "agents list"
  std::string_view help;
  std::string_view method;  ///< "creto.nhi.v1.NhiService/ListAgents"
  std::vector<Parameter> parameters;
  std::vector<std::string_view> columns;  ///< of the table that lists are shown as; empty: every scalar
};

std::span<const Verb> verbs();

}  // namespace creto::app::cli

#include "cli/yaml.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <charconv>
#include <nlohmann/json.hpp>

#include "creto/common/bytes.h"

namespace creto::app::cli {
namespace {

/// YAML also reads UTF-16, and takes bytes as they come.
const std::string& text_of(const YAML::Node& node) {
  if (!is_valid_utf8(node.Scalar())) throw YAML::Exception(node.Mark(), "not valid UTF-8");
  return node.Scalar();
}

Json scalar(const YAML::Node& node) {
  const std::string& text = text_of(node);
  if (node.Tag() == "!") return text;  // quoted
  if (text == "true") return true;
  if (text == "false") return false;
  if (text == "null" || text == "~") return nullptr;
  std::int64_t number = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (problem == std::errc() && end == text.data() + text.size()) return number;
  return text;
}

/// An alias counts as often as it is used: what it stands for may grow with every one.
constexpr std::size_t nodes_max = 100'000;
constexpr int depth_max = 64;

Json convert(const YAML::Node& node, int depth, std::size_t& nodes) {
  if (depth > depth_max) throw YAML::Exception(node.Mark(), "nested too deeply");
  if (++nodes > nodes_max) throw YAML::Exception(node.Mark(), "too large");
  switch (node.Type()) {
    case YAML::NodeType::Scalar:
      return scalar(node);
    case YAML::NodeType::Sequence: {
      Json list = Json::array();
      for (const YAML::Node& element : node) list.push_back(convert(element, depth + 1, nodes));
      return list;
    }
    case YAML::NodeType::Map: {
      Json object = Json::object();
      for (const auto& member : node) {
        if (!member.first.IsScalar()) throw YAML::Exception(member.first.Mark(), "a key must be text");
        const auto [place, fresh] = object.emplace(text_of(member.first), nullptr);
        if (!fresh) throw YAML::Exception(member.first.Mark(), "duplicate key");
        *place = convert(member.second, depth + 1, nodes);
      }
      return object;
    }
    case YAML::NodeType::Undefined:
    case YAML::NodeType::Null:
      break;
  }
  return nullptr;
}

}  // namespace

Result<Json> json_from_yaml(const std::string& text) {
  try {
    std::size_t nodes = 0;
    return convert(YAML::Load(text), 0, nodes);
  } catch (const YAML::Exception& problem) {
    return Error(
        Product::platform, ErrorKind::invalid_input,
        fmt::format("yaml: line {}, column {}: {}", problem.mark.line + 1, problem.mark.column + 1, problem.msg));
  }
}

}  // namespace creto::app::cli

#include <algorithm>
#include <array>
#include <bitset>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "creto/inference/inference.h"

namespace creto::inference {
namespace {

// A rule holds where all its groups occur in order, each within `window` characters after the one before; a group is
// alternatives separated by ';'. Text is compared in lower case with runs of anything but letters, digits and a few
// marks as one space, so that line breaks and decoration do not hide an attack. Names and weights are documented in
// README.md.
struct Rule {
  std::string_view name;
  double weight;
  std::array<std::string_view, 3> groups;
  std::size_t window;
};

constexpr std::array rules{
    Rule{"override_instructions",
         0.8,
         {"ignore;disregard;forget;override;do not follow;stop following",
          "previous;prior;above;earlier;all;your;these;existing;original",
          "instruction;prompt;rules;directions;guidelines"},
         40},
    Rule{"new_identity",
         0.5,
         {"you are now;from now on you;act as;pretend to be;pretend you are;roleplay as",
          "unrestricted;without restrictions;no restrictions;jailbroken;developer mode;dan ;another ai;admin;root", ""},
         60},
    Rule{"fake_role_marker",
         0.6,
         {" system: ; [system] ;<|im_start|>;<|system|>;### instruction; <system> ;[inst]", "", ""},
         0},
    Rule{"reveal_prompt",
         0.5,
         {"reveal;print;show;repeat;output;tell me;leak",
          "system prompt;your instructions;hidden prompt;initial prompt;your rules", ""},
         40},
    Rule{"secrecy",
         0.4,
         {"do not mention;don't mention;do not tell;don't tell;without telling;do not inform;keep this secret;do not "
          "reveal this",
          "", ""},
         0},
    Rule{"exfiltrate",
         0.6,
         {"send;post;upload;forward;exfiltrate;transmit;email",
          "password;api key;secret;credentials;private key;access token",
          "to http;to https;http://;https://;to the following;@"},
         80},
    Rule{"divert_payment",
         0.5,
         {"pay;transfer;wire;send", "instead;to this account instead;to the new account;to a different account", ""},
         160},
    Rule{"tool_abuse",
         0.5,
         {"call the;invoke the;use the;run the", "tool;function;action;command",
          "without asking;without confirmation;immediately and"},
         60},
    Rule{"hidden_comment_order", 0.4, {"<!--", "ignore;system:;assistant;instruction;you must;pay ;send ", "-->"}, 400},
};

// At most this much is looked at; the service refuses longer prompts.
constexpr std::size_t text_max = 4u << 20;

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

bool is_letter(char c) { return c >= 'a' && c <= 'z'; }

bool is_kept(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || static_cast<unsigned char>(c) >= 0x80 ||
         std::string_view(":/<>|[]!-#@'.").find(c) != std::string_view::npos;
}

struct Folded {
  std::string text;                     ///< begins and ends with a space
  std::vector<std::uint32_t> position;  ///< of each character in the original
};

Folded fold(std::string_view text) {
  Folded out;
  out.text.reserve(text.size() + 2);
  out.position.reserve(text.size() + 2);
  const auto push = [&](char c, std::size_t at) {
    out.text.push_back(c);
    out.position.push_back(static_cast<std::uint32_t>(at));
  };
  push(' ', 0);
  for (std::size_t i = 0; i < text.size(); ++i) {
    // Zero-width characters (U+200B to U+200F, U+2060, U+FEFF) split words for a filter and not for a model.
    if (text.substr(i).starts_with("\xE2\x80") && i + 2 < text.size() && text[i + 2] >= '\x8B' &&
        text[i + 2] <= '\x8F') {
      i += 2;
      continue;
    }
    if (text.substr(i).starts_with("\xE2\x81\xA0") || text.substr(i).starts_with("\xEF\xBB\xBF")) {
      i += 2;
      continue;
    }
    const char c = lower(text[i]);
    if (is_kept(c)) {
      push(c, i);
    } else if (out.text.back() != ' ') {
      push(' ', i);
    }
  }
  if (out.text.back() != ' ') push(' ', text.empty() ? 0 : text.size() - 1);
  return out;
}

struct Found {
  std::size_t begin = std::string_view::npos;
  std::size_t end = 0;
};

/// The alternatives of one group, found by going through the text once, whatever it holds.
class Group {
 public:
  explicit Group(std::string_view alternatives) {
    while (!alternatives.empty()) {
      const auto end = std::min(alternatives.find(';'), alternatives.size());
      words_.push_back(alternatives.substr(0, end));
      begins_.set(static_cast<unsigned char>(alternatives[0]));
      alternatives.remove_prefix(std::min(end + 1, alternatives.size()));
    }
  }

  bool empty() const { return words_.empty(); }

  /// The first place in [from, to) where an alternative begins.
  Found find(std::string_view text, std::size_t from, std::size_t to) const {
    for (std::size_t at = from; at < std::min(to, text.size()); ++at) {
      if (!begins_.test(static_cast<unsigned char>(text[at]))) continue;
      if (at > 0 && is_letter(text[at]) && is_letter(text[at - 1])) continue;  // only where a word begins
      for (const auto word : words_) {
        if (text.substr(at).starts_with(word)) return {at, at + word.size()};
      }
    }
    return {};
  }

 private:
  std::vector<std::string_view> words_;
  std::bitset<256> begins_;
};

Found match(const std::array<Group, 3>& groups, std::size_t window, std::string_view text) {
  // Each attempt begins behind the first group of the one before, and looks at most `window` further for each other
  // group.
  std::size_t from = 0;
  while (true) {
    const auto first = groups[0].find(text, from, text.size());
    if (first.begin == std::string_view::npos) return first;
    auto end = first.end;
    bool whole = true;
    for (std::size_t g = 1; g < groups.size() && !groups[g].empty() && whole; ++g) {
      const auto next = groups[g].find(text, end, end + window);
      whole = next.begin != std::string_view::npos;
      end = next.end;
    }
    if (whole) return first;
    from = first.end;
  }
}

std::string excerpt(std::string_view original, std::size_t at) {
  constexpr std::size_t size = 120;
  auto begin = at < size / 4 ? 0 : at - size / 4;
  while (begin < original.size() && (static_cast<unsigned char>(original[begin]) & 0xC0) == 0x80) ++begin;
  auto end = std::min(original.size(), begin + size);
  while (end < original.size() && end > begin && (static_cast<unsigned char>(original[end]) & 0xC0) == 0x80) --end;
  std::string out(original.substr(begin, end - begin));
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  }
  return out;
}

}  // namespace

InjectionFinding check_injection(std::string_view text) {
  text = text.substr(0, text_max);
  const auto folded = fold(text);
  InjectionFinding finding;
  double clean = 1;
  std::vector<std::pair<double, std::string_view>> matched;
  auto first = std::string_view::npos;
  for (const auto& rule : rules) {
    const std::array groups{Group(rule.groups[0]), Group(rule.groups[1]), Group(rule.groups[2])};
    const auto found = match(groups, rule.window, folded.text);
    if (found.begin == std::string_view::npos) continue;
    clean *= 1 - rule.weight;
    matched.emplace_back(rule.weight, rule.name);
    first = std::min(first, found.begin);
  }
  std::ranges::stable_sort(matched, std::greater(), &std::pair<double, std::string_view>::first);
  for (const auto& [weight, name] : matched) finding.rules.emplace_back(name);
  finding.score = 1 - clean;
  if (!matched.empty() && is_valid_utf8(text)) finding.excerpt = excerpt(text, folded.position[first]);
  return finding;
}

}  // namespace creto::inference

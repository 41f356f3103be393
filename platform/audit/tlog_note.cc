#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "creto/audit/tlog.h"
#include "creto/common/assert.h"
#include "creto/crypto/hash.h"

namespace creto::tlog {
namespace {

constexpr std::string_view dash = "\xe2\x80\x94 ";  // an em dash and a space
constexpr std::size_t signatures_max = 100;
constexpr std::size_t name_length_max = 255;

constexpr std::uint8_t type_ed25519 = 0x01;
// 0xff is signed-note's escape for types it has not assigned, to be followed by a longer identifier.
constexpr std::string_view type_ml_dsa_65{
    "\xff"
    "creto.ml-dsa-65\0",
    17};
// Keeps a checkpoint signature from being taken for anything else that such a key signs.
constexpr std::string_view ml_dsa_context = "creto signed note";

Error refusal(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

bool is_name(std::string_view name) {
  return !name.empty() && name.size() <= name_length_max && is_valid_utf8(name) &&
         std::none_of(name.begin(), name.end(),
                      [](char c) { return c == '+' || static_cast<unsigned char>(c) <= ' '; });
}

bool is_ed25519(const crypto::VerifyingKey& key) { return key.algorithm() == crypto::SignatureAlgorithm::ed25519; }

Bytes typed_key(const crypto::VerifyingKey& key) {
  CRETO_ASSERT(is_ed25519(key) || key.algorithm() == crypto::SignatureAlgorithm::ml_dsa_65);
  Bytes bytes = is_ed25519(key) ? Bytes{type_ed25519} : to_bytes(type_ml_dsa_65);
  bytes.insert(bytes.end(), key.bytes().begin(), key.bytes().end());
  return bytes;
}

std::uint32_t key_id(std::string_view name, BytesView typed) {
  static constexpr std::uint8_t newline[] = {'\n'};
  const Hash256 hash = crypto::sha256({as_bytes(name), newline, typed});
  return static_cast<std::uint32_t>(hash[0]) << 24 | static_cast<std::uint32_t>(hash[1]) << 16 |
         static_cast<std::uint32_t>(hash[2]) << 8 | hash[3];
}

BytesView context_of(const crypto::VerifyingKey& key) {
  return is_ed25519(key) ? BytesView() : as_bytes(ml_dsa_context);
}

}  // namespace

Result<VerifierKey> VerifierKey::parse(std::string_view vkey) {
  const auto bad = [&](std::string_view why) {
    return refusal(ErrorKind::invalid_input, fmt::format("verifier key: {}", why));
  };
  const auto first = vkey.find('+');
  const auto second = first == std::string_view::npos ? first : vkey.find('+', first + 1);
  if (second == std::string_view::npos) return bad("must be name+id+key");
  const auto name = vkey.substr(0, first);
  const auto id_text = vkey.substr(first + 1, second - first - 1);
  if (!is_name(name)) return bad("the name is empty, too long, or has a space or plus");
  std::uint32_t id = 0;
  const auto parsed = std::from_chars(id_text.data(), id_text.data() + id_text.size(), id, 16);
  if (id_text.size() != 8 || parsed.ec != std::errc() || parsed.ptr != id_text.data() + id_text.size()) {
    return bad("the id must be 8 hex digits");
  }
  const auto typed = from_base64(vkey.substr(second + 1));
  if (!typed || typed->empty()) return bad("the key is not base64");
  if (key_id(name, *typed) != id) return bad("the id does not belong to the name and key");
  crypto::SignatureAlgorithm algorithm;
  std::size_t prefix = 1;
  if (typed->front() == type_ed25519) {
    algorithm = crypto::SignatureAlgorithm::ed25519;
  } else if (as_text(*typed).starts_with(type_ml_dsa_65)) {
    algorithm = crypto::SignatureAlgorithm::ml_dsa_65;
    prefix = type_ml_dsa_65.size();
  } else {
    return refusal(ErrorKind::unsupported_algorithm,
                   fmt::format("verifier key: type 0x{:02x} is not supported", typed->front()));
  }
  auto key = CRETO_TRY(crypto::VerifyingKey::parse(algorithm, BytesView(*typed).subspan(prefix)));
  return VerifierKey(std::string(name), id, std::move(key));
}

VerifierKey VerifierKey::of(std::string name, const crypto::VerifyingKey& key) {
  CRETO_ASSERT(is_name(name));
  const std::uint32_t id = key_id(name, typed_key(key));
  return VerifierKey(std::move(name), id, key);
}

std::string VerifierKey::text() const { return fmt::format("{}+{:08x}+{}", name_, id_, base64(typed_key(key_))); }

Result<std::vector<VerifierKey>> parse_key_file(std::string_view text) {
  if (text.size() > note_bytes_max) return refusal(ErrorKind::too_large, "the key file is too large");
  std::vector<VerifierKey> keys;
  while (!text.empty()) {
    const auto end = text.find('\n');
    auto line = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.empty() || line.front() == '#') continue;
    VerifierKey key = CRETO_TRY(VerifierKey::parse(line));
    keys.push_back(std::move(key));
  }
  if (keys.empty()) return refusal(ErrorKind::invalid_input, "the key file has no verifier key");
  return keys;
}

Result<Note> parse_note(std::string_view note) {
  const auto bad = [](std::string_view why) {
    return refusal(ErrorKind::invalid_input, fmt::format("signed note: {}", why));
  };
  if (note.size() > note_bytes_max) return refusal(ErrorKind::too_large, "signed note: it is too large");
  if (!is_valid_utf8(note) ||
      std::any_of(note.begin(), note.end(), [](char c) { return static_cast<unsigned char>(c) < ' ' && c != '\n'; })) {
    return bad("it is not plain UTF-8 text");
  }
  const auto split = note.rfind("\n\n");
  if (split == std::string_view::npos) return bad("there is no blank line before the signatures");
  Note parsed;
  parsed.text = note.substr(0, split + 1);
  auto rest = note.substr(split + 2);
  if (rest.empty() || rest.back() != '\n') return bad("it has no signature or does not end with a newline");
  while (!rest.empty()) {
    const auto end = rest.find('\n');
    auto line = rest.substr(0, end);
    rest = rest.substr(end + 1);
    if (!line.starts_with(dash)) return bad("a signature line does not begin with an em dash");
    line.remove_prefix(dash.size());
    const auto space = line.find(' ');
    if (space == std::string_view::npos || !is_name(line.substr(0, space))) return bad("a signature has no name");
    const auto bytes = from_base64(line.substr(space + 1));
    if (!bytes || bytes->size() < 5) return bad("a signature is not base64 or too short");
    if (parsed.signatures.size() == signatures_max) return bad("it has too many signatures");
    NoteSignature signature;
    signature.name = line.substr(0, space);
    signature.key_id = static_cast<std::uint32_t>((*bytes)[0]) << 24 | static_cast<std::uint32_t>((*bytes)[1]) << 16 |
                       static_cast<std::uint32_t>((*bytes)[2]) << 8 | (*bytes)[3];
    signature.signature.assign(bytes->begin() + 4, bytes->end());
    parsed.signatures.push_back(std::move(signature));
  }
  return parsed;
}

Result<std::string> sign_note(std::string_view text, std::string_view name,
                              const std::vector<const crypto::SigningKey*>& keys) {
  CRETO_ASSERT(!text.empty() && text.back() == '\n');
  std::string note = fmt::format("{}\n", text);
  for (const crypto::SigningKey* key : keys) {
    const crypto::VerifyingKey& verifying = key->verifying_key();
    const std::uint32_t id = VerifierKey::of(std::string(name), verifying).id();
    const Signature signature = CRETO_TRY(key->sign(as_bytes(text), context_of(verifying)));
    Bytes bytes{static_cast<std::uint8_t>(id >> 24), static_cast<std::uint8_t>(id >> 16 & 0xff),
                static_cast<std::uint8_t>(id >> 8 & 0xff), static_cast<std::uint8_t>(id & 0xff)};
    bytes.insert(bytes.end(), signature.value.begin(), signature.value.end());
    note += fmt::format("{}{} {}\n", dash, name, base64(bytes));
  }
  return note;
}

Result<std::string> verify_note(std::string_view note, const std::vector<VerifierKey>& keys) {
  CRETO_ASSERT(!keys.empty());
  Note parsed = CRETO_TRY(parse_note(note));
  for (const VerifierKey& key : keys) {
    const auto found = std::find_if(parsed.signatures.begin(), parsed.signatures.end(), [&](const auto& signature) {
      return signature.name == key.name() && signature.key_id == key.id();
    });
    const std::string_view algorithm = crypto::to_string(key.key().algorithm());
    if (found == parsed.signatures.end()) {
      return refusal(ErrorKind::signature_invalid,
                     fmt::format("the note has no {} signature by `{}`", algorithm, key.name()));
    }
    const Signature signature{std::string(algorithm), found->signature};
    if (!key.key().verify(as_bytes(parsed.text), signature, context_of(key.key()))) {
      return refusal(ErrorKind::signature_invalid,
                     fmt::format("the {} signature by `{}` does not hold", algorithm, key.name()));
    }
  }
  return std::move(parsed.text);
}

std::string Checkpoint::text() const {
  std::string text = fmt::format("{}\n{}\n{}\n", origin, size, base64(root));
  for (const auto& line : extensions) text += line + "\n";
  return text;
}

Result<Checkpoint> Checkpoint::parse(std::string_view text) {
  const auto bad = [](std::string_view why) {
    return refusal(ErrorKind::invalid_input, fmt::format("checkpoint: {}", why));
  };
  if (text.size() > note_bytes_max) return refusal(ErrorKind::too_large, "checkpoint: it is too large");
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const auto end = text.find('\n');
    if (end == std::string_view::npos) return bad("the last line has no end");
    lines.push_back(text.substr(0, end));
    text = text.substr(end + 1);
  }
  if (lines.size() < 3) return bad("it has fewer than three lines");
  Checkpoint checkpoint;
  checkpoint.origin = lines[0];
  if (checkpoint.origin.empty()) return bad("line 1, the origin, is empty");
  const auto size = lines[1];
  const auto parsed = std::from_chars(size.data(), size.data() + size.size(), checkpoint.size);
  if (parsed.ec != std::errc() || parsed.ptr != size.data() + size.size() || (size.size() > 1 && size[0] == '0')) {
    return bad("line 2, the size, is not a decimal number");
  }
  const auto root = from_base64(lines[2]);
  if (!root) return bad("line 3, the root, is not base64");
  if (root->size() != checkpoint.root.size()) return bad("line 3, the root, has not 32 bytes");
  std::copy(root->begin(), root->end(), checkpoint.root.begin());
  for (std::size_t i = 3; i < lines.size(); ++i) {
    if (lines[i].empty()) return bad("an extension line is empty");
    checkpoint.extensions.emplace_back(lines[i]);
  }
  return checkpoint;
}

}  // namespace creto::tlog

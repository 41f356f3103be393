#include "creto/audit/tlog.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "testing/vectors.h"

namespace creto::tlog {
namespace {

using testing::read_vector;
using testing::vector_json;

Hash256 hash_of(BytesView bytes) {
  Hash256 hash{};
  if (bytes.size() == hash.size()) std::copy(bytes.begin(), bytes.end(), hash.begin());
  return hash;
}
/// None where a hash has another length than SHA-256: nothing our types could hold.
std::optional<std::vector<Hash256>> path_from(const nlohmann::json& list) {
  std::vector<Hash256> path;
  if (list.is_null()) return path;
  for (const auto& item : list) {
    const auto bytes = *from_base64(item.get<std::string>());
    if (bytes.size() != 32) return std::nullopt;
    path.push_back(hash_of(bytes));
  }
  return path;
}

std::vector<Bytes> some_entries(std::size_t count) {
  std::vector<Bytes> entries;
  for (std::size_t i = 0; i < count; ++i) entries.push_back(to_bytes("entry " + std::to_string(i)));
  return entries;
}

/// A log in memory, as files.
struct MemoryLog {
  std::map<std::string, Bytes> files;
  std::uint64_t size = 0;
  Hash256 root = empty_root();
  crypto::SigningKey key = crypto::SigningKey::generate(crypto::SignatureAlgorithm::ed25519);
  crypto::SigningKey pq_key = crypto::SigningKey::generate(crypto::SignatureAlgorithm::ml_dsa_65);

  FileReader reader() {
    return [this](const std::string& path) -> Result<std::optional<Bytes>> {
      const auto found = files.find(path);
      if (found == files.end()) return std::optional<Bytes>();
      return std::optional<Bytes>(found->second);
    };
  }
  void add(const std::vector<Bytes>& entries) {
    auto growth = *grow(size, reader(), entries);
    for (auto& file : growth.files) files[file.path] = std::move(file.content);
    size = growth.size;
    root = growth.root;
  }
  void sign() {
    const Checkpoint checkpoint{"example.com/log", size, root, {}};
    files["checkpoint"] = to_bytes(*sign_note(checkpoint.text(), "example.com/log", {&key, &pq_key}));
  }
  std::vector<VerifierKey> keys() {
    return {VerifierKey::of("example.com/log", key.verifying_key()),
            VerifierKey::of("example.com/log", pq_key.verifying_key())};
  }
};

TEST(MerkleTree, HasTheRootsOfTheReferenceTree) {
  CRETO_NEEDS_VECTORS();
  const auto& vectors = vector_json("merkle/rfc6962_reference_tree.json");
  std::vector<Bytes> leaves;
  for (const auto& leaf : vectors.at("leaves_hex")) leaves.push_back(*from_hex(leaf.get<std::string>()));
  for (const auto& [size, root] : vectors.at("roots_hex").items()) {
    MemoryLog log;
    log.add({leaves.begin(), leaves.begin() + std::stol(size)});
    EXPECT_EQ(hex(log.root), root.get<std::string>()) << size;
  }
}

TEST(MerkleTree, AcceptsAndRefusesTheInclusionProofsOfTheVectors) {
  CRETO_NEEDS_VECTORS();
  int accepted = 0;
  int refused = 0;
  for (const auto& vector : vector_json("merkle/inclusion.json")) {
    const auto path = path_from(vector.at("proof"));
    const auto root = *from_base64(vector.at("root").get<std::string>());
    const auto leaf =
        vector.at("leafHash").is_null() ? Bytes() : *from_base64(vector.at("leafHash").get<std::string>());
    const bool holds =
        path && root.size() == 32 && leaf.size() == 32 &&
        verify_inclusion(vector.at("leafIdx"), vector.at("treeSize"), hash_of(leaf), *path, hash_of(root));
    EXPECT_EQ(holds, !vector.at("wantErr").get<bool>()) << vector.at("case");
    ++(holds ? accepted : refused);
  }
  EXPECT_EQ(accepted, 6);
  EXPECT_EQ(refused, 92);
}

TEST(MerkleTree, AcceptsAndRefusesTheConsistencyProofsOfTheVectors) {
  CRETO_NEEDS_VECTORS();
  int accepted = 0;
  for (const auto& vector : vector_json("merkle/consistency.json")) {
    const auto path = path_from(vector.at("proof"));
    const auto old_root = *from_base64(vector.at("root1").get<std::string>());
    const auto new_root = *from_base64(vector.at("root2").get<std::string>());
    const bool holds =
        path && old_root.size() == 32 && new_root.size() == 32 &&
        verify_consistency(vector.at("size1"), vector.at("size2"), *path, hash_of(old_root), hash_of(new_root));
    // One accepted case compares two roots that are no SHA-256 hashes; our types cannot hold them.
    const bool ours = old_root.size() == 32 && new_root.size() == 32;
    EXPECT_EQ(holds, ours && !vector.at("wantErr").get<bool>()) << vector.at("case");
    accepted += holds ? 1 : 0;
  }
  EXPECT_EQ(accepted, 5);
}

TEST(MerkleTree, ProvesEveryEntryAndEveryPrefixOfSmallTrees) {
  std::vector<Hash256> roots;
  for (std::size_t size = 0; size <= 20; ++size) {
    MemoryLog log;
    log.add(some_entries(size));
    roots.push_back(log.root);
    TileNodes nodes(log.reader(), size);
    for (std::size_t i = 0; i < size; ++i) {
      auto path = *inclusion_path(i, size, nodes.reader());
      EXPECT_TRUE(verify_inclusion(i, size, leaf_hash(some_entries(size)[i]), path, log.root));
      EXPECT_FALSE(verify_inclusion(i, size, leaf_hash(as_bytes("other")), path, log.root));
      if (!path.empty()) {
        path.back()[0] ^= 1;
        EXPECT_FALSE(verify_inclusion(i, size, leaf_hash(some_entries(size)[i]), path, log.root));
      }
    }
    for (std::size_t old = 1; old <= size; ++old) {
      const auto path = *consistency_path(old, size, nodes.reader());
      EXPECT_TRUE(verify_consistency(old, size, path, roots[old], log.root)) << old << " to " << size;
      if (old < size) {
        EXPECT_FALSE(verify_consistency(old, size, path, roots[old - 1], log.root));
      }
    }
  }
}

TEST(Tiles, AreTheSameHoweverTheLogGrew) {
  const auto entries = some_entries(1'500);
  MemoryLog at_once;
  at_once.add(entries);
  MemoryLog in_steps;
  for (std::size_t i = 0; i < entries.size();) {
    const std::size_t step = std::min<std::size_t>(entries.size() - i, 1 + i * 7 % 301);
    in_steps.add(
        {entries.begin() + static_cast<std::ptrdiff_t>(i), entries.begin() + static_cast<std::ptrdiff_t>(i + step)});
    i += step;
  }
  EXPECT_EQ(at_once.root, in_steps.root);
  for (const auto& [path, content] : at_once.files) EXPECT_EQ(in_steps.files.at(path), content) << path;
}

TEST(Tiles, ReachAThirdLevel) {
  const auto entries = some_entries(65'800);
  MemoryLog log;
  log.add({entries.begin(), entries.begin() + 65'530});
  log.add({entries.begin() + 65'530, entries.end()});
  log.sign();
  const auto verified = verify_log(log.reader(), {log.keys()[0]});
  ASSERT_TRUE(verified) << verified.error().to_string();
  EXPECT_EQ(verified->size, 65'800u);
  TileNodes nodes(log.reader(), log.size);
  for (const std::uint64_t i : {0ULL, 255ULL, 256ULL, 65'535ULL, 65'536ULL, 65'799ULL}) {
    EXPECT_TRUE(
        verify_inclusion(i, log.size, leaf_hash(entries[i]), *inclusion_path(i, log.size, nodes.reader()), log.root));
  }
  EXPECT_TRUE(log.files.contains("tile/2/000.p/1"));
  EXPECT_TRUE(log.files.contains("tile/1/001.p/1"));
  EXPECT_TRUE(log.files.contains("tile/entries/257.p/8"));
}

TEST(Tiles, HaveThePathsOfTheVectors) {
  CRETO_NEEDS_VECTORS();
  for (const auto& vector : vector_json("tlog/notes_and_checkpoints.json").at("tile_paths")) {
    const auto width = vector.at("width").get<std::uint32_t>();
    Tile tile{0, vector.at("index"), width == 0 ? tile_width : width};
    const bool entries = vector.at("level").is_string();
    if (!entries) tile.level = vector.at("level");
    EXPECT_EQ(entries ? bundle_path(tile) : tile_path(tile), vector.at("path").get<std::string>());
  }
}

TEST(Bundles, ReadBackWhatTheyHold) {
  const std::vector<Bytes> entries{Bytes(), Bytes(entry_bytes_max, 7), to_bytes("x")};
  const Bytes bundle = encode_bundle(entries);
  EXPECT_EQ(*decode_bundle(bundle, 3), entries);
  EXPECT_FALSE(decode_bundle(bundle, 2));
  EXPECT_FALSE(decode_bundle(bundle, 4));
  EXPECT_FALSE(decode_bundle(BytesView(bundle).first(bundle.size() - 1), 3));
}

TEST(TesseraLog, IsReadAndRebuiltByteForByte) {
  CRETO_NEEDS_VECTORS();
  const std::string directory = "tlog/tessera_log/";
  const FileReader files = [&](const std::string& path) -> Result<std::optional<Bytes>> {
    if (!std::filesystem::exists(testing::vectors() / (directory + path))) return std::optional<Bytes>();
    return std::optional<Bytes>(to_bytes(read_vector(directory + path)));
  };
  const auto key =
      *VerifierKey::parse("example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx");
  EXPECT_EQ(key.text(), "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx");
  std::vector<Bytes> entries;
  const auto verified = verify_log(files, {key}, [&](std::uint64_t, BytesView entry) -> Result<> {
    entries.push_back(to_bytes(entry));
    return {};
  });
  ASSERT_TRUE(verified) << verified.error().to_string();
  ASSERT_EQ(entries.size(), 15u);
  EXPECT_EQ(as_text(entries[7]), "eit");
  MemoryLog log;
  std::vector<Hash256> roots{log.root};
  for (std::size_t size = 1; size <= entries.size(); ++size) {
    log.add({entries[size - 1]});
    roots.push_back(log.root);
    const auto note = read_vector(directory + "checkpoint." + std::to_string(size));
    const auto checkpoint = *Checkpoint::parse(*verify_note(note, {key}));
    EXPECT_EQ(checkpoint.size, size);
    EXPECT_EQ(checkpoint.root, log.root);
    EXPECT_EQ(checkpoint.text(), parse_note(note)->text);
    EXPECT_EQ(as_text(log.files.at("tile/0/000.p/" + std::to_string(size))),
              read_vector(directory + "tile/0/000.p/" + std::to_string(size)));
    EXPECT_EQ(as_text(log.files.at("tile/entries/000.p/" + std::to_string(size))),
              read_vector(directory + "tile/entries/000.p/" + std::to_string(size)));
  }
}

TEST(SignedNote, AcceptsAndRefusesThoseOfTheVectors) {
  CRETO_NEEDS_VECTORS();
  for (const auto& vector : vector_json("tlog/notes_and_checkpoints.json").at("signed_notes")) {
    const auto key = VerifierKey::parse(vector.at("vkey").get<std::string>());
    ASSERT_TRUE(key) << key.error().to_string();
    EXPECT_EQ(verify_note(vector.at("note").get<std::string>(), {*key}).has_value(), vector.at("valid").get<bool>())
        << vector.at("name");
  }
  for (const auto& vector : vector_json("tlog/notes_and_checkpoints.json").at("checkpoint_parse")) {
    const auto note = parse_note(vector.at("note").get<std::string>());
    ASSERT_TRUE(note);
    EXPECT_EQ(note->signatures.size(), vector.at("signatures").get<std::size_t>());
    const auto checkpoint = *Checkpoint::parse(note->text);
    EXPECT_EQ(checkpoint.origin, vector.at("origin").get<std::string>());
    EXPECT_EQ(checkpoint.size, vector.at("size").get<std::uint64_t>());
  }
}

TEST(SignedNote, ReadsTheKeysOfTheVectors) {
  CRETO_NEEDS_VECTORS();
  for (const auto& vector : vector_json("tlog/notes_and_checkpoints.json").at("verifier_keys")) {
    const auto key = VerifierKey::parse(vector.at("vkey").get<std::string>());
    if (!vector.at("valid").get<bool>()) {
      ASSERT_FALSE(key);
      EXPECT_EQ(key.error().kind(), ErrorKind::invalid_input);
    } else if (vector.at("type").get<std::string>().starts_with("0x01")) {
      EXPECT_TRUE(key);
    } else {
      // Witness cosignatures are not made or checked here.
      ASSERT_FALSE(key);
      EXPECT_EQ(key.error().kind(), ErrorKind::unsupported_algorithm);
    }
  }
}

TEST(Checkpoint, FollowsTheGrammarOfTheVectors) {
  CRETO_NEEDS_VECTORS();
  for (const auto& vector : vector_json("tlog/notes_and_checkpoints.json").at("checkpoint_bodies")) {
    const auto parsed = Checkpoint::parse(vector.at("body").get<std::string>());
    ASSERT_FALSE(parsed) << vector.at("why");
    // The grammar leaves the root's length open; ours is SHA-256's.
    EXPECT_EQ(parsed.error().message().find("has not 32 bytes") != std::string::npos, vector.at("valid").get<bool>())
        << vector.at("why") << ": " << parsed.error().message();
  }
}

TEST(SignedNote, CarriesAPostQuantumSignatureBesideTheUsualOne) {
  MemoryLog log;
  log.add(some_entries(3));
  log.sign();
  const std::string note(as_text(log.files["checkpoint"]));
  const auto keys = log.keys();
  EXPECT_TRUE(verify_note(note, keys));
  EXPECT_TRUE(verify_note(note, {keys[0]}));
  EXPECT_TRUE(verify_note(note, {keys[1]}));
  for (const auto& key : keys) {
    const auto again = VerifierKey::parse(key.text());
    ASSERT_TRUE(again) << again.error().to_string();
    EXPECT_TRUE(verify_note(note, {*again}));
  }
  const auto file = parse_key_file("# the log's keys\n" + keys[0].text() + "\n\n" + keys[1].text() + "\n");
  ASSERT_TRUE(file);
  EXPECT_EQ(file->size(), 2u);
  // Both must hold: without the second line the note is refused.
  const auto cut = note.substr(0, note.rfind("\xe2\x80\x94"));
  EXPECT_TRUE(verify_note(cut, {keys[0]}));
  EXPECT_EQ(verify_note(cut, keys).error().kind(), ErrorKind::signature_invalid);
}

TEST(VerifyLog, NamesWhatWasChanged) {
  MemoryLog log;
  log.add(some_entries(600));
  log.sign();
  const auto keys = log.keys();
  ASSERT_TRUE(verify_log(log.reader(), keys));

  const auto expect = [&](const std::string& path, std::size_t at, std::string_view named) {
    log.files.at(path).at(at) ^= 1;
    const auto result = verify_log(log.reader(), keys);
    log.files.at(path).at(at) ^= 1;
    ASSERT_FALSE(result) << path;
    EXPECT_NE(result.error().message().find(named), std::string::npos) << result.error().to_string();
  };
  // "entry 300" is in the second bundle: 2 bytes of length and 9 of text each.
  expect("tile/entries/001", 44 * 11 + 5, "entry 300 ");
  expect("tile/0/001", 32 * 5, "tile/0/001");
  expect("tile/0/002.p/88", 0, "tile/0/002.p/88");
  expect("tile/1/000.p/2", 40, "tile/1/000.p/2");
  expect("tile/entries/000", 0, "tile/entries/000");
  expect("checkpoint", 3, "signature");
  log.files.erase("tile/0/000");
  const auto missing = verify_log(log.reader(), keys);
  EXPECT_EQ(missing.error().kind(), ErrorKind::not_found);
}

TEST(VerifyLog, FindsAFlippedBitInAnyByteOfASmallLog) {
  MemoryLog log;
  log.add(some_entries(5));
  log.sign();
  const std::vector<VerifierKey> keys{log.keys()[0]};
  for (const auto& [path, content] : log.files) {
    if (path == "checkpoint") continue;
    for (std::size_t bit = 0; bit < content.size() * 8; bit += 7) {
      auto& byte = log.files[path][bit / 8];
      byte = static_cast<std::uint8_t>(byte ^ (1U << bit % 8));
      EXPECT_FALSE(verify_log(log.reader(), keys)) << path << " bit " << bit;
      byte = static_cast<std::uint8_t>(byte ^ (1U << bit % 8));
    }
  }
  // Of the signed text and of our signature; lines of other signers are not ours to judge.
  const std::size_t ours = as_text(log.files["checkpoint"]).rfind("\xe2\x80\x94");
  for (std::size_t bit = 0; bit < ours * 8; bit += 7) {
    auto& byte = log.files["checkpoint"][bit / 8];
    byte = static_cast<std::uint8_t>(byte ^ (1U << bit % 8));
    EXPECT_FALSE(verify_log(log.reader(), keys)) << "checkpoint bit " << bit;
    byte = static_cast<std::uint8_t>(byte ^ (1U << bit % 8));
  }
}

TEST(VerifyLog, RefusesTheCheckpointOfAnotherLog) {
  MemoryLog log;
  log.add(some_entries(2));
  const Checkpoint checkpoint{"example.com/other", log.size, log.root, {}};
  log.files["checkpoint"] = to_bytes(*sign_note(checkpoint.text(), "example.com/log", {&log.key, &log.pq_key}));
  EXPECT_EQ(verify_log(log.reader(), log.keys()).error().kind(), ErrorKind::signature_invalid);
}

}  // namespace
}  // namespace creto::tlog

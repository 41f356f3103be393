#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/bytes.h"
#include "creto/common/result.h"
#include "creto/crypto/signing.h"
#include "creto/io/files.h"

/// A transparency log in the formats of C2SP: tlog-tiles, tlog-checkpoint and signed-note, over the Merkle tree of RFC
/// 6962. Pure: knows nothing of audit records or of SQL, so that a verifier needs only this, the tiles and the public
/// key.
namespace creto::tlog {

// --- the tree
// ---------------------------------------------------------------------------------------------------------

Hash256 leaf_hash(BytesView entry);
Hash256 node_hash(const Hash256& left, const Hash256& right);
/// The root of a tree without entries: SHA-256 of nothing.
Hash256 empty_root();

/// Errors: signature_invalid is for signatures; a proof that does not hold is hash_mismatch, one that cannot be (wrong
/// length, index outside the tree) invalid_input.
Result<> verify_inclusion(std::uint64_t index, std::uint64_t size, const Hash256& leaf,
                          const std::vector<Hash256>& path, const Hash256& root);
Result<> verify_consistency(std::uint64_t old_size, std::uint64_t new_size, const std::vector<Hash256>& path,
                            const Hash256& old_root, const Hash256& new_root);

/// Gives the hash of the complete subtree of 2^level entries that begins at entry index * 2^level.
using NodeReader = std::function<Result<Hash256>(int level, std::uint64_t index)>;

Result<Hash256> tree_root(std::uint64_t size, const NodeReader& nodes);
/// Requires: index < size.
Result<std::vector<Hash256>> inclusion_path(std::uint64_t index, std::uint64_t size, const NodeReader& nodes);
/// Requires: old_size <= new_size.
Result<std::vector<Hash256>> consistency_path(std::uint64_t old_size, std::uint64_t new_size, const NodeReader& nodes);

// --- tiles
// ------------------------------------------------------------------------------------------------------------

inline constexpr std::uint32_t tile_width = 256;
inline constexpr std::size_t entry_bytes_max = 65'535;

/// `width` hashes of height 8 * level from index * 256 on; 256 for a full tile.
struct Tile {
  int level = 0;  ///< 0..7
  std::uint64_t index = 0;
  std::uint32_t width = tile_width;
  friend bool operator==(const Tile&, const Tile&) = default;
};

/// "tile/1/x001/234.p/17".
std::string tile_path(const Tile& tile);
/// "tile/entries/x001/234.p/17"; `tile.level` is 0.
std::string bundle_path(const Tile& tile);

/// Entries with their lengths (u16, big endian). Requires: each at most 65 535 bytes.
Bytes encode_bundle(const std::vector<Bytes>& entries);
/// Errors: invalid_input unless it holds exactly `count` entries.
Result<std::vector<Bytes>> decode_bundle(BytesView bundle, std::uint32_t count);

/// Gives the file at that path below the log, none where there is no such file.
using FileReader = std::function<Result<std::optional<Bytes>>(const std::string& path)>;
FileReader files_below(io::FileSystem& files, std::filesystem::path directory);

/// Reads hashes of a tree of `size` out of its tiles; keeps the last few tiles. Not thread-safe.
class TileNodes {
 public:
  TileNodes(FileReader files, std::uint64_t size);
  ~TileNodes();
  /// Errors: not_found (names the tile), invalid_input (a tile of a wrong length).
  Result<Hash256> node(int level, std::uint64_t index);
  NodeReader reader() {
    return [this](int level, std::uint64_t index) { return node(level, index); };
  }

 private:
  struct Cache;
  FileReader files_;
  std::uint64_t size_;
  std::unique_ptr<Cache> cache_;
};

/// The files that turn the log of `old_size` into one with `entries` more: tiles and bundles, full or partial, in the
/// order in which they must be written. Content depends on nothing but the old log and the entries.
struct LogFile {
  std::string path;
  Bytes content;
};
struct Growth {
  std::vector<LogFile> files;
  std::uint64_t size = 0;
  Hash256 root{};
};
Result<Growth> grow(std::uint64_t old_size, const FileReader& old_files, const std::vector<Bytes>& entries);

// --- signed notes
// -----------------------------------------------------------------------------------------------------

/// Whose signature counts: `name+keyid+base64(type, key)`. Types: 0x01 Ed25519 as everywhere; 0xff with the identifier
/// "creto.ml-dsa-65" and a zero byte for ML-DSA-65 (docs/formats.md, "Checkpoint").
class VerifierKey {
 public:
  /// Errors: invalid_input; unsupported_algorithm for other types.
  static Result<VerifierKey> parse(std::string_view vkey);
  static VerifierKey of(std::string name, const crypto::VerifyingKey& key);

  const std::string& name() const { return name_; }
  std::uint32_t id() const { return id_; }
  const crypto::VerifyingKey& key() const { return key_; }
  std::string text() const;

 private:
  VerifierKey(std::string name, std::uint32_t id, crypto::VerifyingKey key)
      : name_(std::move(name)), id_(id), key_(std::move(key)) {}
  std::string name_;
  std::uint32_t id_;
  crypto::VerifyingKey key_;
};

/// Lines of a key file: one vkey each, empty lines and lines with '#' skipped; at least one.
Result<std::vector<VerifierKey>> parse_key_file(std::string_view text);

inline constexpr std::size_t note_bytes_max = 1 << 16;

struct NoteSignature {
  std::string name;
  std::uint32_t key_id;
  Bytes signature;
};
struct Note {
  std::string text;  ///< ends with a newline; what is signed
  std::vector<NoteSignature> signatures;
};

/// Errors: invalid_input, too_large.
Result<Note> parse_note(std::string_view note);
/// `keys` sign in order, each under `name`.
Result<std::string> sign_note(std::string_view text, std::string_view name,
                              const std::vector<const crypto::SigningKey*>& keys);
/// The text, if every one of `keys` has signed it. Signatures of others are ignored.
/// Errors: as parse_note; signature_invalid, naming the key.
Result<std::string> verify_note(std::string_view note, const std::vector<VerifierKey>& keys);

struct Checkpoint {
  std::string origin;
  std::uint64_t size = 0;
  Hash256 root{};
  std::vector<std::string> extensions;

  std::string text() const;
  /// Errors: invalid_input, naming the line.
  static Result<Checkpoint> parse(std::string_view text);
};

// --- the whole log
// ----------------------------------------------------------------------------------------------------

struct VerifiedLog {
  std::string origin;
  std::uint64_t size = 0;
  Hash256 root{};
};

/// Proves that the entries are exactly those that the checkpoint's signers signed: checks the signatures of all `keys`,
/// that the keys' name is the origin, recomputes every tile and the root from the entries, and compares each stored
/// tile. `on_entry`, if any, sees each entry in order; its error ends the check. Errors: signature_invalid;
/// hash_mismatch, not_found, invalid_input, each naming the first bad entry or tile; those of on_entry.
Result<VerifiedLog> verify_log(const FileReader& files, const std::vector<VerifierKey>& keys,
                               const std::function<Result<>(std::uint64_t index, BytesView entry)>& on_entry = {});

}  // namespace creto::tlog

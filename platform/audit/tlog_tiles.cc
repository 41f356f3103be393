#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "creto/audit/tlog.h"
#include "creto/common/assert.h"

namespace creto::tlog {
namespace {

// A bundle of 256 entries of 65 535 bytes and their lengths.
constexpr std::uint64_t file_bytes_max = 256 * (2 + entry_bytes_max);
constexpr std::size_t cached_tiles_max = 64;
constexpr std::size_t hash_size = 32;

Error refusal(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

/// "x001/x234/067", groups of three digits, all but the last with an x.
std::string index_path(std::uint64_t index) {
  std::string path = fmt::format("{:03}", index % 1000);
  for (index /= 1000; index > 0; index /= 1000) path = fmt::format("x{:03}/{}", index % 1000, path);
  return path;
}

std::string with_width(std::string path, std::uint32_t width) {
  if (width != tile_width) path += fmt::format(".p/{}", width);
  return path;
}

/// How wide the tile is in a tree of `size`; 0 where it has no hashes there.
std::uint32_t width_in(std::uint64_t size, int level, std::uint64_t index) {
  const std::uint64_t hashes = level >= 8 ? 0 : size >> (8 * level);
  const std::uint64_t before = index * tile_width;
  if (hashes <= before) return 0;
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(tile_width, hashes - before));
}

Hash256 hash_at(BytesView tile, std::size_t index) {
  Hash256 hash;
  std::copy_n(tile.begin() + static_cast<std::ptrdiff_t>(index * hash_size), hash_size, hash.begin());
  return hash;
}

Bytes joined(const std::vector<Hash256>& hashes) {
  Bytes bytes;
  bytes.reserve(hashes.size() * hash_size);
  for (const Hash256& hash : hashes) bytes.insert(bytes.end(), hash.begin(), hash.end());
  return bytes;
}

/// The root of a complete subtree. Requires: a power of two of hashes.
Hash256 fold(std::vector<Hash256> hashes) {
  while (hashes.size() > 1) {
    for (std::size_t i = 0; i < hashes.size() / 2; ++i) hashes[i] = node_hash(hashes[2 * i], hashes[2 * i + 1]);
    hashes.resize(hashes.size() / 2);
  }
  return hashes.front();
}

Result<std::vector<Hash256>> read_tile(const FileReader& files, const Tile& tile) {
  const std::string path = tile_path(tile);
  const auto bytes = CRETO_TRY(files(path));
  if (!bytes) return refusal(ErrorKind::not_found, fmt::format("tile `{}` is missing", path));
  if (bytes->size() != tile.width * hash_size) {
    return refusal(ErrorKind::invalid_input,
                   fmt::format("tile `{}` has {} bytes instead of {}", path, bytes->size(), tile.width * hash_size));
  }
  std::vector<Hash256> hashes;
  for (std::size_t i = 0; i < tile.width; ++i) hashes.push_back(hash_at(*bytes, i));
  return hashes;
}

Result<std::vector<Bytes>> read_bundle(const FileReader& files, std::uint64_t index, std::uint32_t width) {
  const std::string path = bundle_path({0, index, width});
  const auto bytes = CRETO_TRY(files(path));
  if (!bytes) return refusal(ErrorKind::not_found, fmt::format("entry bundle `{}` is missing", path));
  auto entries = decode_bundle(*bytes, width);
  if (!entries) {
    return refusal(ErrorKind::invalid_input, fmt::format("entry bundle `{}`: {}", path, entries.error().message()));
  }
  return entries;
}

/// The root of a tree whose leaf hashes come one after the other.
class RunningRoot {
 public:
  void add(Hash256 hash) {
    for (std::uint64_t n = count_++; (n & 1) != 0; n >>= 1) {
      hash = node_hash(stack_.back(), hash);
      stack_.pop_back();
    }
    stack_.push_back(hash);
  }
  Hash256 root() const {
    if (stack_.empty()) return empty_root();
    Hash256 hash = stack_.back();
    for (std::size_t i = stack_.size() - 1; i-- > 0;) hash = node_hash(stack_[i], hash);
    return hash;
  }

 private:
  std::uint64_t count_ = 0;
  std::vector<Hash256> stack_;
};

}  // namespace

std::string tile_path(const Tile& tile) {
  return with_width(fmt::format("tile/{}/{}", tile.level, index_path(tile.index)), tile.width);
}
std::string bundle_path(const Tile& tile) {
  CRETO_ASSERT(tile.level == 0);
  return with_width(fmt::format("tile/entries/{}", index_path(tile.index)), tile.width);
}

Bytes encode_bundle(const std::vector<Bytes>& entries) {
  Bytes bundle;
  for (const Bytes& entry : entries) {
    CRETO_ASSERT(entry.size() <= entry_bytes_max);
    bundle.push_back(static_cast<std::uint8_t>(entry.size() >> 8));
    bundle.push_back(static_cast<std::uint8_t>(entry.size() & 0xff));
    bundle.insert(bundle.end(), entry.begin(), entry.end());
  }
  return bundle;
}

Result<std::vector<Bytes>> decode_bundle(BytesView bundle, std::uint32_t count) {
  std::vector<Bytes> entries;
  while (!bundle.empty()) {
    if (entries.size() == count) return refusal(ErrorKind::invalid_input, "it has more entries than its name says");
    if (bundle.size() < 2) return refusal(ErrorKind::invalid_input, "it ends within a length");
    const std::size_t size = static_cast<std::size_t>(bundle[0]) << 8 | bundle[1];
    bundle = bundle.subspan(2);
    if (bundle.size() < size) return refusal(ErrorKind::invalid_input, "it ends within an entry");
    entries.push_back(to_bytes(bundle.first(size)));
    bundle = bundle.subspan(size);
  }
  if (entries.size() != count) return refusal(ErrorKind::invalid_input, "it has fewer entries than its name says");
  return entries;
}

FileReader files_below(io::FileSystem& files, std::filesystem::path directory) {
  return [&files, directory = std::move(directory)](const std::string& path) -> Result<std::optional<Bytes>> {
    auto bytes = files.read(directory / path, file_bytes_max);
    if (bytes) return std::optional<Bytes>(std::move(*bytes));
    if (bytes.error().kind() == ErrorKind::not_found) return std::optional<Bytes>();
    return std::move(bytes).error();
  };
}

struct TileNodes::Cache {
  std::map<std::pair<int, std::uint64_t>, std::vector<Hash256>> tiles;
};

TileNodes::TileNodes(FileReader files, std::uint64_t size)
    : files_(std::move(files)), size_(size), cache_(std::make_unique<Cache>()) {}
TileNodes::~TileNodes() = default;

Result<Hash256> TileNodes::node(int level, std::uint64_t index) {
  const int tile_level = level / 8;
  const int height = level % 8;
  const std::uint64_t first = index << height;  // of the tile level's hashes
  const std::uint64_t tile_index = first / tile_width;
  const std::uint32_t width = width_in(size_, tile_level, tile_index);
  const std::size_t offset = first % tile_width;
  const std::size_t count = std::size_t{1} << height;
  CRETO_ASSERT(offset + count <= width);
  auto found = cache_->tiles.find({tile_level, tile_index});
  if (found == cache_->tiles.end()) {
    if (cache_->tiles.size() >= cached_tiles_max) cache_->tiles.clear();
    auto hashes = CRETO_TRY(read_tile(files_, {tile_level, tile_index, width}));
    found = cache_->tiles.emplace(std::pair(tile_level, tile_index), std::move(hashes)).first;
  }
  const auto begin = found->second.begin() + static_cast<std::ptrdiff_t>(offset);
  return fold(std::vector<Hash256>(begin, begin + static_cast<std::ptrdiff_t>(count)));
}

Result<Growth> grow(std::uint64_t old_size, const FileReader& old_files, const std::vector<Bytes>& entries) {
  Growth growth;
  growth.size = old_size + entries.size();

  // Entries and their hashes, continuing the partial bundle and tile at the right edge.
  std::vector<Bytes> bundle;
  const auto rest = static_cast<std::uint32_t>(old_size % tile_width);
  if (rest != 0) bundle = CRETO_TRY(read_bundle(old_files, old_size / tile_width, rest));
  std::uint64_t bundle_index = old_size / tile_width;
  const auto put_bundle = [&] {
    growth.files.push_back(
        {bundle_path({0, bundle_index, static_cast<std::uint32_t>(bundle.size())}), encode_bundle(bundle)});
  };
  std::vector<Hash256> added;
  for (const Bytes& entry : entries) {
    added.push_back(leaf_hash(entry));
    bundle.push_back(entry);
    if (bundle.size() == tile_width) {
      put_bundle();
      bundle.clear();
      ++bundle_index;
    }
  }
  if (!bundle.empty() && !entries.empty()) put_bundle();

  // Each full tile adds one hash to the level above it.
  for (int level = 0; !added.empty(); ++level) {
    const std::uint64_t old_hashes = old_size >> (8 * level);
    std::uint64_t index = old_hashes / tile_width;
    const auto width = static_cast<std::uint32_t>(old_hashes % tile_width);
    std::vector<Hash256> tile;
    if (width != 0) tile = CRETO_TRY(read_tile(old_files, {level, index, width}));
    std::vector<Hash256> above;
    const auto put_tile = [&] {
      growth.files.push_back({tile_path({level, index, static_cast<std::uint32_t>(tile.size())}), joined(tile)});
    };
    for (const Hash256& hash : added) {
      tile.push_back(hash);
      if (tile.size() == tile_width) {
        put_tile();
        above.push_back(fold(tile));
        tile.clear();
        ++index;
      }
    }
    if (!tile.empty()) put_tile();
    added = std::move(above);
  }

  std::map<std::string, const Bytes*> fresh;
  for (const LogFile& file : growth.files) fresh.emplace(file.path, &file.content);
  TileNodes nodes(
      [&](const std::string& path) -> Result<std::optional<Bytes>> {
        if (const auto found = fresh.find(path); found != fresh.end()) return std::optional<Bytes>(*found->second);
        return old_files(path);
      },
      growth.size);
  growth.root = CRETO_TRY(tree_root(growth.size, nodes.reader()));
  return growth;
}

Result<VerifiedLog> verify_log(const FileReader& files, const std::vector<VerifierKey>& keys,
                               const std::function<Result<>(std::uint64_t, BytesView)>& on_entry) {
  const auto note = CRETO_TRY(files("checkpoint"));
  if (!note) return refusal(ErrorKind::not_found, "the log has no checkpoint");
  const std::string text = CRETO_TRY(verify_note(as_text(*note), keys));
  const Checkpoint checkpoint = CRETO_TRY(Checkpoint::parse(text));
  for (const VerifierKey& key : keys) {
    if (key.name() != checkpoint.origin) {
      return refusal(ErrorKind::signature_invalid,
                     fmt::format("the checkpoint is of `{}`, the key of `{}`", checkpoint.origin, key.name()));
    }
  }

  // The signature covers the root, the root the entries; the tiles must agree with both. Which of them is wrong where
  // they differ is known only at the end, from the root.
  std::optional<std::uint64_t> entry_differs;
  std::optional<std::string> tile_differs;
  std::optional<Error> entry_refused;
  RunningRoot root;
  std::vector<Hash256> hashes;  // of the level above
  for (std::uint64_t first = 0; first < checkpoint.size; first += tile_width) {
    const std::uint64_t index = first / tile_width;
    const std::uint32_t width = width_in(checkpoint.size, 0, index);
    const auto entries = CRETO_TRY(read_bundle(files, index, width));
    const auto stored = CRETO_TRY(read_tile(files, {0, index, width}));
    std::vector<Hash256> tile;
    for (std::uint32_t i = 0; i < width; ++i) {
      tile.push_back(leaf_hash(entries[i]));
      root.add(tile.back());
      if (tile.back() != stored[i] && !entry_differs) {
        entry_differs = first + i;
        if (!tile_differs) tile_differs = tile_path({0, index, width});
      }
      if (on_entry && !entry_refused) {
        if (auto seen = on_entry(first + i, entries[i]); !seen) entry_refused = std::move(seen).error();
      }
    }
    if (width == tile_width) hashes.push_back(fold(std::move(tile)));
  }
  for (int level = 1; !hashes.empty(); ++level) {
    std::vector<Hash256> above;
    for (std::size_t first = 0; first < hashes.size(); first += tile_width) {
      const std::size_t end = std::min<std::size_t>(first + tile_width, hashes.size());
      const std::vector<Hash256> tile(hashes.begin() + static_cast<std::ptrdiff_t>(first),
                                      hashes.begin() + static_cast<std::ptrdiff_t>(end));
      const Tile place{level, first / tile_width, static_cast<std::uint32_t>(tile.size())};
      if (CRETO_TRY(read_tile(files, place)) != tile && !tile_differs) tile_differs = tile_path(place);
      if (tile.size() == tile_width) above.push_back(fold(tile));
    }
    hashes = std::move(above);
  }

  if (root.root() != checkpoint.root) {
    return refusal(ErrorKind::hash_mismatch,
                   entry_differs
                       ? fmt::format("entry {} was changed: it is not the one that was signed", *entry_differs)
                       : std::string("the entries are not those that were signed"));
  }
  if (tile_differs) {
    return refusal(ErrorKind::hash_mismatch,
                   fmt::format("tile `{}` was changed: its hashes are not those of the signed entries", *tile_differs));
  }
  if (entry_refused) return std::move(*entry_refused);
  return VerifiedLog{checkpoint.origin, checkpoint.size, checkpoint.root};
}

}  // namespace creto::tlog

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <mutex>

#include "block_log.h"
#include "creto/common/assert.h"
#include "creto/crypto/hash.h"
#include "layout.h"

// A segment: the magic, then blocks. A block: u32 marker, u32 length, the hash of the block before, the hash of this
// one (BLAKE3 over marker, length, the former hash and the content), the content. A block is written when the one
// before is durable, so an intact block after a broken one means damage, and a broken one at the end a crash.
namespace creto::metering {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view magic = "CRETOU1\n";
constexpr std::string_view suffix = ".usage";
constexpr std::string_view base_name = "base";
constexpr std::string_view next_base_name = "base.next";  // not in force yet
constexpr std::uint32_t marker = 0x31424d43;              // "CMB1"
constexpr std::size_t header_size = 4 + 4 + 32 + 32;
constexpr std::size_t read_chunk = 4 << 20;

Error damaged(const fs::path& path, std::uint64_t offset) {
  return Error(Product::metering, ErrorKind::hash_mismatch,
               fmt::format("`{}` is damaged at byte {}", path.string(), offset));
}

struct Block {
  Hash256 before{};
  Hash256 hash{};
  BytesView content;
  std::size_t size() const { return header_size + content.size(); }
};

Hash256 hash_of(const Hash256& before, BytesView content) {
  Bytes head;
  layout::put(head, marker);
  layout::put(head, static_cast<std::uint32_t>(content.size()));
  layout::put(head, before);
  crypto::Hasher hasher(crypto::HashAlgorithm::blake3);
  hasher.update(head);
  hasher.update(content);
  return hasher.finish();
}

/// The bytes that the block at the start of `bytes` takes, if it stands there; none where there is no header.
std::optional<std::size_t> size_of_block(BytesView bytes) {
  layout::Reader reader(bytes);
  const auto found = reader.get<std::uint32_t>();
  const auto length = reader.get<std::uint32_t>();
  if (!reader.ok() || found != marker || length > BlockLog::block_bytes_max) return std::nullopt;
  return header_size + length;
}

/// None where no intact block stands at the start of `bytes`.
std::optional<Block> block_at(BytesView bytes) {
  const auto size = size_of_block(bytes);
  if (!size || bytes.size() < *size) return std::nullopt;
  layout::Reader reader(bytes.subspan(8));
  Block block;
  block.before = reader.get<Hash256>();
  block.hash = reader.get<Hash256>();
  block.content = reader.bytes(*size - header_size);
  if (hash_of(block.before, block.content) != block.hash) return std::nullopt;
  return block;
}

/// Reads a segment from front to back in large pieces.
class SegmentReader {
 public:
  SegmentReader(io::FileSystem& files, fs::path path, std::uint64_t offset, std::uint64_t end)
      : files_(files), path_(std::move(path)), offset_(offset), end_(end) {}

  std::uint64_t offset() const { return offset_; }
  bool at_end() const { return offset_ >= end_; }
  /// None where the next bytes are no intact block. Valid until the next call.
  Result<std::optional<Block>> next() {
    CRETO_TRY(fill(header_size));
    const auto size = size_of_block(BytesView(buffer_).subspan(used_));
    if (!size) return std::optional<Block>();
    CRETO_TRY(fill(*size));
    auto block = block_at(BytesView(buffer_).subspan(used_));
    if (block) {
      used_ += *size;
      offset_ += *size;
    }
    return block;
  }

 private:
  Result<> fill(std::size_t wanted) {
    if (buffer_.size() - used_ >= wanted || read_to_ >= end_) return {};
    buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<std::ptrdiff_t>(used_));
    used_ = 0;
    if (buffer_.empty()) read_to_ = offset_;
    const std::size_t size = std::min<std::uint64_t>(std::max(wanted, read_chunk), end_ - read_to_);
    const Bytes more = CRETO_TRY(files_.read_at(path_, read_to_, size));
    buffer_.insert(buffer_.end(), more.begin(), more.end());
    read_to_ += more.size();
    return {};
  }

  io::FileSystem& files_;
  const fs::path path_;
  std::uint64_t offset_;
  const std::uint64_t end_;
  std::uint64_t read_to_ = 0;
  Bytes buffer_;
  std::size_t used_ = 0;
};

class BlockFiles final : public BlockLog {
 public:
  BlockFiles(io::FileSystem& files, fs::path directory, bool writes)
      : files_(files), directory_(std::move(directory)), writes_(writes) {}

  Result<> open() {
    if (writes_) CRETO_TRY(files_.create_directories(directory_));
    opened_ = CRETO_TRY(read_base());
    if (opened_) start_ = {opened_->segment, opened_->before};
    if (writes_) {
      CRETO_TRY(files_.remove(directory_ / next_base_name));
      // Whoever put it in force may not have lived to make that durable.
      if (opened_) CRETO_TRY(files_.sync_directory(directory_));
      CRETO_TRY(remove_cut());
    }
    std::uint32_t last = 0;
    const auto names = CRETO_TRY(files_.list(directory_));
    for (const std::string& name : names) {
      if (const auto number = number_of(name)) last = std::max(last, *number);
    }
    if (last == 0 && writes_ && !opened_) return start_segment(1);
    if (last == 0)
      return Error(Product::metering, ErrorKind::not_found, fmt::format("`{}` has no usage log", directory_.string()));
    if (last < start_.segment) return damaged(path_of(start_.segment), 0);
    head_ = start_.before;
    CRETO_TRY(recover(last));
    if (last == start_.segment || size_ != magic.size()) return {};
    // An empty segment: the one before may still be the one that was written when the process ended.
    CRETO_TRY(recover(last - 1));
    segment_ = last;
    size_ = magic.size();
    return {};
  }

  BlockAddress begin() const override { return {1, magic.size()}; }
  BlockAddress end() const override { return {segment_, static_cast<std::uint32_t>(size_)}; }
  Hash256 head() const override { return head_; }

  Result<> append(BytesView content) override {
    if (content.size() > block_bytes_max) {
      return Error(Product::metering, ErrorKind::too_large, fmt::format("block: is over {} bytes", block_bytes_max));
    }
    CRETO_ASSERT(writes_);
    if (!file_) CRETO_TRY(reopen());
    const Hash256 hash = hash_of(head_, content);
    Bytes header;
    header.reserve(header_size);
    layout::put(header, marker);
    layout::put(header, static_cast<std::uint32_t>(content.size()));
    layout::put(header, head_);
    layout::put(header, hash);
    auto written = file_->append(header);
    if (written) written = file_->append(content);
    if (written) written = file_->sync();
    if (!written) {
      // What of it is in the file nobody knows: `reopen` cuts it off before anything else is written.
      file_.reset();
      return written;
    }
    size_ += header_size + content.size();
    head_ = hash;
    return {};
  }

  Result<> seal() override {
    if (size_ == magic.size()) return {};
    return start_segment(segment_ + 1);
  }

  Result<Bytes> read(BlockAddress address) override {
    const fs::path path = path_of(address.segment);
    const Bytes header = CRETO_TRY(files_.read_at(path, address.offset, header_size));
    const auto size = size_of_block(header);
    if (!size) return damaged(path, address.offset);
    Bytes bytes = CRETO_TRY(files_.read_at(path, address.offset, *size));
    if (!block_at(bytes)) return damaged(path, address.offset);
    bytes.erase(bytes.begin(), bytes.begin() + header_size);
    return bytes;
  }

  Result<> scan(BlockAddress from, BlockAddress until, const Visit& visit) override {
    std::optional<Hash256> before;
    const Start start = this->start();
    if (from.segment == start.segment && from.offset <= magic.size()) before = start.before;
    for (std::uint32_t segment = std::max(from.segment, 1U); segment <= until.segment; ++segment) {
      const fs::path path = path_of(segment);
      const std::uint64_t begin =
          segment == from.segment ? std::max<std::uint64_t>(from.offset, magic.size()) : magic.size();
      if (segment == until.segment && begin >= until.offset) break;
      const std::uint64_t size = CRETO_TRY(files_.size(path));
      SegmentReader reader(files_, path, begin, size);
      while (!reader.at_end()) {
        const BlockAddress address{segment, static_cast<std::uint32_t>(reader.offset())};
        if (address >= until) break;
        const auto block = CRETO_TRY(reader.next());
        if (!block || (before && *before != block->before)) return damaged(path, address.offset);
        before = block->hash;
        CRETO_TRY(visit(address, block->content, block->hash));
      }
      if (segment == until.segment && reader.offset() < until.offset) return damaged(path, reader.offset());
    }
    return {};
  }

  Result<std::optional<LogBase>> base() override {
    if (opened_) return std::exchange(opened_, std::nullopt);
    return read_base();
  }

  Result<> cut(const LogBase& base, const Vouch& vouch) override {
    CRETO_ASSERT(writes_ && base.segment > start().segment);
    const Bytes bytes = encode_base(base);
    CRETO_TRY(io::write_durably(files_, directory_ / next_base_name, bytes));
    CRETO_TRY(vouch(hash_of_base(bytes)));
    CRETO_TRY(files_.rename(directory_ / next_base_name, directory_ / base_name));
    CRETO_TRY(files_.sync_directory(directory_));
    const std::scoped_lock lock(start_mutex_);
    start_ = {base.segment, base.before};
    return {};
  }

  Result<> remove_cut() override {
    const std::uint32_t first = start().segment;
    const auto names = CRETO_TRY(files_.list(directory_));
    for (const std::string& name : names) {
      const auto number = number_of(name);
      if (number && *number < first) CRETO_TRY(files_.remove(directory_ / name));
    }
    return {};
  }

 private:
  /// The first segment that is held, and the hash of the block before it.
  struct Start {
    std::uint32_t segment = 1;
    Hash256 before{};
  };
  Start start() const {
    const std::scoped_lock lock(start_mutex_);
    return start_;
  }
  Result<std::optional<LogBase>> read_base() {
    const fs::path path = directory_ / base_name;
    const bool there = CRETO_TRY(files_.exists(path));
    if (!there) return std::optional<LogBase>();
    const std::uint64_t size = CRETO_TRY(files_.size(path));
    const Bytes bytes = CRETO_TRY(files_.read(path, size));
    LogBase base = CRETO_TRY(decode_base(bytes));
    return std::optional(std::move(base));
  }
  static std::optional<std::uint32_t> number_of(std::string_view name) {
    if (!name.ends_with(suffix)) return std::nullopt;
    name.remove_suffix(suffix.size());
    std::uint32_t number = 0;
    const auto [end, failed] = std::from_chars(name.data(), name.data() + name.size(), number);
    if (failed != std::errc() || end != name.data() + name.size() || number == 0) return std::nullopt;
    return number;
  }
  fs::path path_of(std::uint32_t segment) const { return directory_ / fmt::format("{:08}{}", segment, suffix); }

  Result<> start_segment(std::uint32_t segment) {
    CRETO_TRY(io::write_durably(files_, path_of(segment), as_bytes(magic)));
    segment_ = segment;
    size_ = magic.size();
    file_.reset();  // `append` opens the new one
    return {};
  }

  /// Opens the present segment for writing where its durable content ends.
  Result<> reopen() {
    file_.reset();
    const fs::path path = path_of(segment_);
    const std::uint64_t there = CRETO_TRY(files_.size(path));
    if (there != size_) CRETO_TRY(files_.truncate(path, size_));
    file_ = CRETO_TRY(files_.open_append(path));
    return {};
  }

  Result<> recover(std::uint32_t segment) {
    const fs::path path = path_of(segment);
    const std::uint64_t end = CRETO_TRY(files_.size(path));
    const Bytes start = CRETO_TRY(files_.read_at(path, 0, magic.size()));
    if (as_text(start) != magic) return damaged(path, 0);
    SegmentReader reader(files_, path, magic.size(), end);
    while (!reader.at_end()) {
      const auto block = CRETO_TRY(reader.next());
      if (!block) break;
      head_ = block->hash;
    }
    segment_ = segment;
    size_ = reader.offset();
    if (!writes_) return {};
    if (!reader.at_end()) {
      CRETO_TRY(refuse_damage(path, reader.offset(), end));
      CRETO_TRY(files_.truncate(path, size_));
    }
    // What was read may never have been synced by the process before us.
    auto file = CRETO_TRY(files_.open_append(path));
    return file->sync();
  }

  /// An intact block behind a broken one tells that the broken one was durable.
  Result<> refuse_damage(const fs::path& path, std::uint64_t broken, std::uint64_t end) {
    const Bytes rest = CRETO_TRY(files_.read_at(path, broken, end - broken));
    for (std::size_t i = 1; i + header_size <= rest.size(); ++i) {
      if (size_of_block(BytesView(rest).subspan(i)) && block_at(BytesView(rest).subspan(i)))
        return damaged(path, broken);
    }
    return {};
  }

  io::FileSystem& files_;
  const fs::path directory_;
  const bool writes_;
  std::unique_ptr<io::WritableFile> file_;
  std::uint32_t segment_ = 0;
  std::uint64_t size_ = 0;  ///< durable bytes of the present segment
  Hash256 head_{};
  mutable std::mutex start_mutex_;
  Start start_;
  std::optional<LogBase> opened_;  ///< of the start, until it is asked for
};

}  // namespace

Result<std::unique_ptr<BlockLog>> open_block_files(io::FileSystem& files, fs::path directory) {
  auto log = std::make_unique<BlockFiles>(files, std::move(directory), true);
  CRETO_TRY(log->open());
  return std::unique_ptr<BlockLog>(std::move(log));
}

Result<std::unique_ptr<BlockLog>> read_block_files(io::FileSystem& files, fs::path directory) {
  auto log = std::make_unique<BlockFiles>(files, std::move(directory), false);
  CRETO_TRY(log->open());
  return std::unique_ptr<BlockLog>(std::move(log));
}

}  // namespace creto::metering

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "creto/io/files.h"

// File: the magic, then records. Record, little endian: u32 marker, u32 length, u64 durable, u32 CRC-32C over
// length, durable and content; the content. `durable` is how much of the file was known to be synced when the record
// was appended: damage below it is not what a crash leaves.
namespace creto::io {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view magic = "CRETOJ1\n";
constexpr std::uint32_t marker = 0x314a5243;  // "CRJ1"
constexpr std::size_t header_size = 20;

constexpr auto crc_table = [] {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value & 1) != 0 ? value >> 1 ^ 0x82f63b78U : value >> 1;
    table[i] = value;
  }
  return table;
}();

std::uint32_t crc32c(std::uint32_t crc, BytesView bytes) {
  crc = ~crc;
  for (const std::uint8_t byte : bytes) crc = crc_table[(crc ^ byte) & 0xff] ^ crc >> 8;
  return ~crc;
}

template <class T>
void put(Bytes& out, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i) out.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
}
template <class T>
T get(BytesView bytes) {
  T value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i) value |= static_cast<T>(static_cast<T>(bytes[i]) << (8 * i));
  return value;
}

struct Record {
  std::uint64_t durable;
  Bytes content;
};

/// None where no intact record stands at `offset`.
Result<std::optional<Record>> read_record(FileSystem& files, const fs::path& path, std::uint64_t offset) {
  const Bytes header = CRETO_TRY(files.read_at(path, offset, header_size));
  if (header.size() < header_size || get<std::uint32_t>(header) != marker) return std::optional<Record>();
  const auto length = get<std::uint32_t>(BytesView(header).subspan(4));
  if (length > Journal::record_bytes_max) return std::optional<Record>();
  Bytes content = CRETO_TRY(files.read_at(path, offset + header_size, length));
  if (content.size() < length) return std::optional<Record>();
  const auto crc = crc32c(crc32c(0, BytesView(header).subspan(4, 12)), content);
  if (crc != get<std::uint32_t>(BytesView(header).subspan(16))) return std::optional<Record>();
  return std::optional<Record>(Record{get<std::uint64_t>(BytesView(header).subspan(8)), std::move(content)});
}

/// Whether a later record says that `damaged` was durable.
Result<bool> was_durable(FileSystem& files, const fs::path& path, std::uint64_t damaged, std::uint64_t end) {
  constexpr std::size_t chunk = 1 << 20;
  for (std::uint64_t offset = damaged + 1; offset + header_size <= end; offset += chunk) {
    const Bytes bytes = CRETO_TRY(files.read_at(path, offset, chunk + 3));
    for (std::size_t i = 0; i + 4 <= bytes.size(); ++i) {
      if (get<std::uint32_t>(BytesView(bytes).subspan(i)) != marker) continue;
      const auto record = CRETO_TRY(read_record(files, path, offset + i));
      if (record && record->durable > damaged) return true;
    }
  }
  return false;
}

}  // namespace

Result<std::unique_ptr<Journal>> Journal::open(FileSystem& files, const fs::path& path,
                                               const std::function<Result<>(BytesView)>& replay) {
  std::uint64_t end = CRETO_TRY(files.exists(path)) ? CRETO_TRY(files.size(path)) : 0;
  if (end < magic.size()) {
    // New, or a crash before the first sync.
    CRETO_TRY(write_durably(files, path, as_bytes(magic)));
    end = magic.size();
  } else {
    const Bytes start = CRETO_TRY(files.read_at(path, 0, magic.size()));
    if (as_text(start) != magic) {
      return Error(Product::platform, ErrorKind::invalid_input, fmt::format("`{}` is not a journal", path.string()));
    }
    std::uint64_t offset = magic.size();
    while (offset < end) {
      const auto record = CRETO_TRY(read_record(files, path, offset));
      if (!record) {
        if (CRETO_TRY(was_durable(files, path, offset, end))) {
          return Error(Product::platform, ErrorKind::hash_mismatch,
                       fmt::format("`{}` is damaged at byte {}", path.string(), offset));
        }
        CRETO_TRY(files.truncate(path, offset));
        break;
      }
      CRETO_TRY(replay(record->content));
      offset += header_size + record->content.size();
    }
    end = offset;
  }
  auto file = CRETO_TRY(files.open_append(path));
  // What was replayed may have been written but never synced by the process before us.
  CRETO_TRY(file->sync());
  auto journal = std::unique_ptr<Journal>(new Journal(std::move(file)));
  journal->durable_ = end;
  return journal;
}

Result<std::size_t> Journal::scan(BytesView file, const std::function<Result<>(BytesView)>& use) {
  if (!as_text(file).starts_with(magic))
    return Error(Product::platform, ErrorKind::invalid_input, "this is not a journal");
  std::size_t offset = magic.size();
  while (file.size() - offset >= header_size) {
    const BytesView header = file.subspan(offset, header_size);
    const auto length = get<std::uint32_t>(header.subspan(4));
    if (get<std::uint32_t>(header) != marker || length > record_bytes_max) break;
    if (length > file.size() - offset - header_size) break;
    const BytesView content = file.subspan(offset + header_size, length);
    if (crc32c(crc32c(0, header.subspan(4, 12)), content) != get<std::uint32_t>(header.subspan(16))) break;
    CRETO_TRY(use(content));
    offset += header_size + length;
  }
  return offset;
}

Result<> Journal::append(BytesView record) {
  if (record.size() > record_bytes_max) {
    return Error(Product::platform, ErrorKind::too_large, fmt::format("record is over {} bytes", record_bytes_max));
  }
  if (broken_)
    return Error(Product::platform, ErrorKind::unavailable, "the journal failed before; it must be reopened");
  Bytes bytes;
  bytes.reserve(header_size + record.size());
  put(bytes, marker);
  put(bytes, static_cast<std::uint32_t>(record.size()));
  put(bytes, durable_);
  put(bytes, crc32c(crc32c(0, BytesView(bytes).subspan(4, 12)), record));
  bytes.insert(bytes.end(), record.begin(), record.end());
  auto result = file_->append(bytes);
  broken_ = !result;
  return result;
}

Result<> Journal::sync() {
  if (broken_)
    return Error(Product::platform, ErrorKind::unavailable, "the journal failed before; it must be reopened");
  // The kernel may have dropped what a failed sync could not write, so a second try proves nothing.
  auto result = file_->sync();
  broken_ = !result;
  if (result) durable_ = file_->size();
  return result;
}

std::uint64_t Journal::size_bytes() const { return file_->size(); }

}  // namespace creto::io

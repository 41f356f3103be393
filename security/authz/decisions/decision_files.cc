#include "decisions/decision_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace creto::authz {

std::string segment_resource(const ByteArray<16>& log, std::uint64_t sequence) {
  return fmt::format("authz:decisions:{}:{}", hex(log), sequence);
}

std::string segment_name(std::uint64_t sequence, bool open) {
  return fmt::format("{:010}.{}", sequence, open ? "open" : "seg");
}

namespace {

std::optional<SegmentName> parse_segment_name(std::string_view name) {
  SegmentName segment;
  if (name.ends_with(".open")) {
    segment.open = true;
    name.remove_suffix(5);
  } else if (name.ends_with(".seg")) {
    name.remove_suffix(4);
  } else {
    return std::nullopt;
  }
  const auto [end, problem] = std::from_chars(name.data(), name.data() + name.size(), segment.sequence);
  if (problem != std::errc() || end != name.data() + name.size() || segment.sequence == 0) return std::nullopt;
  return segment;
}

}  // namespace

Result<ByteArray<16>> read_log_name(io::FileSystem& files, const std::filesystem::path& directory) {
  const auto path = directory / decision_log_name_file;
  const Bytes content = CRETO_TRY(files.read(path, 64));
  std::string_view text = as_text(content);
  if (text.ends_with('\n')) text.remove_suffix(1);
  const auto bytes = from_hex(text);
  ByteArray<16> name{};
  if (!bytes || bytes->size() != name.size())
    return Error(Product::platform, ErrorKind::invalid_input, fmt::format("`{}` names no decision log", path.string()));
  std::copy(bytes->begin(), bytes->end(), name.begin());
  return name;
}

Result<std::vector<SegmentName>> list_segments(io::FileSystem& files, const std::filesystem::path& directory) {
  const auto names = CRETO_TRY(files.list(directory));
  std::vector<SegmentName> segments;
  for (const std::string& name : names)
    if (const auto segment = parse_segment_name(name)) segments.push_back(*segment);
  std::sort(segments.begin(), segments.end(),
            [](const SegmentName& a, const SegmentName& b) { return a.sequence < b.sequence; });
  return segments;
}

Result<SegmentFile> SegmentFile::read(io::FileSystem& files, const std::filesystem::path& path) {
  SegmentFile file;
  file.bytes_ = CRETO_TRY(files.read(path, bytes_max));
  const std::size_t intact = CRETO_TRY(io::Journal::scan(file.bytes_, [&file](BytesView block) -> Result<> {
    file.blocks_.push_back(block);
    return {};
  }));
  file.whole_ = intact == file.bytes_.size();
  return file;
}

Result<> SegmentFile::each(SegmentReader& reader,
                           const std::function<Result<>(const SegmentReader::Decided&)>& use) const {
  for (const BytesView block : blocks_) CRETO_TRY(reader.read(block, use));
  return {};
}

Result<std::optional<SegmentReader::Header>> read_header(io::FileSystem& files, const std::filesystem::path& path) {
  constexpr std::size_t enough = 256;
  const Bytes start = CRETO_TRY(files.read_at(path, 0, enough));
  SegmentReader reader;
  (void)io::Journal::scan(start, [&reader](BytesView block) -> Result<> {
    if (reader.header()) return {};
    return reader.read(block, [](const SegmentReader::Decided&) { return Result<>(); });
  });
  return reader.header();
}

Result<> finish_open_segment(io::FileSystem& files, const std::filesystem::path& directory, const ByteArray<16>& log,
                             std::uint64_t sequence, Instant now) {
  const auto from = directory / segment_name(sequence, true);
  std::vector<Bytes> blocks;
  auto journal = CRETO_TRY(io::Journal::open(files, from, [&](BytesView block) -> Result<> {
    blocks.push_back(to_bytes(block));
    return {};
  }));
  SegmentReader reader;
  for (const Bytes& block : blocks)
    CRETO_TRY(reader.read(block, [](const SegmentReader::Decided&) { return Result<>(); }));
  if (!reader.ended()) {
    SegmentWriter writer(log, sequence, now);
    // The header is for a file that has none yet.
    if (reader.header()) (void)writer.take();
    writer.add_end(true);
    for (const Bytes& block : writer.take()) CRETO_TRY(journal->append(block));
  }
  CRETO_TRY(journal->sync());
  journal.reset();
  CRETO_TRY(files.rename(from, directory / segment_name(sequence, false)));
  return files.sync_directory(directory);
}

}  // namespace creto::authz

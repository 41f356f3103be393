#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/bytes.h"
#include "creto/io/files.h"
#include "decisions/decision_segment.h"

/// The folder of a decision log: `log.id` and one file per segment, `<sequence>.open` while it is written, then
/// `<sequence>.seg`.
namespace creto::authz {

inline constexpr std::string_view decision_log_name_file = "log.id";

// In the audit log.
inline constexpr std::string_view segment_sealed_event = "authz_decision_segment";
inline constexpr std::string_view segment_damaged_event = "authz_decision_segment_damaged";
inline constexpr std::string_view segment_purged_event = "authz_decision_segment_purged";
std::string segment_resource(const ByteArray<16>& log, std::uint64_t sequence);

struct SegmentName {
  std::uint64_t sequence = 0;
  bool open = false;
};
std::string segment_name(std::uint64_t sequence, bool open);

/// Errors: not_found; invalid_input where it is no such file.
Result<ByteArray<16>> read_log_name(io::FileSystem& files, const std::filesystem::path& directory);
/// The segments that are there, by sequence.
Result<std::vector<SegmentName>> list_segments(io::FileSystem& files, const std::filesystem::path& directory);

/// One segment in memory.
class SegmentFile {
 public:
  static constexpr std::uint64_t bytes_max = 2ull << 30;

  /// Errors: not_found, too_large, invalid_input (no journal), and those of reading.
  static Result<SegmentFile> read(io::FileSystem& files, const std::filesystem::path& path);

  std::uint64_t size() const { return bytes_.size(); }
  BytesView bytes() const { return bytes_; }
  /// Whether every record checks; not so at the tail of a segment that is being written, or was torn.
  bool is_whole() const { return whole_; }
  /// Reads all blocks. `reader` borrows from this. Errors: those of `reader` and `use`.
  Result<> each(SegmentReader& reader, const std::function<Result<>(const SegmentReader::Decided&)>& use) const;

 private:
  Bytes bytes_;
  std::vector<BytesView> blocks_;
  bool whole_ = true;
};

/// None where the segment has no whole header yet. Errors: those of reading.
Result<std::optional<SegmentReader::Header>> read_header(io::FileSystem& files, const std::filesystem::path& path);

/// What a crash left: cuts the torn tail, writes the end, and closes the file. Errors: hash_mismatch or invalid_input
/// where it holds what no crash leaves; those of files.
Result<> finish_open_segment(io::FileSystem& files, const std::filesystem::path& directory, const ByteArray<16>& log,
                             std::uint64_t sequence, Instant now);

}  // namespace creto::authz

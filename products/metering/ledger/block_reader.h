#pragma once

#include <optional>
#include <string_view>

#include "block_log.h"
#include "creto/common/id.h"
#include "key_index.h"
#include "layout.h"
#include "subjects.h"
#include "usage_record.h"

/// What is in a block of the usage log (docs/formats.md, "Usage log").
namespace creto::metering {

inline constexpr std::uint32_t log_format_version = 2;
enum class BlockKind : std::uint8_t { beginning = 0, events = 1 };
/// Flags of an entry.
inline constexpr std::uint8_t has_envelope = 1;
inline constexpr std::uint8_t is_correction = 2;
inline constexpr std::uint8_t is_priced = 4;

std::uint32_t seconds_of(Instant when);
/// An id that follows from key and arrival (UUIDv8): sorts by the second, and is the same whenever it is asked for.
EventId id_of(const KeyHash& key, std::uint32_t arrived_s);
Error unreadable(BlockAddress block);

/// Hashes idempotency keys under the key of one log: it means nothing elsewhere.
class KeyHasher {
 public:
  /// Of the log's first block. Errors: hash_mismatch; invalid_input where its version is not known here.
  static Result<KeyHasher> of_beginning(BlockAddress address, BytesView content);
  static KeyHasher fresh();
  Bytes beginning() const;
  KeyHash operator()(std::string_view org, std::string_view source, std::string_view key) const;
  /// Of a name alone, for tables in memory. Says nothing about keys.
  KeyHash of_name(std::string_view org, std::string_view name) const;
  /// Of an event whose attribution is known.
  KeyHash operator()(const Subjects& subjects, AttributionNumber attribution, const RecordView& record) const;

 private:
  KeyHash hash(std::initializer_list<BytesView> parts) const;
  ByteArray<32> key_{};
};

/// What a correction takes out, as the log keeps it beside the correction: who reads the log need not look for it.
struct Corrected {
  RowPlace place;
  /// When quotas counted it: it arrived then, or the first one whose place it took.
  Instant counted_at{};
  AttributionNumber attribution = 0;
  BytesView record{};  ///< encoded, with its cost
};

/// Reads a block of events, part by part in their order.
class BlockReader {
 public:
  BlockReader(BlockAddress address, BytesView content) : address_(address), reader_(content) {}

  Result<> head();
  Result<> definitions(Subjects& subjects) { return subjects.read(reader_); }
  Result<> skip_definitions();
  /// Up to where it defines. Requires: the definitions were skipped.
  const Subjects::Mark& defined() const { return defined_; }
  /// How many entries there are. Requires: the definitions were read, and no entry.
  std::size_t count() const { return layout::Reader(reader_).count(entry_bytes_min); }

  struct Entry {
    std::uint32_t index = 0;
    AttributionNumber attribution = 0;
    SubjectNumber reporter = 0;
    std::uint64_t content = 0;
    std::optional<EventId> id{};
    RecordView record;
    std::string_view envelope{};
    std::optional<Corrected> corrects{};
  };
  /// Calls `visit` for each entry. Requires: head and definitions were read.
  template <class Visit>
  Result<> entries(RecordScratch& scratch, Visit&& visit) {
    const std::size_t count = reader_.count(entry_bytes_min);
    for (std::size_t i = 0; i < count; ++i) {
      scratch.clear();
      const Entry entry = CRETO_TRY(next(static_cast<std::uint32_t>(i), scratch));
      CRETO_TRY(visit(entry));
    }
    return {};
  }
  /// The signatures of batches. Requires: the entries were read.
  struct Proof {
    std::string_view reporter;
    std::string_view algorithm;
    BytesView signature;
    struct Leaf {
      std::uint32_t index;  ///< of its entry; UINT32_MAX: it was not taken
      Hash256 hash;         ///< only then
    };
    std::vector<Leaf> leaves;
  };
  Result<std::vector<Proof>> proofs();

  Instant arrived() const { return arrived_; }

 private:
  static constexpr std::size_t entry_bytes_min = 21;
  Result<Entry> next(std::uint32_t index, RecordScratch& scratch);

  const BlockAddress address_;
  layout::Reader reader_;
  Instant arrived_{};
  Subjects::Mark defined_;
};

}  // namespace creto::metering

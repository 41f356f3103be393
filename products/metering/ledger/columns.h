#pragma once

#include <array>
#include <atomic>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/bytes.h"
#include "creto/common/result.h"
#include "creto/io/files.h"
#include "key_index.h"
#include "ledger.h"

namespace creto::metering {

/// What a column holds. A row is an event, in the order of the log; rows count from 0. The numbers are the file's.
///
/// The time of an event is split in two: which quarter of an hour, and where in it. Ranges and calendar periods nearly
/// always begin with a quarter, and then the second part, five to eight bytes an event, is never read.
enum class Column : std::uint8_t {
  block_offset = 1,     ///< of each block, not row, in its segment
  block_row = 2,        ///< the first row of each block
  block_arrival = 3,    ///< of each block, in ns since 1970
  attributions = 4,     ///< the different ones, ascending
  attribution = 5,      ///< place in `attributions`
  time_slot = 6,        ///< quarters of an hour since 1970
  time_in_slot = 7,     ///< ns
  units = 8,            ///< the whole ones
  unit_nanos = 9,       ///< billionths beyond them
  fine_unit_rows = 10,  ///< rows with something finer than a billionth ...
  fine_units = 11,      ///< ... and what it is, as decimal text
  cost_nanos = 12,      ///< in the event's currency
  fine_cost_rows = 13,  ///< rows whose cost is finer, or too large for billionths in 64 bits ...
  fine_costs = 14,      ///< ... and what `cost_nanos` lacks
  types = 15,           ///< texts; a code is a place in them from 1, and 0 is none
  type = 16,            ///< code in `types`
  currencies = 17,
  currency = 18,
  values = 19,      ///< of one property
  value = 20,       ///< code in `values`, of each row or of each of `value_rows`
  value_rows = 21,  ///< the rows that have the property, where few do
};

inline constexpr Nanos time_slot = std::chrono::minutes(15);

/// Numbers as they lie in a file: all differences to the smallest, in units, in 0, 1, 2, 4 or 8 bytes each. A cheap
/// value that keeps alive what it views.
class Numbers {
 public:
  Numbers() = default;
  Numbers(std::shared_ptr<const void> owner, BytesView bytes, std::size_t size, std::uint8_t width, std::int64_t base,
          std::int64_t unit)
      : owner_(std::move(owner)), bytes_(bytes), size_(size), width_(width), base_(base), unit_(unit) {}

  std::size_t size() const { return size_; }
  bool constant() const { return width_ == 0; }
  /// Requires: at < size().
  std::int64_t at(std::size_t at) const {
    std::int64_t value = 0;
    read(at, std::span(&value, 1));
    return value;
  }
  /// Those from `from` on. Requires: there are as many.
  void read(std::size_t from, std::span<std::int64_t> out) const;
  /// Likewise, of codes and places, which are small.
  void read(std::size_t from, std::span<std::uint32_t> out) const;
  /// The first place whose number is not below `value`. Requires: they ascend.
  std::size_t lower_bound(std::int64_t value) const;

 private:
  template <class T>
  void read_as(std::size_t from, std::span<T> out) const;
  std::shared_ptr<const void> owner_;
  BytesView bytes_;
  std::size_t size_ = 0;
  std::uint8_t width_ = 0;
  std::int64_t base_ = 0;
  std::int64_t unit_ = 1;
};

/// The texts of a dictionary. A cheap value that keeps alive what it views.
class Texts {
 public:
  Texts() = default;
  Texts(std::shared_ptr<const void> owner, BytesView bytes, std::size_t size)
      : owner_(std::move(owner)), bytes_(bytes), size_(size) {}
  std::size_t size() const { return size_; }
  /// Of a code: from 1; 0 is none and empty. Requires: code <= size().
  std::string_view of(std::uint32_t code) const;
  /// The code of a text, 0 where it is not there. Looks at all of them.
  std::uint32_t find(std::string_view text) const;

 private:
  std::uint32_t end(std::size_t text) const;
  std::shared_ptr<const void> owner_;
  BytesView bytes_;
  std::size_t size_ = 0;
};

/// The columns of neighbouring blocks of one segment (docs/formats.md, "Usage columns"), in a file or in memory.
/// Immutable and thread-safe. Of a file only the directory stays in memory; a column is read when it is asked for, and
/// checked against its sum the first time.
class Columns {
 public:
  /// Errors: hash_mismatch where it is damaged; those of reading.
  static Result<std::shared_ptr<const Columns>> open(io::FileSystem& files, const std::filesystem::path& path);
  static Result<std::shared_ptr<const Columns>> of_image(Bytes image);

  const KeyHash& log() const { return head_.log; }  ///< names the log that they were made from
  BlockAddress begin() const { return {head_.segment, head_.begin}; }
  BlockAddress end() const { return {head_.segment, head_.end}; }
  std::uint32_t rows() const { return head_.rows; }

  /// The smallest and the largest number of a column; both 0 where it has none.
  struct Range {
    std::int64_t least = 0, most = 0;
  };
  Range range(Column column, std::string_view property = {}) const;
  bool has(Column column, std::string_view property = {}) const { return find(column, property) != nullptr; }
  /// Empty where the column does not exist. Errors: hash_mismatch; those of reading.
  Result<Numbers> numbers(Column column, std::string_view property = {}) const;
  Result<Texts> texts(Column column, std::string_view property = {}) const;
  /// The names of all properties.
  std::vector<std::string_view> properties() const;

  /// In memory; 0 for a file.
  std::size_t image_bytes() const { return image_ ? image_->size() : 0; }
  /// A column turned out to be damaged.
  bool damaged() const { return damaged_.load(std::memory_order_relaxed); }

 private:
  friend class ColumnBuilder;
  struct Head {
    KeyHash log{};
    std::uint32_t segment = 0, begin = 0, end = 0;
    std::uint32_t rows = 0;
  };
  struct Entry {
    Column column{};
    std::uint8_t width = 0;
    std::string property{};
    std::uint64_t size = 0;
    std::int64_t least = 0, most = 0, unit = 1;
    std::uint64_t offset = 0, bytes = 0, sum = 0;
  };
  Result<> read_directory(BytesView directory, std::uint64_t end);
  const Entry* find(Column column, std::string_view property) const;
  struct Loaded {
    std::shared_ptr<const void> owner;
    BytesView bytes;
  };
  Result<Loaded> load(const Entry& entry) const;
  Error damage() const;

  io::FileSystem* files_ = nullptr;
  std::filesystem::path path_;
  std::shared_ptr<const Bytes> image_;
  Head head_;
  std::vector<Entry> entries_;  ///< by column and property
  std::unique_ptr<std::atomic<bool>[]> checked_;
  mutable std::atomic<bool> damaged_ = false;
};

/// Makes columns from events. Not thread-safe. Takes some 100 bytes an event until it is done.
class ColumnBuilder {
 public:
  /// Of events from `begin` on.
  ColumnBuilder(const KeyHash& log, BlockAddress begin);
  ~ColumnBuilder();
  /// The next event of the log. Errors: invalid_input where an amount is no number.
  Result<> add(const StoredEvent& event);
  std::uint32_t rows() const;
  /// What the file holds. Call it once.
  Bytes image(BlockAddress end);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace creto::metering

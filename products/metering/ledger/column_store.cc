#include "column_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <unordered_map>

namespace creto::metering {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view suffix = ".columns";

std::optional<std::uint32_t> segment_of(std::string_view name) {
  if (!name.ends_with(suffix)) return std::nullopt;
  name.remove_suffix(suffix.size());
  std::uint32_t segment = 0;
  const char* end = name.data() + name.size();
  const auto parsed = std::from_chars(name.data(), end, segment);
  if (parsed.ec != std::errc() || parsed.ptr != end || segment == 0) return std::nullopt;
  return segment;
}

/// Adds what `columns` has of `whose` before `until`.
Result<> locate_in(const Columns& columns, std::span<const AttributionNumber> whose, Instant until,
                   std::vector<RowPlace>& found) {
  const std::int64_t until_slot = unix_ns(until) / time_slot.count();
  if (columns.rows() == 0 || columns.range(Column::time_slot).least > until_slot) return {};
  const Numbers present = CRETO_TRY(columns.numbers(Column::attributions));
  std::vector<bool> wanted(present.size());
  bool any = false;
  std::size_t at = 0;
  for (const AttributionNumber number : whose) {
    if (whose.size() * 16 < present.size()) {
      at = present.lower_bound(number);
    } else {
      while (at < present.size() && present.at(at) < number) ++at;
    }
    if (at == present.size()) break;
    if (present.at(at) == number) any = wanted[at] = true;
  }
  if (!any) return {};
  const Numbers attribution = CRETO_TRY(columns.numbers(Column::attribution));
  const Numbers block_row = CRETO_TRY(columns.numbers(Column::block_row));
  const Numbers block_offset = CRETO_TRY(columns.numbers(Column::block_offset));
  const Numbers slot = CRETO_TRY(columns.numbers(Column::time_slot));
  Numbers in_slot;
  const bool cut = columns.range(Column::time_slot).most >= until_slot;
  if (cut) in_slot = CRETO_TRY(columns.numbers(Column::time_in_slot));
  std::array<std::uint32_t, 4096> codes;
  std::size_t block = 0;
  for (std::size_t from = 0; from < columns.rows(); from += codes.size()) {
    const std::size_t count = std::min<std::size_t>(codes.size(), columns.rows() - from);
    attribution.read(from, std::span(codes).first(count));
    for (std::size_t i = 0; i < count; ++i) {
      if (!wanted[codes[i]]) continue;
      const std::size_t row = from + i;
      if (cut && slot.at(row) * time_slot.count() + in_slot.at(row) >= unix_ns(until)) continue;
      while (block + 1 < block_row.size() && static_cast<std::size_t>(block_row.at(block + 1)) <= row) ++block;
      found.push_back({{columns.begin().segment, static_cast<std::uint32_t>(block_offset.at(block))},
                       static_cast<std::uint32_t>(row - static_cast<std::size_t>(block_row.at(block)))});
    }
  }
  return {};
}

/// The blocks of `columns` in which a record may have got this id, which begins with the second of its arrival.
Result<> blocks_of(const Columns& columns, const EventId& id, std::vector<BlockAddress>& found) {
  std::int64_t second = 0;
  for (std::size_t i = 0; i < 4; ++i) second = second << 8 | id.bytes()[i];
  const std::int64_t begin = second * 1'000'000'000;
  const std::int64_t end = begin + 1'000'000'000;
  const Columns::Range range = columns.range(Column::block_arrival);
  if (columns.rows() == 0 || range.most < begin || range.least >= end) return {};
  const Numbers arrival = CRETO_TRY(columns.numbers(Column::block_arrival));
  const Numbers offset = CRETO_TRY(columns.numbers(Column::block_offset));
  // Not by bisection: the clock may have been set back.
  for (std::size_t block = 0; block < arrival.size(); ++block) {
    if (arrival.at(block) < begin || arrival.at(block) >= end) continue;
    found.push_back({columns.begin().segment, static_cast<std::uint32_t>(offset.at(block))});
  }
  return {};
}

}  // namespace

ColumnStore::ColumnStore(Ledger& ledger, io::FileSystem& files, fs::path directory, Telemetry& telemetry)
    : ledger_(ledger),
      files_(files),
      directory_(std::move(directory)),
      telemetry_(telemetry),
      log_(ledger.key_hash("", "", "columns")) {}

fs::path ColumnStore::path_of(std::uint32_t segment) const {
  return directory_ / fmt::format("{:08}{}", segment, suffix);
}

Result<std::unique_ptr<ColumnStore>> ColumnStore::open(Ledger& ledger, io::FileSystem& files, fs::path directory,
                                                       Telemetry& telemetry) {
  auto store = std::unique_ptr<ColumnStore>(new ColumnStore(ledger, files, std::move(directory), telemetry));
  CRETO_TRY(files.create_directories(store->directory_));
  const std::uint32_t growing = ledger.position().end.segment;
  const std::uint32_t first = ledger.held()->from.segment;
  const auto names = CRETO_TRY(files.list(store->directory_));
  for (const std::string& name : names) {
    const fs::path path = store->directory_ / name;
    const auto segment = segment_of(name);
    if (segment && *segment < first) {
      CRETO_TRY(files.remove(path));
      continue;
    }
    auto columns = segment && *segment < growing ? Columns::open(files, path)
                                                 : Error(Product::metering, ErrorKind::not_found, "not of this log");
    const bool good = columns && (*columns)->log() == store->log_ && (*columns)->begin() == BlockAddress{*segment, 0};
    if (good) {
      store->sealed_.emplace(*segment, *std::move(columns));
      continue;
    }
    telemetry.log(LogLevel::warn, "metering", "columns_unusable", nullptr, {{"path", path.string()}});
    CRETO_TRY(files.remove(path));
  }
  return store;
}

Result<Bytes> ColumnStore::image(BlockAddress from, BlockAddress until, const Ledger::Held& held) const {
  ColumnBuilder builder(log_, from);
  CRETO_TRY(ledger_.scan(from, until, [&](const StoredEvent& event) { return builder.add(event); }, &held));
  return builder.image(until);
}

Result<> ColumnStore::seal(std::uint32_t segment) {
  const std::scoped_lock lock(mutex_);
  return seal_unlocked(segment, *ledger_.held());
}

Result<> ColumnStore::seal_all() {
  const std::uint32_t growing = ledger_.position().end.segment;
  // One at a time: a query need not wait for all of them.
  for (std::uint32_t segment = ledger_.held()->from.segment; segment < growing; ++segment) CRETO_TRY(seal(segment));
  return {};
}

Result<> ColumnStore::seal_unlocked(std::uint32_t segment, const Ledger::Held& held) {
  if (sealed_.contains(segment) || segment < held.from.segment) return {};
  const Bytes bytes = CRETO_TRY(image({segment, 0}, {segment + 1, 0}, held));
  CRETO_TRY(io::write_durably(files_, path_of(segment), bytes));
  auto columns = CRETO_TRY(Columns::open(files_, path_of(segment)));
  sealed_.emplace(segment, std::move(columns));
  return {};
}

Result<ColumnStore::All> ColumnStore::all() {
  const auto held = ledger_.held();
  const std::scoped_lock lock(mutex_);
  const BlockAddress end = ledger_.position().end;
  for (std::uint32_t segment = held->from.segment; segment < end.segment; ++segment)
    CRETO_TRY(seal_unlocked(segment, *held));
  if (!parts_.empty() && parts_.front().columns->begin().segment != end.segment) parts_.clear();
  BlockAddress from{end.segment, 0};
  if (!parts_.empty()) from = parts_.back().columns->end();
  if (from < end) {
    while (!parts_.empty() && parts_.back().bytes <= 2 * (end.offset - from.offset)) {
      from = parts_.back().columns->begin();
      parts_.pop_back();
    }
    Bytes bytes = CRETO_TRY(image(from, end, *held));
    auto columns = CRETO_TRY(Columns::of_image(std::move(bytes)));
    parts_.push_back({std::move(columns), end.offset - from.offset});
  }
  All all;
  all.reserve(sealed_.size() + parts_.size());
  for (auto one = sealed_.lower_bound(held->from.segment); one != sealed_.end(); ++one) all.push_back(one->second);
  for (const Part& part : parts_) all.push_back(part.columns);
  return all;
}

Result<> ColumnStore::drop_damaged() {
  const std::scoped_lock lock(mutex_);
  for (auto one = sealed_.begin(); one != sealed_.end();) {
    if (!one->second->damaged()) {
      ++one;
      continue;
    }
    telemetry_.log(LogLevel::warn, "metering", "columns_unusable", nullptr, {{"path", path_of(one->first).string()}});
    CRETO_TRY(files_.remove(path_of(one->first)));
    one = sealed_.erase(one);
  }
  return {};
}

Result<> ColumnStore::forget_cut() {
  const std::scoped_lock lock(mutex_);
  const std::uint32_t first = ledger_.held()->from.segment;
  while (!sealed_.empty() && sealed_.begin()->first < first) {
    CRETO_TRY(files_.remove(path_of(sealed_.begin()->first)));
    sealed_.erase(sealed_.begin());
  }
  return {};
}

Result<> ColumnStore::use(const std::function<Result<>(const All&)>& use) {
  const auto held = ledger_.held();
  const All first = CRETO_TRY(all());
  auto used = use(first);
  if (used || used.error().kind() != ErrorKind::hash_mismatch) return used;
  CRETO_TRY(drop_damaged());
  const All again = CRETO_TRY(all());
  return use(again);
}

Result<std::vector<RowPlace>> ColumnStore::locate(std::span<const AttributionNumber> whose, Instant until) {
  std::vector<RowPlace> found;
  CRETO_TRY(use([&](const All& all) -> Result<> {
    found.clear();
    for (const auto& columns : all) CRETO_TRY(locate_in(*columns, whose, until, found));
    return {};
  }));
  return found;
}

Result<std::vector<std::optional<RowPlace>>> ColumnStore::find(std::span<const EventId> ids,
                                                               std::span<const AttributionNumber> whose) {
  std::vector<std::optional<RowPlace>> found(ids.size());
  std::unordered_multimap<EventId, std::size_t> wanted;
  for (std::size_t i = 0; i < ids.size(); ++i) wanted.emplace(ids[i], i);
  const auto note = [&](const StoredEvent& event) -> Result<> {
    const auto [begin, end] = wanted.equal_range(event.id);
    for (auto one = begin; one != end; ++one) found[one->second] = event.place();
    return {};
  };
  std::vector<BlockAddress> blocks;
  CRETO_TRY(use([&](const All& all) -> Result<> {
    blocks.clear();
    for (const auto& columns : all) {
      for (const EventId& id : ids) CRETO_TRY(blocks_of(*columns, id, blocks));
    }
    return {};
  }));
  std::ranges::sort(blocks);
  blocks.erase(std::unique(blocks.begin(), blocks.end()), blocks.end());
  for (const BlockAddress& block : blocks) {
    CRETO_TRY(ledger_.scan(block, {block.segment, block.offset + 1}, note));
  }
  const bool all = std::ranges::all_of(found, [](const auto& place) { return place.has_value(); });
  if (all || whose.empty()) return found;
  const std::vector<RowPlace> places = CRETO_TRY(locate(whose, Instant::max()));
  CRETO_TRY(ledger_.visit(places, note));
  return found;
}

std::size_t ColumnStore::memory_bytes() const {
  const std::scoped_lock lock(mutex_);
  std::size_t bytes = 0;
  for (const Part& part : parts_) bytes += part.columns->image_bytes();
  return bytes;
}

BlockAddress end_of(const ColumnStore::All& columns) {
  if (columns.empty()) return {};
  const BlockAddress end = columns.back()->end();
  return end.offset == 0 ? BlockAddress{end.segment + 1, 0} : end;
}

Result<std::vector<std::uint32_t>> rows_taken_out(const Columns& columns, const TakenOut* taken_out) {
  std::vector<std::uint32_t> rows;
  if (taken_out == nullptr || columns.rows() == 0) return rows;
  const BlockAddress end = columns.end().offset == 0 ? BlockAddress{columns.end().segment + 1, 0} : columns.end();
  auto place = std::ranges::lower_bound(*taken_out, RowPlace{columns.begin(), 0});
  if (place == taken_out->end() || place->block >= end) return rows;
  const Numbers block_row = CRETO_TRY(columns.numbers(Column::block_row));
  const Numbers block_offset = CRETO_TRY(columns.numbers(Column::block_offset));
  for (; place != taken_out->end() && place->block < end; ++place) {
    const std::size_t block = block_offset.lower_bound(place->block.offset);
    rows.push_back(static_cast<std::uint32_t>(block_row.at(block)) + place->index);
  }
  return rows;
}

}  // namespace creto::metering

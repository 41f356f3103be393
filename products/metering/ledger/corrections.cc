#include "corrections.h"

#include <algorithm>

#include "creto/common/assert.h"

namespace creto::metering {

void Corrections::add(const Entry& entry) {
  const std::scoped_lock lock(mutex_);
  CRETO_ASSERT(entry.of < entry.by && (entries_.empty() || entries_.back().by < entry.by));
  const bool fresh = by_.emplace(entry.of, entry.by).second;
  CRETO_ASSERT(fresh);
  entries_.push_back(entry);
}

void Corrections::drop_from(const RowPlace& place) {
  const std::scoped_lock lock(mutex_);
  while (!entries_.empty() && entries_.back().by >= place) {
    by_.erase(entries_.back().of);
    entries_.pop_back();
  }
  known_.reset();
  known_count_ = 0;
}

void Corrections::forget_before(BlockAddress first) {
  const std::scoped_lock lock(mutex_);
  const auto end = entries_.begin() + static_cast<std::ptrdiff_t>(count_before(first));
  for (auto entry = entries_.begin(); entry != end; ++entry) by_.erase(entry->of);
  entries_.erase(entries_.begin(), end);
  known_.reset();
  known_count_ = 0;
}

std::optional<RowPlace> Corrections::by(const RowPlace& of) const {
  const std::scoped_lock lock(mutex_);
  const auto found = by_.find(of);
  return found == by_.end() ? std::nullopt : std::optional(found->second);
}

std::size_t Corrections::count() const {
  const std::scoped_lock lock(mutex_);
  return entries_.size();
}

std::size_t Corrections::count_before(BlockAddress until) const {
  const auto end = std::ranges::lower_bound(entries_, RowPlace{until, 0}, {}, &Entry::by);
  return static_cast<std::size_t>(end - entries_.begin());
}

std::vector<Corrections::Entry> Corrections::before(BlockAddress until) const {
  const std::scoped_lock lock(mutex_);
  return {entries_.begin(), entries_.begin() + static_cast<std::ptrdiff_t>(count_before(until))};
}

std::shared_ptr<const TakenOut> Corrections::taken_out(BlockAddress until) const {
  const std::scoped_lock lock(mutex_);
  const std::size_t count = count_before(until);
  if (count == known_count_) return known_;
  TakenOut places;
  for (std::size_t i = 0; i < count; ++i) {
    places.push_back(entries_[i].of);
    if (entries_[i].voids) places.push_back(entries_[i].by);
  }
  std::ranges::sort(places);
  known_ = count == 0 ? nullptr : std::make_shared<const TakenOut>(std::move(places));
  known_count_ = count;
  return known_;
}

namespace {

void put_place(Bytes& out, const RowPlace& place) {
  layout::put(out, place.block.segment);
  layout::put(out, place.block.offset);
  layout::put(out, place.index);
}

RowPlace get_place(layout::Reader& reader) {
  RowPlace place;
  place.block.segment = reader.get<std::uint32_t>();
  place.block.offset = reader.get<std::uint32_t>();
  place.index = reader.get<std::uint32_t>();
  return place;
}

}  // namespace

void Corrections::write(BlockAddress until, Bytes& out) const {
  const std::scoped_lock lock(mutex_);
  const std::size_t count = count_before(until);
  layout::put(out, static_cast<std::uint32_t>(count));
  for (std::size_t i = 0; i < count; ++i) {
    put_place(out, entries_[i].by);
    put_place(out, entries_[i].of);
    layout::put(out, static_cast<std::uint8_t>(entries_[i].voids));
  }
}

Result<> Corrections::read(layout::Reader& reader) {
  for (std::size_t left = reader.count(25); left > 0; --left) {
    Entry entry;
    entry.by = get_place(reader);
    entry.of = get_place(reader);
    entry.voids = reader.get<std::uint8_t>() == 1;
    const bool good =
        reader.ok() && entry.of < entry.by && !by(entry.of) && (entries_.empty() || entries_.back().by < entry.by);
    if (!good) return Error(Product::metering, ErrorKind::hash_mismatch, "corrections: cannot be read");
    add(entry);
  }
  if (!reader.ok()) return Error(Product::metering, ErrorKind::hash_mismatch, "corrections: cannot be read");
  return {};
}

}  // namespace creto::metering

#include "columns.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <optional>

#include "creto/common/assert.h"
#include "creto/common/money.h"
#include "creto/crypto/hash.h"
#include "layout.h"

namespace creto::metering {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view magic = "CRETOC1\n";
constexpr std::size_t alignment = 8;
constexpr std::size_t footer_bytes = 8 + 8 + 8;  ///< where the directory begins, its sum, the magic
constexpr std::int64_t billion = 1'000'000'000;

std::uint64_t checksum(BytesView bytes) {
  const Hash256 hash = crypto::blake3(bytes);
  std::uint64_t sum = 0;
  std::memcpy(&sum, hash.data(), sizeof sum);
  return sum;
}

std::uint8_t width_of(std::uint64_t largest) {
  if (largest == 0) return 0;
  if (largest <= UINT8_MAX) return 1;
  if (largest <= UINT16_MAX) return 2;
  return largest <= UINT32_MAX ? 4 : 8;
}

template <class Stored, class T>
void widen(const std::uint8_t* from, std::int64_t base, std::int64_t unit, std::span<T> out) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    Stored stored;
    std::memcpy(&stored, from + i * sizeof(Stored), sizeof(Stored));
    // Unsigned: a range of numbers may be wider than the signed type.
    out[i] = static_cast<T>(static_cast<std::uint64_t>(base) +
                            static_cast<std::uint64_t>(stored) * static_cast<std::uint64_t>(unit));
  }
}

/// Texts and their codes, from 1 in the order in which they come.
class Dictionary {
 public:
  std::uint32_t code(std::string_view text) {
    if ((ends_.size() + 1) * 2 > slots_.size()) grow();
    const std::size_t mask = slots_.size() - 1;
    std::size_t at = std::hash<std::string_view>()(text) & mask;
    for (; slots_[at] != 0; at = (at + 1) & mask) {
      if (of(slots_[at]) == text) return slots_[at];
    }
    bytes_ += text;
    ends_.push_back(static_cast<std::uint32_t>(bytes_.size()));
    slots_[at] = static_cast<std::uint32_t>(ends_.size());
    return slots_[at];
  }
  std::size_t size() const { return ends_.size(); }
  void put(Bytes& out) const {
    layout::put_bytes(out, {reinterpret_cast<const std::uint8_t*>(ends_.data()), ends_.size() * sizeof(std::uint32_t)});
    layout::put_bytes(out, as_bytes(bytes_));
  }

 private:
  std::string_view of(std::uint32_t code) const {
    const std::uint32_t begin = code == 1 ? 0 : ends_[code - 2];
    return std::string_view(bytes_).substr(begin, ends_[code - 1] - begin);
  }
  void grow() {
    slots_.assign(std::max<std::size_t>(16, slots_.size() * 2), 0);
    const std::size_t mask = slots_.size() - 1;
    for (std::uint32_t code = 1; code <= ends_.size(); ++code) {
      std::size_t at = std::hash<std::string_view>()(of(code)) & mask;
      while (slots_[at] != 0) at = (at + 1) & mask;
      slots_[at] = code;
    }
  }
  std::string bytes_;
  std::vector<std::uint32_t> ends_;
  std::vector<std::uint32_t> slots_;
};

/// An amount in parts: what 64 bits of whole ones and of billionths hold, and the rest.
struct Amount {
  std::int64_t whole = 0;
  std::int64_t nanos = 0;
  std::optional<Decimal> rest{};
};

/// The usual amount: digits, perhaps a point and up to nine more.
std::optional<Amount> short_amount(std::string_view text) {
  const std::size_t point = text.find('.');
  const auto whole = small_integer(text.substr(0, point));
  if (!whole) return std::nullopt;
  if (point == std::string_view::npos) return Amount{.whole = *whole};
  const std::string_view digits = text.substr(point + 1);
  const auto part = small_integer(digits);
  if (!part || digits.size() > 9) return std::nullopt;
  std::int64_t nanos = *part;
  for (std::size_t i = digits.size(); i < 9; ++i) nanos *= 10;
  return Amount{.whole = *whole, .nanos = nanos};
}

Result<Amount> amount_of(std::string_view text) {
  if (const auto amount = short_amount(text)) return *amount;
  const Decimal exact = CRETO_TRY(Decimal::parse(text));
  const Decimal whole = CRETO_TRY(exact.round(0, Decimal::Rounding::down));
  const auto whole_number = whole.to_integer();
  if (!whole_number) return Amount{.rest = exact};
  const Decimal part = CRETO_TRY(Decimal::subtract(exact, whole));
  const Decimal nanos = CRETO_TRY(part.round(9, Decimal::Rounding::down));
  const Decimal nano_number = CRETO_TRY(Decimal::multiply(nanos, Decimal(billion)));
  Amount amount{.whole = *whole_number};
  amount.nanos = CRETO_TRY(nano_number.to_integer());
  const Decimal rest = CRETO_TRY(Decimal::subtract(part, nanos));
  if (!rest.is_zero()) amount.rest = rest;
  return amount;
}

}  // namespace

// --- reading

template <class T>
void Numbers::read_as(std::size_t from, std::span<T> out) const {
  CRETO_ASSERT(from + out.size() <= size_);
  const std::uint8_t* at = bytes_.data() + from * width_;
  switch (width_) {
    case 0:
      std::fill(out.begin(), out.end(), static_cast<T>(base_));
      break;
    case 1:
      widen<std::uint8_t>(at, base_, unit_, out);
      break;
    case 2:
      widen<std::uint16_t>(at, base_, unit_, out);
      break;
    case 4:
      widen<std::uint32_t>(at, base_, unit_, out);
      break;
    default:
      widen<std::uint64_t>(at, base_, unit_, out);
  }
}

void Numbers::read(std::size_t from, std::span<std::int64_t> out) const { read_as(from, out); }
void Numbers::read(std::size_t from, std::span<std::uint32_t> out) const { read_as(from, out); }

std::size_t Numbers::lower_bound(std::int64_t value) const {
  std::size_t first = 0;
  std::size_t last = size_;
  while (first < last) {
    const std::size_t middle = first + (last - first) / 2;
    if (at(middle) < value) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  return first;
}

std::uint32_t Texts::end(std::size_t text) const {
  std::uint32_t end = 0;
  std::memcpy(&end, bytes_.data() + text * sizeof end, sizeof end);
  return end;
}

std::string_view Texts::of(std::uint32_t code) const {
  if (code == 0) return {};
  CRETO_ASSERT(code <= size_);
  const std::uint32_t begin = code == 1 ? 0 : end(code - 2);
  return as_text(bytes_.subspan(size_ * sizeof begin + begin, end(code - 1) - begin));
}

std::uint32_t Texts::find(std::string_view text) const {
  for (std::uint32_t code = 1; code <= size_; ++code) {
    if (of(code) == text) return code;
  }
  return 0;
}

Error Columns::damage() const {
  damaged_.store(true, std::memory_order_relaxed);
  return Error(Product::metering, ErrorKind::hash_mismatch,
               fmt::format("usage columns: those of segment {} are damaged", head_.segment));
}

Result<std::shared_ptr<const Columns>> Columns::open(io::FileSystem& files, const fs::path& path) {
  auto columns = std::make_shared<Columns>();
  columns->files_ = &files;
  columns->path_ = path;
  const std::uint64_t size = CRETO_TRY(files.size(path));
  if (size < magic.size() + footer_bytes) return columns->damage();
  const Bytes footer = CRETO_TRY(files.read_at(path, size - footer_bytes, footer_bytes));
  layout::Reader reader(footer);
  const auto begin = reader.get<std::uint64_t>();
  const auto sum = reader.get<std::uint64_t>();
  const std::uint64_t end = size - footer_bytes;
  if (as_text(reader.bytes(magic.size())) != magic || begin > end) return columns->damage();
  const Bytes directory = CRETO_TRY(files.read_at(path, begin, end - begin));
  if (directory.size() != end - begin || checksum(directory) != sum) return columns->damage();
  CRETO_TRY(columns->read_directory(directory, begin));
  return std::shared_ptr<const Columns>(std::move(columns));
}

Result<std::shared_ptr<const Columns>> Columns::of_image(Bytes image) {
  auto columns = std::make_shared<Columns>();
  columns->image_ = std::make_shared<const Bytes>(std::move(image));
  const BytesView bytes = *columns->image_;
  if (bytes.size() < magic.size() + footer_bytes) return columns->damage();
  layout::Reader reader(bytes.last(footer_bytes));
  const auto begin = reader.get<std::uint64_t>();
  const std::uint64_t end = bytes.size() - footer_bytes;
  if (begin > end) return columns->damage();
  CRETO_TRY(columns->read_directory(bytes.subspan(begin, end - begin), begin));
  return std::shared_ptr<const Columns>(std::move(columns));
}

Result<> Columns::read_directory(BytesView directory, std::uint64_t end) {
  layout::Reader reader(directory);
  head_ = reader.get<Head>();
  const std::size_t count = reader.count(2 + 4 + 7 * 8);
  entries_.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    Entry entry;
    entry.column = reader.get<Column>();
    entry.width = reader.get<std::uint8_t>();
    entry.property = reader.text();
    entry.size = reader.get<std::uint64_t>();
    entry.least = reader.get<std::int64_t>();
    entry.most = reader.get<std::int64_t>();
    entry.unit = reader.get<std::int64_t>();
    entry.offset = reader.get<std::uint64_t>();
    entry.bytes = reader.get<std::uint64_t>();
    entry.sum = reader.get<std::uint64_t>();
    const bool fits = reader.ok() && entry.bytes <= end && entry.offset <= end - entry.bytes &&
                      (entry.width == 0 || entry.bytes / entry.width >= entry.size);
    if (!fits) return damage();
    entries_.push_back(std::move(entry));
  }
  if (!reader.done()) return damage();
  checked_ = std::make_unique<std::atomic<bool>[]>(entries_.size());
  return {};
}

const Columns::Entry* Columns::find(Column column, std::string_view property) const {
  const auto key = [](const Entry& entry) { return std::pair(entry.column, std::string_view(entry.property)); };
  const auto found = std::ranges::lower_bound(entries_, std::pair(column, property), {}, key);
  return found != entries_.end() && key(*found) == std::pair(column, property) ? &*found : nullptr;
}

Result<Columns::Loaded> Columns::load(const Entry& entry) const {
  Loaded loaded;
  if (image_) {
    loaded = {image_, BytesView(*image_).subspan(entry.offset, entry.bytes)};
    return loaded;
  }
  auto bytes = std::make_shared<Bytes>();
  *bytes = CRETO_TRY(files_->read_at(path_, entry.offset, entry.bytes));
  if (bytes->size() != entry.bytes) return damage();
  std::atomic<bool>& checked = checked_[static_cast<std::size_t>(&entry - entries_.data())];
  if (!checked.load(std::memory_order_relaxed)) {
    if (checksum(*bytes) != entry.sum) return damage();
    checked.store(true, std::memory_order_relaxed);
  }
  loaded = {bytes, *bytes};
  return loaded;
}

Columns::Range Columns::range(Column column, std::string_view property) const {
  const Entry* entry = find(column, property);
  return entry == nullptr ? Range{} : Range{entry->least, entry->most};
}

Result<Numbers> Columns::numbers(Column column, std::string_view property) const {
  const Entry* entry = find(column, property);
  if (entry == nullptr) return Numbers();
  auto loaded = CRETO_TRY(load(*entry));
  return Numbers(std::move(loaded.owner), loaded.bytes, entry->size, entry->width, entry->least, entry->unit);
}

Result<Texts> Columns::texts(Column column, std::string_view property) const {
  const Entry* entry = find(column, property);
  if (entry == nullptr) return Texts();
  if (entry->bytes / sizeof(std::uint32_t) < entry->size) return damage();
  auto loaded = CRETO_TRY(load(*entry));
  return Texts(std::move(loaded.owner), loaded.bytes, entry->size);
}

std::vector<std::string_view> Columns::properties() const {
  std::vector<std::string_view> names;
  for (const Entry& entry : entries_) {
    if (entry.column == Column::values) names.emplace_back(entry.property);
  }
  return names;
}

// --- making

struct ColumnBuilder::State {
  struct Property {
    Dictionary values;
    std::vector<std::int64_t> rows;
    std::vector<std::int64_t> codes;
  };

  void begin_file(BlockAddress end) {
    head.end = end.offset;
    layout::put_bytes(out, as_bytes(magic));
  }
  Columns::Entry& begin_column(Column column, std::string_view property, std::size_t size) {
    out.resize((out.size() + alignment - 1) / alignment * alignment);
    entries.push_back({.column = column, .property = std::string(property), .size = size, .offset = out.size()});
    return entries.back();
  }
  void end_column(Columns::Entry& entry) {
    entry.bytes = out.size() - entry.offset;
    entry.sum = checksum(BytesView(out).subspan(entry.offset));
  }

  template <class Stored>
  void pack(std::span<const std::int64_t> numbers, std::int64_t least, std::int64_t unit) {
    const std::size_t at = out.size();
    out.resize(at + numbers.size() * sizeof(Stored));
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      const std::uint64_t beyond = static_cast<std::uint64_t>(numbers[i]) - static_cast<std::uint64_t>(least);
      const auto stored = static_cast<Stored>(unit == 1 ? beyond : beyond / static_cast<std::uint64_t>(unit));
      std::memcpy(out.data() + at + i * sizeof(Stored), &stored, sizeof(Stored));
    }
  }
  void put(Column column, std::span<const std::int64_t> numbers, std::string_view property = {}) {
    Columns::Entry& entry = begin_column(column, property, numbers.size());
    if (!numbers.empty()) {
      const auto [least, most] = std::ranges::minmax(numbers);
      entry.least = least;
      entry.most = most;
      // Times and prices are often whole thousandths: then they need fewer bytes.
      const auto steps = [&](std::int64_t unit) {
        return std::ranges::all_of(numbers, [&, low = least](std::int64_t number) {
          return (static_cast<std::uint64_t>(number) - static_cast<std::uint64_t>(low)) %
                     static_cast<std::uint64_t>(unit) ==
                 0;
        });
      };
      while (entry.unit < billion && steps(entry.unit * 1000)) entry.unit *= 1000;
      const std::uint64_t largest = (static_cast<std::uint64_t>(most) - static_cast<std::uint64_t>(least)) /
                                    static_cast<std::uint64_t>(entry.unit);
      entry.width = width_of(largest);
      if (entry.width == 1) pack<std::uint8_t>(numbers, least, entry.unit);
      if (entry.width == 2) pack<std::uint16_t>(numbers, least, entry.unit);
      if (entry.width == 4) pack<std::uint32_t>(numbers, least, entry.unit);
      if (entry.width == 8) pack<std::uint64_t>(numbers, least, entry.unit);
    }
    end_column(entry);
  }
  void put(Column column, const Dictionary& texts, std::string_view property = {}) {
    Columns::Entry& entry = begin_column(column, property, texts.size());
    texts.put(out);
    end_column(entry);
  }
  void put(Column rows_column, Column column, const std::vector<std::int64_t>& rows,
           const std::vector<std::string>& rests) {
    if (rows.empty()) return;
    put(rows_column, rows);
    Columns::Entry& entry = begin_column(column, {}, rests.size());
    std::uint32_t end = 0;
    for (const std::string& rest : rests) {
      end += static_cast<std::uint32_t>(rest.size());
      layout::put(out, end);
    }
    for (const std::string& rest : rests) layout::put_bytes(out, as_bytes(rest));
    end_column(entry);
  }
  void put_attributions() {
    std::vector<std::int64_t> different = attribution;
    std::ranges::sort(different);
    different.erase(std::unique(different.begin(), different.end()), different.end());
    put(Column::attributions, different);
    for (std::int64_t& number : attribution) {
      number = std::ranges::lower_bound(different, number) - different.begin();
    }
    put(Column::attribution, attribution);
  }
  void put_property(std::string_view name, Property& property) {
    put(Column::values, property.values, name);
    // A code of each row where at least every fourth has one; else the rows and their codes.
    if (property.rows.size() >= head.rows / 4) {
      std::vector<std::int64_t> all(head.rows);
      for (std::size_t i = 0; i < property.rows.size(); ++i)
        all[static_cast<std::size_t>(property.rows[i])] = property.codes[i];
      put(Column::value, all, name);
    } else {
      put(Column::value, property.codes, name);
      put(Column::value_rows, property.rows, name);
    }
    property = {};
  }
  void end_file() {
    std::ranges::sort(entries, {}, [](const Columns::Entry& entry) {
      return std::pair(entry.column, std::string_view(entry.property));
    });
    const std::uint64_t begin = out.size();
    layout::put(out, head);
    layout::put(out, static_cast<std::uint32_t>(entries.size()));
    for (const Columns::Entry& entry : entries) {
      layout::put(out, entry.column);
      layout::put(out, entry.width);
      layout::put_sized(out, entry.property);
      layout::put(out, entry.size);
      layout::put(out, entry.least);
      layout::put(out, entry.most);
      layout::put(out, entry.unit);
      layout::put(out, entry.offset);
      layout::put(out, entry.bytes);
      layout::put(out, entry.sum);
    }
    const std::uint64_t sum = checksum(BytesView(out).subspan(begin));
    layout::put(out, begin);
    layout::put(out, sum);
    layout::put_bytes(out, as_bytes(magic));
  }

  Columns::Head head;
  std::vector<std::int64_t> block_offset, block_row, block_arrival;
  std::vector<std::int64_t> attribution, slot, in_slot, units, unit_nanos, cost_nanos, type, currency;
  std::vector<std::int64_t> fine_unit_rows, fine_cost_rows;
  std::vector<std::string> fine_units, fine_costs;
  Dictionary types, currencies;
  std::map<std::string, Property, std::less<>> properties;
  std::vector<Columns::Entry> entries;
  Bytes out;
};

ColumnBuilder::ColumnBuilder(const KeyHash& log, BlockAddress begin) : state_(std::make_unique<State>()) {
  static_assert(sizeof(Columns::Head) == 32);
  state_->head = {.log = log, .segment = begin.segment, .begin = begin.offset};
}
ColumnBuilder::~ColumnBuilder() = default;

std::uint32_t ColumnBuilder::rows() const { return state_->head.rows; }

Result<> ColumnBuilder::add(const StoredEvent& event) {
  State& state = *state_;
  const RecordView& record = event.record;
  const auto row = static_cast<std::int64_t>(state.head.rows);
  const Amount units = CRETO_TRY(amount_of(record.units));
  Amount cost = CRETO_TRY(amount_of(record.cost.empty() ? "0" : record.cost));
  std::int64_t cost_nanos = 0;
  if (__builtin_mul_overflow(cost.whole, billion, &cost_nanos) ||
      __builtin_add_overflow(cost_nanos, cost.nanos, &cost_nanos)) {
    cost_nanos = 0;
    cost.rest = CRETO_TRY(Decimal::parse(record.cost));
  }
  if (event.index == 0 || row == 0) {
    state.block_offset.push_back(event.block.offset);
    state.block_row.push_back(row);
    state.block_arrival.push_back(unix_ns(event.arrived));
  }
  const std::int64_t time = unix_ns(record.time);
  state.attribution.push_back(event.attribution);
  state.slot.push_back(time / time_slot.count());
  state.in_slot.push_back(time % time_slot.count());
  state.units.push_back(units.whole);
  state.unit_nanos.push_back(units.nanos);
  state.cost_nanos.push_back(cost_nanos);
  if (units.rest) {
    state.fine_unit_rows.push_back(row);
    state.fine_units.push_back(units.rest->to_string());
  }
  if (cost.rest) {
    state.fine_cost_rows.push_back(row);
    state.fine_costs.push_back(cost.rest->to_string());
  }
  state.type.push_back(state.types.code(record.type));
  state.currency.push_back(record.currency.empty() ? 0 : state.currencies.code(record.currency));
  for (const PropertyView& one : record.properties) {
    auto property = state.properties.find(one.first);
    if (property == state.properties.end()) property = state.properties.try_emplace(std::string(one.first)).first;
    property->second.rows.push_back(row);
    property->second.codes.push_back(property->second.values.code(one.second));
  }
  ++state.head.rows;
  return {};
}

Bytes ColumnBuilder::image(BlockAddress end) {
  State& state = *state_;
  state.begin_file(end);
  state.put(Column::block_offset, state.block_offset);
  state.put(Column::block_row, state.block_row);
  state.put(Column::block_arrival, state.block_arrival);
  state.put_attributions();
  state.put(Column::time_slot, state.slot);
  state.put(Column::time_in_slot, state.in_slot);
  state.put(Column::units, state.units);
  state.put(Column::unit_nanos, state.unit_nanos);
  state.put(Column::fine_unit_rows, Column::fine_units, state.fine_unit_rows, state.fine_units);
  state.put(Column::cost_nanos, state.cost_nanos);
  state.put(Column::fine_cost_rows, Column::fine_costs, state.fine_cost_rows, state.fine_costs);
  state.put(Column::types, state.types);
  state.put(Column::type, state.type);
  state.put(Column::currencies, state.currencies);
  state.put(Column::currency, state.currency);
  for (auto& [name, property] : state.properties) state.put_property(name, property);
  state.end_file();
  return std::move(state.out);
}

}  // namespace creto::metering

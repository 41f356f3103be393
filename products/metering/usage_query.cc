#include "usage_query.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <compare>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <thread>
#include <unordered_map>
#include <utility>

#include "creto/common/assert.h"
#include "creto/common/json.h"

namespace creto::metering {
namespace {

using By = UsageGrouping::By;
__extension__ typedef __int128 Int128;
__extension__ typedef unsigned __int128 Wide;

constexpr std::uint32_t none = UINT32_MAX;     ///< this row does not count
constexpr std::uint32_t cut = UINT32_MAX - 1;  ///< a bound lies inside this quarter of an hour: look at the row's time
constexpr std::size_t chunk_rows = 4096;
constexpr std::size_t dense_cells_max = 1 << 22;
constexpr std::size_t keys_max = UsageQuery::group_by_max;

constexpr auto names = std::to_array<std::pair<By, std::string_view>>({{By::type, "type"},
                                                                       {By::agent, "agent"},
                                                                       {By::owner, "owner"},
                                                                       {By::ancestor, "ancestor"},
                                                                       {By::subscription, "subscription"},
                                                                       {By::hour, "hour"},
                                                                       {By::day, "day"},
                                                                       {By::week, "week"},
                                                                       {By::month, "month"}});
constexpr std::string_view property_prefix = "property:";
constexpr auto orders = std::to_array<std::pair<UsageOrder, std::string_view>>({{UsageOrder::keys, "keys"},
                                                                                {UsageOrder::events, "events"},
                                                                                {UsageOrder::units, "units"},
                                                                                {UsageOrder::cost, "cost"}});

Error invalid(std::string message) { return Error(Product::metering, ErrorKind::invalid_input, std::move(message)); }

bool is_period(By by) { return by == By::hour || by == By::day || by == By::week || by == By::month; }
bool is_whom(By by) { return by == By::agent || by == By::owner || by == By::ancestor || by == By::subscription; }

// --- periods

/// The first moment of the period that `when` lies in.
Instant period_begin(By by, const TimeZone& zone, Instant when) {
  if (by == By::hour) {
    // By the offset of the moment itself: the two hours that clocks show twice are two.
    const auto offset = zone.offset_at(when);
    return std::chrono::floor<std::chrono::hours>(when + offset) - offset;
  }
  std::chrono::local_days day = zone.day_of(when);
  if (by == By::week) day -= std::chrono::weekday(day) - std::chrono::Monday;
  if (by == By::month) {
    const std::chrono::year_month_day date(day);
    day = std::chrono::local_days(date.year() / date.month() / 1);
  }
  return zone.day_begin(day);
}

std::string period_text(By by, const TimeZone& zone, Instant begin) {
  const auto local = zone.local(begin);
  const std::chrono::year_month_day date(std::chrono::floor<std::chrono::days>(local));
  const auto year = static_cast<int>(date.year());
  const auto month = static_cast<unsigned>(date.month());
  if (by == By::month) return fmt::format("{:04}-{:02}", year, month);
  const std::string day = fmt::format("{:04}-{:02}-{:02}", year, month, static_cast<unsigned>(date.day()));
  if (by != By::hour) return day;
  const auto time = std::chrono::floor<std::chrono::seconds>(local - std::chrono::floor<std::chrono::days>(local));
  const auto offset = zone.offset_at(begin).count() / 60;
  const std::string zone_text =
      offset == 0 ? "Z"
                  : fmt::format("{}{:02}:{:02}", offset < 0 ? '-' : '+', std::abs(offset) / 60, std::abs(offset) % 60);
  return fmt::format("{}T{:02}:{:02}:{:02}{}", day, time.count() / 3600, time.count() / 60 % 60, time.count() % 60,
                     zone_text);
}

// --- groups

using Key = std::array<std::uint32_t, keys_max>;

struct KeyHasher {
  std::size_t operator()(const Key& key) const {
    std::uint64_t low = 0;
    std::uint64_t high = 0;
    std::memcpy(&low, key.data(), 8);
    std::memcpy(&high, key.data() + 2, 8);
    const Wide product = static_cast<Wide>(low ^ 0x9E3779B97F4A7C15ull) * (high ^ 0xD6E8FEB86659FD93ull);
    const auto hash = static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
    return hash * 0x9E3779B97F4A7C15ull >> 16;
  }
};

/// Different keys, numbered in the order in which they came.
class Keys {
 public:
  std::uint32_t number(const Key& key) {
    if ((keys_.size() + 1) * 2 > slots_.size()) grow();
    const std::size_t mask = slots_.size() - 1;
    std::size_t at = KeyHasher()(key) & mask;
    for (; slots_[at] != none; at = (at + 1) & mask) {
      if (keys_[slots_[at]] == key) return slots_[at];
    }
    slots_[at] = static_cast<std::uint32_t>(keys_.size());
    keys_.push_back(key);
    return slots_[at];
  }
  const Key& operator[](std::size_t number) const { return keys_[number]; }
  std::size_t size() const { return keys_.size(); }

 private:
  void grow() {
    slots_.assign(std::max<std::size_t>(1024, slots_.size() * 2), none);
    const std::size_t mask = slots_.size() - 1;
    for (std::uint32_t i = 0; i < keys_.size(); ++i) {
      std::size_t at = KeyHasher()(keys_[i]) & mask;
      while (slots_[at] != none) at = (at + 1) & mask;
      slots_[at] = i;
    }
  }
  std::vector<Key> keys_;
  std::vector<std::uint32_t> slots_;
};

/// What few events have beyond billionths.
struct Fine {
  Decimal units, cost;
  Result<> add(const Decimal& more_units, const Decimal& more_cost) {
    units = CRETO_TRY(Decimal::add(units, more_units));
    cost = CRETO_TRY(Decimal::add(cost, more_cost));
    return {};
  }
};
using Fines = std::unordered_map<std::uint32_t, Fine>;  ///< by group, or by cell

struct Total {
  std::int64_t events = 0;
  Int128 unit_nanos = 0;
  Int128 cost_nanos = 0;
};

struct Groups {
  Keys keys;
  std::vector<Total> totals;
  Fines fines;

  std::uint32_t add(const Key& key, const Total& more) {
    const std::uint32_t group = keys.number(key);
    if (group == totals.size()) totals.emplace_back();
    Total& total = totals[group];
    total.events += more.events;
    total.unit_nanos += more.unit_nanos;
    total.cost_nanos += more.cost_nanos;
    return group;
  }
};

/// Numbers for texts, or for the beginnings of periods, over all segments.
template <class Name, class View>
class Codes {
 public:
  std::uint32_t code(View name) {
    const std::scoped_lock lock(mutex_);
    const auto known = codes_.find(name);
    if (known != codes_.end()) return known->second;
    const auto code = static_cast<std::uint32_t>(by_code_.size());
    by_code_.push_back(&codes_.emplace(Name(name), code).first->first);
    return code;
  }
  /// Requires: nobody calls `code` meanwhile.
  const Name& name(std::uint32_t code) const { return *by_code_[code]; }

 private:
  std::mutex mutex_;
  std::map<Name, std::uint32_t, std::less<>> codes_;
  std::vector<const Name*> by_code_;
};

// --- what the segments share

/// A query with its names looked up. Groupings by whom an event counts for are one part of the key, `whom`: the same
/// attribution gives the same.
class Question {
 public:
  Question(const Subjects& subjects, const TakenOut* taken_out, std::string_view org, const Currency& accounting,
           const UsageQuery& query)
      : subjects_(subjects), taken_out_(taken_out), org_(org), accounting_(accounting), query_(query) {
    for (std::size_t i = 0; i < query.group_by.size(); ++i) {
      const UsageGrouping& grouping = query.group_by[i];
      if (is_whom(grouping.by)) {
        whom_.push_back(i);
      } else {
        parts_.push_back(i);
        if (is_period(grouping.by)) period_ = grouping.by;
      }
    }
  }

  const UsageQuery& query() const { return query_; }
  const Currency& accounting() const { return accounting_; }
  const TakenOut* taken_out() const { return taken_out_; }
  /// The groupings that have a part of their own in a key, after whom.
  const std::vector<std::size_t>& parts() const { return parts_; }
  bool by_whom() const { return !whom_.empty(); }
  std::optional<By> period() const { return period_; }
  /// How often the events must be looked at: once for each ancestor of the longest chain where those are asked for.
  std::size_t passes() const { return passes_; }

  /// Finds out for each attribution whether it counts, and under which whom.
  void begin_pass(std::size_t pass) {
    const Subjects::Mark mark = subjects_.mark();
    const SubjectNumber subject = query_.subject.empty() ? 0 : subjects_.find(org_, query_.subject);
    whom_of_.assign(mark.attributions + std::size_t{1}, none);
    whom_count_ = whom_.size() == 1 ? mark.subjects + std::size_t{1} : 1;
    if (!query_.subject.empty() && subject == 0) return;
    const bool by_ancestor =
        std::ranges::any_of(query_.group_by, [](const UsageGrouping& one) { return one.by == By::ancestor; });
    for (AttributionNumber number = 1; number <= mark.attributions; ++number) {
      const Attribution& attribution = subjects_.attribution(number);
      const bool counts = subject == 0
                              ? subjects_.subject(attribution.agent).org == org_
                              : attribution.agent == subject || attribution.subscription == subject ||
                                    std::ranges::find(attribution.ancestors, subject) != attribution.ancestors.end();
      if (!counts) continue;
      if (by_ancestor) {
        passes_ = std::max(passes_, attribution.ancestors.size());
        if (pass >= attribution.ancestors.size()) continue;
      }
      whom_of_[number] = whom(attribution, pass);
    }
    if (whom_.size() > 1) whom_count_ = whom_keys_.size();
  }
  std::uint32_t whom_of(std::size_t attribution) const { return whom_of_[attribution]; }
  std::size_t whom_count() const { return whom_count_; }

  std::uint32_t text_code(std::string_view text) { return texts_.code(text); }
  std::uint32_t period_code(Instant begin) { return periods_.code(unix_ns(begin)); }

  /// The code of grouping `i` in a group's key.
  std::uint32_t code(const Key& key, std::size_t i) const {
    for (std::size_t j = 0; j < whom_.size(); ++j) {
      if (whom_[j] == i) return whom_.size() == 1 ? key[0] : whom_keys_[key[0]][j];
    }
    const auto part = static_cast<std::size_t>(std::ranges::find(parts_, i) - parts_.begin());
    return key[part + (by_whom() ? 1 : 0)];
  }
  std::string name(std::size_t i, std::uint32_t code) const {
    const By by = query_.group_by[i].by;
    if (is_whom(by)) return code == 0 ? std::string() : std::string(subjects_.subject(code).name);
    return is_period(by) ? period_text(by, query_.zone, from_unix_ns(periods_.name(code))) : texts_.name(code);
  }
  /// What tells a key from others of its grouping, and orders it, also in another query.
  std::string mark(std::size_t i, std::uint32_t code) const {
    return is_period(query_.group_by[i].by) ? std::to_string(periods_.name(code)) : name(i, code);
  }
  std::strong_ordering compare(std::size_t i, std::uint32_t code, const std::string& mark) const {
    if (!is_period(query_.group_by[i].by)) return name(i, code) <=> mark;
    std::int64_t begin = 0;
    std::from_chars(mark.data(), mark.data() + mark.size(), begin);
    return periods_.name(code) <=> begin;
  }
  /// Whether key `a` stands before key `b`, other than by their numbers.
  bool before(std::size_t i, std::uint32_t a, std::uint32_t b) const {
    const By by = query_.group_by[i].by;
    if (is_period(by)) return periods_.name(a) < periods_.name(b);
    if (!is_whom(by)) return texts_.name(a) < texts_.name(b);
    const auto of = [this](std::uint32_t code) {
      return code == 0 ? std::string_view() : subjects_.subject(code).name;
    };
    return of(a) < of(b);
  }

 private:
  std::uint32_t whom(const Attribution& attribution, std::size_t pass) {
    Key key{};
    for (std::size_t j = 0; j < whom_.size(); ++j) {
      switch (query_.group_by[whom_[j]].by) {
        case By::owner:
          key[j] = attribution.ancestors.empty() ? attribution.agent : attribution.ancestors.front();
          break;
        case By::ancestor:
          key[j] = attribution.ancestors[pass];
          break;
        case By::subscription:
          key[j] = attribution.subscription;
          break;
        default:
          key[j] = attribution.agent;
      }
    }
    return whom_.size() == 1 ? key[0] : whom_keys_.number(key);
  }

  const Subjects& subjects_;
  const TakenOut* const taken_out_;
  const std::string_view org_;
  const Currency& accounting_;
  const UsageQuery& query_;
  std::vector<std::size_t> whom_, parts_;
  std::optional<By> period_;
  std::size_t passes_ = 1;
  std::vector<std::uint32_t> whom_of_;  ///< by attribution
  std::size_t whom_count_ = 1;
  Keys whom_keys_;
  Codes<std::string, std::string_view> texts_;
  Codes<std::int64_t, std::int64_t> periods_;
};

// --- one segment

/// A dictionary-coded column of each row: of a property, or of the type.
class CodeColumn {
 public:
  static Result<CodeColumn> of_type(const Columns& columns) {
    CodeColumn column;
    column.texts_ = CRETO_TRY(columns.texts(Column::types));
    column.codes_ = CRETO_TRY(columns.numbers(Column::type));
    return column;
  }
  static Result<CodeColumn> of_property(const Columns& columns, std::string_view name) {
    CodeColumn column;
    column.texts_ = CRETO_TRY(columns.texts(Column::values, name));
    column.codes_ = CRETO_TRY(columns.numbers(Column::value, name));
    column.sparse_ = column.codes_.size() < columns.rows();
    if (columns.has(Column::value_rows, name)) {
      column.rows_ = CRETO_TRY(columns.numbers(Column::value_rows, name));
    }
    return column;
  }
  const Texts& texts() const { return texts_; }
  void read(std::size_t from, std::span<std::uint32_t> out) const {
    if (!sparse_) {
      codes_.read(from, out);
      return;
    }
    std::ranges::fill(out, 0);
    for (std::size_t at = rows_.lower_bound(static_cast<std::int64_t>(from)); at < rows_.size(); ++at) {
      const std::size_t row = static_cast<std::size_t>(rows_.at(at)) - from;
      if (row >= out.size()) break;
      out[row] = static_cast<std::uint32_t>(codes_.at(at));
    }
  }

 private:
  Texts texts_;
  Numbers codes_, rows_;
  bool sparse_ = false;
};

/// What is used again from segment to segment.
struct Scratch {
  std::vector<std::uint32_t> local_whom;  ///< by whom: its number in the segment, or none
};

/// Sum: 64 bits where those of a whole segment fit, else 128.
template <class Sum>
struct Cell {
  std::int64_t events = 0;
  std::int64_t nanos = 0;  ///< of units, beyond the whole ones
  Sum units = 0;
  Sum cost = 0;
};

class SegmentScan {
 public:
  SegmentScan(Question& question, const Columns& columns, Scratch& scratch, Groups& groups, std::size_t groups_max)
      : question_(question),
        query_(question.query()),
        columns_(columns),
        scratch_(scratch),
        groups_(groups),
        groups_max_(groups_max) {}

  Result<> run() {
    const bool any = CRETO_TRY(prepare());
    if (!any) return {};
    Int128 largest = std::max(columns_.range(Column::units).most, columns_.range(Column::cost_nanos).most);
    return largest * columns_.rows() <= INT64_MAX ? add_up<std::int64_t>() : add_up<Int128>();
  }

 private:
  /// Loads what the query needs of this segment; false where nothing of it counts.
  Result<bool> prepare() {
    if (columns_.rows() == 0 || !prepare_times()) return false;
    const bool some = CRETO_TRY(prepare_whom());
    if (!some) return false;
    if (any_cut_) in_slot_ = CRETO_TRY(columns_.numbers(Column::time_in_slot));
    if (slots_matter_) slot_ = CRETO_TRY(columns_.numbers(Column::time_slot));
    const bool passes = CRETO_TRY(prepare_filters());
    if (!passes) return false;
    taken_out_ = CRETO_TRY(rows_taken_out(columns_, question_.taken_out()));
    CRETO_TRY(prepare_parts());
    CRETO_TRY(prepare_measures());
    return true;
  }

  /// Which period each quarter of an hour belongs to, if it counts at all.
  bool prepare_times() {
    const Columns::Range range = columns_.range(Column::time_slot);
    first_slot_ = range.least;
    bool any = false;
    for (std::int64_t slot = range.least; slot <= range.most; ++slot) {
      const Instant begin(slot * time_slot);
      const Instant last = begin + time_slot - Nanos(1);
      std::uint32_t code = none;
      if (last >= query_.from && begin < query_.until) {
        code = period_of(begin);
        const bool whole = begin >= query_.from && last < query_.until && period_of(last) == code;
        if (!whole) {
          code = cut;
          // Every period that a row of it may be in, so that their number stands before the rows are read.
          for (Instant when = begin; when < last; when += std::chrono::minutes(1)) period_of(when);
          period_of(last);
        }
      }
      any = any || code != none;
      any_cut_ = any_cut_ || code == cut;
      slots_matter_ = slots_matter_ || code != 0;
      period_of_slot_.push_back(code);
    }
    return any;
  }
  std::uint32_t period_of(Instant when) {
    if (!question_.period()) return 0;
    const Instant begin = period_begin(*question_.period(), query_.zone, when);
    const auto [at, fresh] = local_period_.try_emplace(begin, static_cast<std::uint32_t>(periods_.size()));
    if (fresh) periods_.push_back(begin);
    return at->second;
  }

  Result<bool> prepare_whom() {
    attributions_ = CRETO_TRY(columns_.numbers(Column::attributions));
    whom_of_place_.resize(attributions_.size());
    std::vector<std::uint32_t>& local = scratch_.local_whom;
    local.resize(std::max(local.size(), question_.whom_count()), none);
    bool some = false;
    for (std::size_t i = 0; i < attributions_.size(); ++i) {
      const std::uint32_t whom = question_.whom_of(static_cast<std::size_t>(attributions_.at(i)));
      whom_of_place_[i] = none;
      if (whom == none) {
        whom_matters_ = true;
        continue;
      }
      some = true;
      if (local[whom] == none) {
        local[whom] = static_cast<std::uint32_t>(whoms_.size());
        whoms_.push_back(whom);
      }
      whom_of_place_[i] = local[whom];
    }
    for (const std::uint32_t whom : whoms_) local[whom] = none;
    whom_matters_ = whom_matters_ || question_.by_whom();
    if (some && whom_matters_) attribution_ = CRETO_TRY(columns_.numbers(Column::attribution));
    return some;
  }

  struct Filter {
    CodeColumn column;
    std::vector<std::uint8_t> passes;  ///< by code
  };
  Result<bool> prepare_filters() {
    if (!query_.event_type.empty()) {
      CodeColumn column = CRETO_TRY(CodeColumn::of_type(columns_));
      const bool passes = add_filter(std::move(column), {query_.event_type});
      if (!passes) return false;
    }
    for (const PropertyMatch& filter : query_.filters) {
      CodeColumn column = CRETO_TRY(CodeColumn::of_property(columns_, filter.property));
      const bool passes = add_filter(std::move(column), filter.values);
      if (!passes) return false;
    }
    return true;
  }
  bool add_filter(CodeColumn column, const std::vector<std::string>& values) {
    Filter filter{std::move(column), {}};
    const Texts& texts = filter.column.texts();
    filter.passes.resize(texts.size() + 1);
    for (const std::string& value : values) {
      const std::uint32_t code = texts.find(value);
      if (code != 0) filter.passes[code] = 1;
      if (value.empty()) filter.passes[0] = 1;
    }
    const bool any = std::ranges::find(filter.passes, 1) != filter.passes.end();
    filters_.push_back(std::move(filter));
    return any;
  }

  /// A part of a key, other than whom: a text or the period.
  struct Part {
    std::optional<CodeColumn> column{};  ///< none: the period
    std::size_t codes = 0;
    std::vector<std::uint32_t> shared{};  ///< by code: the code over all segments, once it is known
  };
  Result<> prepare_parts() {
    for (const std::size_t i : question_.parts()) {
      const UsageGrouping& grouping = query_.group_by[i];
      Part part;
      if (is_period(grouping.by)) {
        part.codes = periods_known_ = periods_.size();
      } else {
        CodeColumn column = CRETO_TRY(grouping.by == By::type ? CodeColumn::of_type(columns_)
                                                              : CodeColumn::of_property(columns_, grouping.property));
        part.codes = column.texts().size() + 1;
        part.column = std::move(column);
      }
      part.shared.assign(part.codes, none);
      parts_.push_back(std::move(part));
    }
    return {};
  }

  Result<> prepare_measures() {
    units_ = CRETO_TRY(columns_.numbers(Column::units));
    unit_nanos_ = CRETO_TRY(columns_.numbers(Column::unit_nanos));
    unit_nanos_matter_ = columns_.range(Column::unit_nanos).most != 0;
    CRETO_TRY(load_fines(Column::fine_unit_rows, Column::fine_units, &Fine::units));
    const Texts currencies = CRETO_TRY(columns_.texts(Column::currencies));
    currency_code_ = currencies.find(question_.accounting().code());
    if (currency_code_ == 0) return {};
    cost_ = CRETO_TRY(columns_.numbers(Column::cost_nanos));
    if (currencies.size() > 1) currency_ = CRETO_TRY(columns_.numbers(Column::currency));
    return load_fines(Column::fine_cost_rows, Column::fine_costs, &Fine::cost);
  }
  Result<> load_fines(Column rows_column, Column texts_column, Decimal Fine::* measure) {
    const Numbers rows = CRETO_TRY(columns_.numbers(rows_column));
    const Texts texts = CRETO_TRY(columns_.texts(texts_column));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto row = static_cast<std::size_t>(rows.at(i));
      if (measure == &Fine::cost && currency_.size() > 0 && currency_.at(row) != currency_code_) continue;
      fine_rows_[row].*measure = CRETO_TRY(Decimal::parse(texts.of(static_cast<std::uint32_t>(i + 1))));
    }
    return {};
  }

  template <class Sum>
  Result<> add_up() {
    std::size_t cells = whoms_.size();
    for (const Part& part : parts_) cells = std::min(dense_cells_max + 1, cells * part.codes);
    dense_ = cells <= std::min(dense_cells_max, std::max<std::size_t>(1 << 16, std::size_t{2} * columns_.rows()));
    std::vector<Cell<Sum>> sums(dense_ ? cells : 0);
    Fines fines;
    auto next_fine = fine_rows_.begin();
    for (std::size_t from = 0; from < columns_.rows(); from += chunk_rows) {
      const std::size_t count = std::min<std::size_t>(chunk_rows, columns_.rows() - from);
      select(from, count);
      if (selected_ > 0) {
        find_cells(from, count);
        if (!dense_ && sums.size() < cell_keys_.size()) sums.resize(cell_keys_.size());
        add_rows(from, count, std::span(sums));
      }
      for (; next_fine != fine_rows_.end() && next_fine->first < from + count; ++next_fine) {
        const auto end = rows_.begin() + static_cast<std::ptrdiff_t>(selected_);
        const auto row = std::lower_bound(rows_.begin(), end, static_cast<std::uint32_t>(next_fine->first - from));
        if (row == end || *row != next_fine->first - from) continue;
        const std::uint32_t cell = cell_[static_cast<std::size_t>(row - rows_.begin())];
        CRETO_TRY(fines[cell].add(next_fine->second.units, next_fine->second.cost));
      }
    }
    return merge(std::span<const Cell<Sum>>(sums), fines);
  }

  /// The rows of a chunk that count.
  void select(std::size_t from, std::size_t count) {
    std::fill_n(keep_.begin(), count, std::uint8_t{1});
    if (whom_matters_) {
      const auto whom = std::span(whom_).first(count);
      attribution_.read(from, whom);
      for (std::uint32_t& place : whom) place = whom_of_place_[place];
      for (std::size_t i = 0; i < count; ++i) keep_[i] &= static_cast<std::uint8_t>(whom[i] != none);
    }
    if (slots_matter_) {
      const auto period = std::span(period_).first(count);
      slot_.read(from, period);
      for (std::uint32_t& slot : period) slot = period_of_slot_[slot - static_cast<std::uint32_t>(first_slot_)];
      if (any_cut_) resolve_cuts(from, period);
      for (std::size_t i = 0; i < count; ++i) keep_[i] &= static_cast<std::uint8_t>(period[i] != none);
    }
    for (const Filter& filter : filters_) {
      const auto codes = std::span(codes_).first(count);
      filter.column.read(from, codes);
      for (std::size_t i = 0; i < count; ++i) keep_[i] &= filter.passes[codes[i]];
    }
    for (; next_taken_out_ < taken_out_.size() && taken_out_[next_taken_out_] < from + count; ++next_taken_out_) {
      keep_[taken_out_[next_taken_out_] - from] = 0;
    }
    selected_ = 0;
    for (std::size_t i = 0; i < count; ++i) {
      rows_[selected_] = static_cast<std::uint32_t>(i);
      selected_ += keep_[i];
    }
  }
  void resolve_cuts(std::size_t from, std::span<std::uint32_t> period) {
    for (std::size_t i = 0; i < period.size(); ++i) {
      if (period[i] != cut) continue;
      const Instant time(slot_.at(from + i) * time_slot + Nanos(in_slot_.at(from + i)));
      period[i] = time >= query_.from && time < query_.until ? period_of(time) : none;
      CRETO_ASSERT(period[i] == none || !question_.period() || period[i] < periods_known_);
    }
  }

  /// The cell of each selected row.
  void find_cells(std::size_t from, std::size_t count) {
    const auto rows = std::span(rows_).first(selected_);
    const bool by_whom = question_.by_whom();
    if (dense_) {
      for (std::size_t j = 0; j < rows.size(); ++j) cell_[j] = by_whom ? whom_[rows[j]] : 0;
    } else {
      row_keys_.assign(rows.size(), Key{});
      for (std::size_t j = 0; j < rows.size(); ++j) row_keys_[j][0] = by_whom ? whom_[rows[j]] : 0;
    }
    std::size_t stride = by_whom ? whoms_.size() : 1;
    std::size_t place = by_whom ? 1 : 0;
    for (const Part& part : parts_) {
      auto codes = std::span<const std::uint32_t>(period_).first(count);
      if (part.column) {
        part.column->read(from, std::span(codes_).first(count));
        codes = std::span(codes_).first(count);
      } else if (!slots_matter_) {
        std::fill_n(period_.begin(), count, 0);
      }
      if (dense_) {
        for (std::size_t j = 0; j < rows.size(); ++j) cell_[j] += static_cast<std::uint32_t>(stride) * codes[rows[j]];
      } else {
        for (std::size_t j = 0; j < rows.size(); ++j) row_keys_[j][place] = codes[rows[j]];
      }
      stride *= part.codes;
      ++place;
    }
    if (dense_) return;
    for (std::size_t j = 0; j < rows.size(); ++j) cell_[j] = cell_keys_.number(row_keys_[j]);
  }

  /// One pass over the cells, since where they lie is what costs time.
  template <class Sum>
  void add_rows(std::size_t from, std::size_t count, std::span<Cell<Sum>> sums) {
    const auto units = std::span(numbers_).first(count);
    const auto costs = std::span(costs_).first(count);
    units_.read(from, units);
    read_costs(from, costs);
    for (std::size_t j = 0; j < selected_; ++j) {
      Cell<Sum>& cell = sums[cell_[j]];
      ++cell.events;
      cell.units += units[rows_[j]];
      cell.cost += costs[rows_[j]];
    }
    if (!unit_nanos_matter_) return;
    unit_nanos_.read(from, units);
    for (std::size_t j = 0; j < selected_; ++j) sums[cell_[j]].nanos += units[rows_[j]];
  }
  void read_costs(std::size_t from, std::span<std::int64_t> costs) {
    if (cost_.size() == 0) {
      std::ranges::fill(costs, 0);
      return;
    }
    cost_.read(from, costs);
    if (currency_.size() == 0) return;
    const auto codes = std::span(codes_).first(costs.size());
    currency_.read(from, codes);
    for (std::size_t i = 0; i < costs.size(); ++i) costs[i] = codes[i] == currency_code_ ? costs[i] : 0;
  }

  /// Into the groups over all segments.
  template <class Sum>
  Result<> merge(std::span<const Cell<Sum>> sums, const Fines& fines) {
    for (std::size_t i = 0; i < sums.size(); ++i) {
      const Cell<Sum>& cell = sums[i];
      if (cell.events == 0) continue;
      const Total total{cell.events, static_cast<Int128>(cell.units) * 1'000'000'000 + cell.nanos,
                        static_cast<Int128>(cell.cost)};
      const std::uint32_t group = groups_.add(shared_key(i), total);
      if (groups_.totals.size() > groups_max_) {
        return Error(Product::metering, ErrorKind::resource_exhausted,
                     fmt::format("usage query: has more than {} groups; narrow it", groups_max_));
      }
      if (fines.empty()) continue;
      const auto fine = fines.find(static_cast<std::uint32_t>(i));
      if (fine != fines.end()) CRETO_TRY(groups_.fines[group].add(fine->second.units, fine->second.cost));
    }
    return {};
  }
  Key shared_key(std::size_t cell) {
    Key key{};
    const bool by_whom = question_.by_whom();
    std::size_t place = by_whom ? 1 : 0;
    std::size_t rest = cell;
    if (by_whom) {
      key[0] = whoms_[dense_ ? rest % whoms_.size() : cell_keys_[cell][0]];
      rest /= whoms_.size();
    }
    for (Part& part : parts_) {
      const std::size_t code = dense_ ? rest % part.codes : cell_keys_[cell][place];
      rest /= part.codes;
      std::uint32_t& shared = part.shared[code];
      if (shared == none) {
        shared = part.column ? question_.text_code(part.column->texts().of(static_cast<std::uint32_t>(code)))
                             : question_.period_code(periods_[code]);
      }
      key[place++] = shared;
    }
    return key;
  }

  Question& question_;
  const UsageQuery& query_;
  const Columns& columns_;
  Scratch& scratch_;
  Groups& groups_;
  const std::size_t groups_max_;

  std::int64_t first_slot_ = 0;
  bool slots_matter_ = false;
  bool any_cut_ = false;
  std::vector<std::uint32_t> period_of_slot_;  ///< from `first_slot_`: a place in `periods_`, none or cut
  std::map<Instant, std::uint32_t> local_period_;
  std::vector<Instant> periods_;
  std::size_t periods_known_ = 0;  ///< when the rows are read
  Numbers slot_, in_slot_;

  bool whom_matters_ = false;
  Numbers attributions_, attribution_;
  std::vector<std::uint32_t> whom_of_place_;  ///< place in `attributions` to place in `whoms_`, or none
  std::vector<std::uint32_t> whoms_;

  std::vector<Filter> filters_;
  std::vector<std::uint32_t> taken_out_;  ///< rows
  std::size_t next_taken_out_ = 0;
  std::vector<Part> parts_;
  bool dense_ = true;
  Keys cell_keys_;  ///< of cells that are not dense
  std::vector<Key> row_keys_;

  Numbers units_, unit_nanos_, cost_, currency_;
  bool unit_nanos_matter_ = false;
  std::uint32_t currency_code_ = 0;
  std::map<std::size_t, Fine> fine_rows_;

  // Of one chunk.
  std::array<std::uint8_t, chunk_rows> keep_;
  std::array<std::uint32_t, chunk_rows> rows_;  ///< the selected ones
  std::size_t selected_ = 0;
  std::array<std::uint32_t, chunk_rows> whom_, period_, codes_, cell_;
  std::array<std::int64_t, chunk_rows> numbers_, costs_;
};

// --- all segments

Result<> scan_all(Question& question, const ColumnStore::All& all, const std::function<Result<>()>& go_on,
                  const UsageQueryLimits& limits, std::vector<Groups>& groups) {
  std::atomic<std::size_t> next = 0;
  std::mutex mutex;
  std::optional<Error> failed;
  const auto work = [&](Groups& mine) {
    Scratch scratch;
    for (std::size_t at = next++; at < all.size(); at = next++) {
      auto done = go_on();
      if (done) done = std::make_unique<SegmentScan>(question, *all[at], scratch, mine, limits.groups_max)->run();
      if (done) continue;
      const std::scoped_lock lock(mutex);
      if (!failed) failed = done.error();
      next = all.size();
    }
  };
  std::vector<std::thread> others;
  for (std::size_t i = 1; i < groups.size(); ++i) others.emplace_back(work, std::ref(groups[i]));
  work(groups.front());
  for (std::thread& other : others) other.join();
  if (failed) return *std::move(failed);
  return {};
}

Result<> merge(Groups& into, const Groups& from) {
  for (std::uint32_t i = 0; i < from.totals.size(); ++i) {
    const std::uint32_t group = into.add(from.keys[i], from.totals[i]);
    const auto fine = from.fines.find(i);
    if (fine != from.fines.end()) CRETO_TRY(into.fines[group].add(fine->second.units, fine->second.cost));
  }
  return {};
}

Result<Decimal> decimal_of(Int128 nanos) {
  // In two halves: a Decimal is made of 64 bits.
  constexpr std::int64_t half = 1'000'000'000'000'000'000;
  const Decimal high =
      CRETO_TRY(Decimal::multiply(Decimal(static_cast<std::int64_t>(nanos / half)), Decimal::literal("1000000000")));
  const Decimal low =
      CRETO_TRY(Decimal::multiply(Decimal(static_cast<std::int64_t>(nanos % half)), Decimal::literal("0.000000001")));
  return Decimal::add(high, low);
}

/// The groups in the order that was asked for, no more than the limit.
/// What `next` was made of. Errors: invalid_input.
Result<std::vector<std::string>> marks_from(const UsageQuery& query) {
  std::vector<std::string> marks;
  const auto json = parse_json(query.after, {.bytes_max = UsageQuery::after_bytes_max, .depth_max = 2});
  if (json && json->is_array()) {
    for (const Json& mark : *json)
      if (mark.is_string()) marks.push_back(mark.get<std::string>());
  }
  if (marks.size() != query.group_by.size() || query.group_by.empty())
    return invalid("after: must be the `next` of an answer to the same query");
  return marks;
}

class Ranking {
 public:
  Ranking(const Question& question, const Groups& groups) : question_(question), groups_(groups) {}

  Result<> rank(UsageReport& usage) {
    rank_keys();
    CRETO_TRY(rank_fines());
    std::vector<std::uint32_t> order(groups_.totals.size());
    std::iota(order.begin(), order.end(), 0);
    if (!question_.query().after.empty()) {
      const auto marks = CRETO_TRY(marks_from(question_.query()));
      std::erase_if(order, [&](std::uint32_t group) { return !is_behind(group, marks); });
    }
    const std::size_t count = std::min(order.size(), question_.query().limit);
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                      [this](std::uint32_t a, std::uint32_t b) { return before(a, b); });
    usage.rows.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
      UsageRow row = CRETO_TRY(this->row(order[i]));
      usage.rows.push_back(std::move(row));
    }
    if (question_.query().order == UsageOrder::keys && count < order.size()) {
      Json marks = Json::array();
      for (std::size_t i = 0; i < ranks_.size(); ++i) marks.push_back(question_.mark(i, code(order[count - 1], i)));
      usage.next = marks.dump();
    }
    return {};
  }

 private:
  bool is_behind(std::uint32_t group, const std::vector<std::string>& marks) const {
    for (std::size_t i = 0; i < marks.size(); ++i) {
      const auto order = question_.compare(i, code(group, i), marks[i]);
      if (order != std::strong_ordering::equal) return order == std::strong_ordering::greater;
    }
    return false;
  }
  /// Gives the codes of each grouping ranks, so that names are compared once per code and not per pair of groups.
  void rank_keys() {
    ranks_.resize(question_.query().group_by.size());
    for (std::size_t i = 0; i < ranks_.size(); ++i) {
      std::vector<std::uint32_t> codes;
      codes.reserve(groups_.totals.size());
      for (std::uint32_t group = 0; group < groups_.totals.size(); ++group) codes.push_back(code(group, i));
      std::ranges::sort(codes);
      codes.erase(std::unique(codes.begin(), codes.end()), codes.end());
      if (!codes.empty()) ranks_[i].resize(codes.back() + std::size_t{1});
      std::ranges::sort(codes, [&](std::uint32_t a, std::uint32_t b) { return question_.before(i, a, b); });
      for (std::uint32_t rank = 0; rank < codes.size(); ++rank) ranks_[i][codes[rank]] = rank;
    }
  }
  /// Where some amounts are finer than billionths, exact sums decide.
  Result<> rank_fines() {
    const UsageOrder order = question_.query().order;
    if (groups_.fines.empty() || (order != UsageOrder::units && order != UsageOrder::cost)) return {};
    exact_.reserve(groups_.totals.size());
    for (std::uint32_t group = 0; group < groups_.totals.size(); ++group) {
      const Decimal amount = CRETO_TRY(order == UsageOrder::units ? units(group) : cost(group));
      exact_.push_back(amount);
    }
    return {};
  }
  bool before(std::uint32_t a, std::uint32_t b) const {
    const Total& one = groups_.totals[a];
    const Total& other = groups_.totals[b];
    const UsageOrder order = question_.query().order;
    if (!exact_.empty()) {
      if (exact_[a] != exact_[b]) return exact_[a] > exact_[b];
    } else if (order == UsageOrder::units) {
      if (one.unit_nanos != other.unit_nanos) return one.unit_nanos > other.unit_nanos;
    } else if (order == UsageOrder::cost) {
      if (one.cost_nanos != other.cost_nanos) return one.cost_nanos > other.cost_nanos;
    } else if (order == UsageOrder::events) {
      if (one.events != other.events) return one.events > other.events;
    }
    for (std::size_t i = 0; i < ranks_.size(); ++i) {
      const std::uint32_t rank_a = ranks_[i][code(a, i)];
      const std::uint32_t rank_b = ranks_[i][code(b, i)];
      if (rank_a != rank_b) return rank_a < rank_b;
    }
    return false;
  }
  std::uint32_t code(std::uint32_t group, std::size_t i) const { return question_.code(groups_.keys[group], i); }

  Result<Decimal> sum(std::uint32_t group, Int128 nanos, Decimal Fine::* measure) const {
    const Decimal amount = CRETO_TRY(decimal_of(nanos));
    const auto fine = groups_.fines.find(group);
    return fine == groups_.fines.end() ? amount : Decimal::add(amount, fine->second.*measure);
  }
  Result<Decimal> units(std::uint32_t group) const {
    return sum(group, groups_.totals[group].unit_nanos, &Fine::units);
  }
  Result<Decimal> cost(std::uint32_t group) const { return sum(group, groups_.totals[group].cost_nanos, &Fine::cost); }
  Result<UsageRow> row(std::uint32_t group) const {
    UsageRow row;
    for (std::size_t i = 0; i < ranks_.size(); ++i) row.keys.push_back(question_.name(i, code(group, i)));
    row.events = groups_.totals[group].events;
    row.units = CRETO_TRY(units(group));
    row.cost.currency = question_.accounting();
    row.cost.amount = CRETO_TRY(cost(group));
    return row;
  }

  const Question& question_;
  const Groups& groups_;
  std::vector<std::vector<std::uint32_t>> ranks_;  ///< by grouping and code
  std::vector<Decimal> exact_;                     ///< by group, where needed
};

}  // namespace

std::string to_string(const UsageGrouping& grouping) {
  if (grouping.by == By::property) return fmt::format("{}{}", property_prefix, grouping.property);
  return std::string(std::ranges::find(names, grouping.by, &std::pair<By, std::string_view>::first)->second);
}

Result<UsageGrouping> usage_grouping_from_string(std::string_view text) {
  if (text.starts_with(property_prefix) && text.size() > property_prefix.size()) {
    return UsageGrouping{By::property, std::string(text.substr(property_prefix.size()))};
  }
  for (const auto& [by, name] : names) {
    if (text == name) return UsageGrouping{by, {}};
  }
  return invalid(
      "group_by: must be type, agent, owner, ancestor, subscription, hour, day, week, month or property:<name>");
}

std::string_view to_string(UsageOrder order) {
  return std::ranges::find(orders, order, &std::pair<UsageOrder, std::string_view>::first)->second;
}

Result<UsageOrder> usage_order_from_string(std::string_view text) {
  for (const auto& [order, name] : orders) {
    if (text == name) return order;
  }
  return invalid("order_by: must be keys, events, units or cost");
}

Result<> check_usage_query(const UsageQuery& query) {
  const auto is_name = [](std::string_view name) { return !name.empty() && name.size() <= 64; };
  if (query.group_by.size() > UsageQuery::group_by_max) {
    return invalid(fmt::format("group_by: must have at most {} groupings", UsageQuery::group_by_max));
  }
  std::size_t periods = 0;
  for (std::size_t i = 0; i < query.group_by.size(); ++i) {
    const UsageGrouping& grouping = query.group_by[i];
    if (is_period(grouping.by)) ++periods;
    if (std::ranges::count(query.group_by, grouping) > 1) {
      return invalid(fmt::format("group_by: has `{}` twice", to_string(grouping)));
    }
    if (grouping.by == By::property && !is_name(grouping.property)) {
      return invalid("group_by: a property's name has 1 to 64 characters");
    }
  }
  if (periods > 1) return invalid("group_by: must have at most one of hour, day, week and month");
  if (query.filters.size() > UsageQuery::filters_max) {
    return invalid(fmt::format("filters: must be at most {}", UsageQuery::filters_max));
  }
  for (const PropertyMatch& filter : query.filters) {
    if (!is_name(filter.property)) return invalid("filters: a property's name has 1 to 64 characters");
    if (filter.values.empty() || filter.values.size() > UsageQuery::values_max) {
      return invalid(fmt::format("filters.{}: must have 1 to {} values", filter.property, UsageQuery::values_max));
    }
  }
  if (query.from >= query.until) return invalid("until: must be after from");
  if (query.limit == 0 || query.limit > UsageQuery::rows_max) {
    return invalid(fmt::format("limit: must be 1 to {}", UsageQuery::rows_max));
  }
  if (query.after.empty()) return {};
  if (query.order != UsageOrder::keys) return invalid("after: goes with the order of keys");
  CRETO_TRY(marks_from(query));
  return {};
}

Result<> check_usage_events_query(const UsageEventsQuery& query) {
  if (query.from >= query.until) return invalid("until: must be after from");
  if (query.after.size() > UsageEventsQuery::after_bytes_max) return invalid("after: must be the `next` of a page");
  if (query.limit == 0 || query.limit > UsageEventsQuery::limit_max)
    return invalid(fmt::format("limit: must be 1 to {}", UsageEventsQuery::limit_max));
  return {};
}

Result<UsageReport> query_usage(const ColumnStore::All& columns, const Subjects& subjects,
                                const Corrections& corrections, std::string_view org, const Currency& accounting,
                                const UsageQuery& query, const std::function<Result<>()>& go_on,
                                UsageQueryLimits limits) {
  CRETO_ASSERT(check_usage_query(query));
  const auto taken_out = corrections.taken_out(end_of(columns));
  Question question(subjects, taken_out.get(), org, accounting, query);
  std::vector<Groups> groups(std::clamp<std::size_t>(limits.threads, 1, std::max<std::size_t>(1, columns.size())));
  for (std::size_t pass = 0; pass < question.passes(); ++pass) {
    question.begin_pass(pass);
    CRETO_TRY(scan_all(question, columns, go_on, limits, groups));
  }
  for (std::size_t i = 1; i < groups.size(); ++i) CRETO_TRY(merge(groups.front(), groups[i]));
  if (groups.front().totals.size() > limits.groups_max) {
    return Error(Product::metering, ErrorKind::resource_exhausted,
                 fmt::format("usage query: has more than {} groups; narrow it", limits.groups_max));
  }
  UsageReport usage;
  usage.groups = groups.front().totals.size();
  CRETO_TRY(Ranking(question, groups.front()).rank(usage));
  return usage;
}

}  // namespace creto::metering

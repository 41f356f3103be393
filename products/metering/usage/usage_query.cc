#include "usage/usage_query.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <thread>
#include <utility>

#include "creto/common/assert.h"
#include "creto/common/json.h"
#include "names.h"
#include "usage/segment_scan.h"
#include "usage/usage_question.h"

namespace creto::metering {
namespace {

using namespace detail;

constexpr auto names = std::to_array<Named<By>>({{By::type, "type"},
                                                 {By::agent, "agent"},
                                                 {By::owner, "owner"},
                                                 {By::ancestor, "ancestor"},
                                                 {By::subscription, "subscription"},
                                                 {By::hour, "hour"},
                                                 {By::day, "day"},
                                                 {By::week, "week"},
                                                 {By::month, "month"}});
constexpr std::string_view property_prefix = "property:";
constexpr auto orders = std::to_array<Named<UsageOrder>>({{UsageOrder::keys, "keys"},
                                                          {UsageOrder::events, "events"},
                                                          {UsageOrder::units, "units"},
                                                          {UsageOrder::cost, "cost"}});

Error invalid(std::string message) { return Error(Product::metering, ErrorKind::invalid_input, std::move(message)); }

Result<> scan_all(Question& question, const ColumnStore::All& all, const std::function<Result<>()>& go_on,
                  const UsageQueryLimits& limits, std::vector<Groups>& groups) {
  std::atomic<std::size_t> next = 0;
  std::mutex mutex;
  std::optional<Error> failed;
  const auto work = [&](Groups& mine) {
    SegmentScratch scratch;
    for (std::size_t at = next++; at < all.size(); at = next++) {
      auto done = go_on();
      if (done) done = scan_segment(question, *all[at], scratch, mine, limits.groups_max);
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

/// The groups in the order that was asked for, no more than the limit.
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
  return std::string(name_of(names, grouping.by));
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

std::string_view to_string(UsageOrder order) { return name_of(orders, order); }

Result<UsageOrder> usage_order_from_string(std::string_view text) { return value_of(orders, text, "order_by"); }

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

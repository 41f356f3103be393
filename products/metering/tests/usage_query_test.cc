// Columns and queries over them: the same answers as a walk over the log, whatever becomes of the files.

#include "usage/usage_query.h"
#include "creto/testing/soak.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "creto/testing/fake_clock.h"
#include "creto/testing/fault_files.h"

namespace creto::metering {
namespace {

using namespace std::chrono_literals;
using creto::testing::FaultFiles;
using By = UsageGrouping::By;

Instant at(std::string_view text) { return from_rfc3339(text).value(); }
constexpr auto go_on = [] { return Result<>(); };

struct Sent {
  std::string org = "org";
  std::string agent = "service:a";
  std::vector<std::string> ancestors{};
  std::string subscription{};
  std::string type = "tokens";
  Instant time = at("2026-11-10T12:00:00Z");
  std::string units = "1";
  std::string cost{};
  std::string currency = "USD";
  std::vector<std::pair<std::string, std::string>> properties{};
};

/// A ledger and the columns beside it.
class House {
 public:
  explicit House(std::uint32_t segment_events_max = 1'000'000) : options_{.segment_events_max = segment_events_max} {
    open();
  }

  void open() {
    store.reset();
    ledger.reset();
    auto log = open_block_files(files, "/usage/log");
    ASSERT_TRUE(log) << log.error().to_string();
    auto opened = Ledger::open(
        *std::move(log), files, "/usage", clock, no_telemetry(), options_,
        [](Ledger&, BytesView, Ledger::Saved) { return Result<>(); }, [](const StoredEvent&) { return Result<>(); });
    ASSERT_TRUE(opened) << opened.error().to_string();
    ledger = *std::move(opened);
    auto columns = ColumnStore::open(*ledger, files, "/usage/columns", no_telemetry());
    ASSERT_TRUE(columns) << columns.error().to_string();
    store = *std::move(columns);
  }

  void send(const std::vector<Sent>& sent) {
    std::vector<Bytes> bytes(sent.size());
    std::vector<std::string> keys(sent.size());
    RecordScratch scratch;
    std::vector<NewEvent> events;
    Subjects& subjects = ledger->subjects();
    for (std::size_t i = 0; i < sent.size(); ++i) {
      const Sent& one = sent[i];
      keys[i] = std::to_string(next_++);
      const std::vector<PropertyView> properties(one.properties.begin(), one.properties.end());
      encode_record({.bytes = {},
                     .agent = one.agent,
                     .type = one.type,
                     .key = keys[i],
                     .time = one.time,
                     .units = one.units,
                     .cost = one.cost,
                     .currency = one.cost.empty() ? "" : one.currency,
                     .properties = properties},
                    bytes[i]);
      Attribution whom;
      whom.agent = subjects.number(one.org, one.agent);
      if (!one.subscription.empty()) whom.subscription = subjects.number(one.org, one.subscription);
      for (const std::string& ancestor : one.ancestors) whom.ancestors.push_back(subjects.number(one.org, ancestor));
      events.push_back({.record = parse_record(bytes[i], scratch).value(),
                        .attribution = subjects.number(whom),
                        .key = ledger->key_hash(one.org, one.agent, keys[i])});
    }
    const auto outcomes = ledger->append(events, nullptr, {});
    ASSERT_TRUE(outcomes) << outcomes.error().to_string();
  }

  Result<UsageReport> ask(const UsageQuery& query, UsageQueryLimits limits = {}) {
    std::optional<UsageReport> usage;
    CRETO_TRY(store->use([&](const ColumnStore::All& all) -> Result<> {
      usage = CRETO_TRY(
          query_usage(all, ledger->subjects(), ledger->corrections(), "org", Currency::usd(), query, go_on, limits));
      return {};
    }));
    return *std::move(usage);
  }

  void each(const std::function<void(const StoredEvent&)>& visit) {
    EXPECT_TRUE(ledger->scan({}, ledger->position().end, [&](const StoredEvent& event) -> Result<> {
      visit(event);
      return {};
    }));
  }

  FaultFiles files;
  creto::testing::FakeClock clock{at("2026-11-10T12:00:00Z")};
  std::unique_ptr<Ledger> ledger;
  std::unique_ptr<ColumnStore> store;

 private:
  LedgerOptions options_;
  std::uint64_t next_ = 0;
};

std::string text_of(const UsageRow& row) {
  return fmt::format("{} {} {} {}", fmt::join(row.keys, "|"), row.events, row.units.to_string(),
                     row.cost.amount.to_string());
}
std::vector<std::string> texts_of(const Result<UsageReport>& usage) {
  if (!usage) return {usage.error().to_string()};
  std::vector<std::string> texts;
  for (const UsageRow& row : usage->rows) texts.push_back(text_of(row));
  return texts;
}

using Lines = std::vector<std::string>;

TEST(UsageQuery, AddsUpByType) {
  House house;
  house.send({{.type = "tokens", .units = "3", .cost = "0.5"},
              {.type = "bytes", .units = "10"},
              {.type = "tokens", .units = "4", .cost = "0.25"}});
  EXPECT_EQ(texts_of(house.ask({})), (Lines{"bytes 1 10 0", "tokens 2 7 0.75"}));
  EXPECT_EQ(texts_of(house.ask({.event_type = "tokens", .group_by = {}})), (Lines{" 2 7 0.75"}));
}

TEST(UsageQuery, SeesWhatCameSinceTheLastOne) {
  House house;
  for (int i = 1; i <= 40; ++i) {
    house.send({{.units = "2"}});
    EXPECT_EQ(texts_of(house.ask({})), (Lines{fmt::format("tokens {} {} 0", i, 2 * i)}));
  }
  EXPECT_LE(house.store->all().value().size(), 8U);
}

TEST(UsageQuery, CountsForASubjectItsOwnUseAndAllBelowIt) {
  House house;
  house.send({{.agent = "service:child", .ancestors = {"human:root@x", "service:parent"}, .units = "1"},
              {.agent = "service:parent", .ancestors = {"human:root@x"}, .units = "2"},
              {.agent = "human:root@x", .units = "4"},
              {.agent = "service:other", .units = "8"},
              {.org = "other", .agent = "service:parent", .units = "16"}});
  const auto below = [&](const std::string& subject) {
    return texts_of(house.ask({.subject = subject, .group_by = {}}));
  };
  EXPECT_EQ(below("human:root@x"), (Lines{" 3 7 0"}));
  EXPECT_EQ(below("service:parent"), (Lines{" 2 3 0"}));
  EXPECT_EQ(below("service:nobody"), (Lines{}));
  EXPECT_EQ(below(""), (Lines{" 4 15 0"}));
  EXPECT_EQ(texts_of(house.ask({.group_by = {{By::owner, {}}}})), (Lines{"human:root@x 3 7 0", "service:other 1 8 0"}));
  EXPECT_EQ(texts_of(house.ask({.group_by = {{By::ancestor, {}}}})),
            (Lines{"human:root@x 2 3 0", "service:parent 1 1 0"}));
}

TEST(UsageQuery, PutsTopSpendersFirst) {
  House house;
  house.send({{.agent = "service:a", .cost = "1"},
              {.agent = "service:b", .cost = "3"},
              {.agent = "service:c", .cost = "2"},
              {.agent = "service:d", .cost = "100", .currency = "EUR"}});
  const auto usage = house.ask({.group_by = {{By::agent, {}}}, .order = UsageOrder::cost, .limit = 2});
  EXPECT_EQ(texts_of(usage), (Lines{"service:b 1 1 3", "service:c 1 1 2"}));
  EXPECT_EQ(usage->groups, 4U);
}

TEST(UsageQuery, DaysAreThoseOfTheTimeZone) {
  House house;
  house.send({{.time = at("2026-10-24T21:59:59.999999999Z")},  // 23:59 in Berlin
              {.time = at("2026-10-24T22:00:00Z")},            // midnight there
              {.time = at("2026-10-25T22:59:59.999999999Z")},  // the day has 25 hours
              {.time = at("2026-10-25T23:00:00Z")}});
  const TimeZone berlin = TimeZone::load("Europe/Berlin").value();
  EXPECT_EQ(texts_of(house.ask({.group_by = {{By::day, {}}}, .zone = berlin})),
            (Lines{"2026-10-24 1 1 0", "2026-10-25 2 2 0", "2026-10-26 1 1 0"}));
  EXPECT_EQ(texts_of(house.ask({.group_by = {{By::week, {}}}, .zone = berlin})),
            (Lines{"2026-10-19 3 3 0", "2026-10-26 1 1 0"}));
  EXPECT_EQ(texts_of(house.ask({.group_by = {{By::month, {}}}, .zone = berlin})), (Lines{"2026-10 4 4 0"}));
}

TEST(UsageQuery, TheHourThatClocksShowTwiceIsTwoHours) {
  House house;
  house.send({{.time = at("2026-10-25T00:30:00Z")}, {.time = at("2026-10-25T01:30:00Z")}});
  EXPECT_EQ(texts_of(house.ask({.group_by = {{By::hour, {}}}, .zone = TimeZone::load("Europe/Berlin").value()})),
            (Lines{"2026-10-25T02:00:00+02:00 1 1 0", "2026-10-25T02:00:00+01:00 1 1 0"}));
}

TEST(UsageQuery, RefusesMoreGroupsThanItMayHold) {
  House house;
  for (int i = 0; i < 20; ++i) house.send({{.agent = fmt::format("service:{}", i)}});
  const auto refused = house.ask({.group_by = {{By::agent, {}}}}, {.groups_max = 10});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::resource_exhausted);
}

TEST(UsageQuery, NamesTheFieldThatIsWrong) {
  const auto field = [](const UsageQuery& query) { return check_usage_query(query).error().message(); };
  EXPECT_TRUE(field({.from = at("2026-11-10T12:00:00Z"), .until = at("2026-11-10T12:00:00Z")}).starts_with("until:"));
  EXPECT_TRUE(field({.limit = 0}).starts_with("limit:"));
  EXPECT_TRUE(field({.group_by = {{By::day, {}}, {By::month, {}}}}).starts_with("group_by:"));
  EXPECT_TRUE(field({.group_by = {{By::type, {}}, {By::type, {}}}}).starts_with("group_by:"));
  EXPECT_TRUE(field({.filters = {{"model", {}}}}).starts_with("filters.model:"));
  EXPECT_FALSE(usage_grouping_from_string("property:"));
  EXPECT_FALSE(usage_grouping_from_string("colour"));
  EXPECT_EQ(to_string(usage_grouping_from_string("property:model").value()), "property:model");
  EXPECT_EQ(to_string(usage_grouping_from_string("week").value()), "week");
}

TEST(ColumnStore, MakesMissingAndDamagedFilesAgain) {
  House house(10);
  for (int i = 0; i < 35; ++i) house.send({{.units = std::to_string(i), .properties = {{"model", "m"}}}});
  const UsageQuery query{.group_by = {{By::property, "model"}}};
  const Lines right{"m 35 595 0"};
  EXPECT_EQ(texts_of(house.ask(query)), right);

  ASSERT_TRUE(house.files.remove("/usage/columns/00000002.columns"));
  house.open();
  EXPECT_EQ(texts_of(house.ask(query)), right);

  // Every byte of a file: found at the start, when the column is read, or without meaning.
  const std::uint64_t size = house.files.size("/usage/columns/00000001.columns").value();
  for (std::uint64_t byte = 0; byte < size; byte += 7) {
    house.files.flip_bit("/usage/columns/00000001.columns", 8 * byte + byte % 8);
    house.open();
    ASSERT_EQ(texts_of(house.ask(query)), right) << "byte " << byte;
  }
}

TEST(ColumnStore, DoesNotBelieveAnotherLogsFiles) {
  House one(10);
  House other(10);
  for (int i = 0; i < 25; ++i) {
    one.send({{.units = "1"}});
    other.send({{.units = "5"}});
  }
  ASSERT_TRUE(one.ask({}));
  const Bytes file = one.files.read("/usage/columns/00000001.columns", 1 << 20).value();
  ASSERT_TRUE(other.store->all());
  ASSERT_TRUE(io::write_durably(other.files, "/usage/columns/00000001.columns", file));
  other.open();
  EXPECT_EQ(texts_of(other.ask({})), (Lines{"tokens 25 125 0"}));
}

TEST(ColumnStore, AFailedWriteLeavesTheAnswerForLater) {
  House house(10);
  for (int i = 0; i < 25; ++i) house.send({{}});
  house.files.set_disk_bytes_max(1);
  const auto refused = house.ask({});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::resource_exhausted);
  house.files.set_disk_bytes_max(UINT64_MAX);
  EXPECT_EQ(texts_of(house.ask({})), (Lines{"tokens 25 25 0"}));
}

// --- generated

class Generator {
 public:
  explicit Generator(std::uint64_t seed) : random_(seed) {}

  std::size_t below(std::size_t n) { return random_() % n; }
  template <class T>
  const T& one(const std::vector<T>& of) {
    return of[below(of.size())];
  }
  std::string agent() { return fmt::format("service:{}", below(12)); }
  Instant time() {
    // Around the change of clocks, and often on the bounds of quarters, hours and days.
    const Instant base = at("2026-10-20T00:00:00Z") + std::chrono::minutes(15) * below(96 * 14);
    return base + one<Nanos>({0ns, 0ns, 1ns, -1ns, 7min + 3ms, 1h - 1ns});
  }
  Sent event() {
    Sent sent;
    sent.org = below(10) == 0 ? "other" : "org";
    const std::size_t agent = below(12);
    sent.agent = fmt::format("service:{}", agent);
    if (agent % 3 == 1) sent.ancestors = {"human:a@x"};
    if (agent % 3 == 2) sent.ancestors = {"human:b@x", "service:1"};
    if (agent % 2 == 0) sent.subscription = fmt::format("subscription-{}", agent % 4);
    sent.type = one<std::string>({"tokens", "bytes", "calls"});
    sent.time = time();
    sent.units = one<std::string>({"1", "1", "250", "0", "0.5", "1e-6", "3.000000001", "0.1234567890123",
                                   "1000000000000000000", "99999999999999999"});
    if (below(3) != 0) {
      sent.cost = one<std::string>({"0.01", "1", "0.000000015", "0.00000000015", "12345678901234.5", "0"});
      sent.currency = below(5) == 0 ? "EUR" : "USD";
    }
    if (below(4) != 0) sent.properties.emplace_back("model", one<std::string>({"large", "small", "", "größer"}));
    if (below(20) == 0) sent.properties.emplace_back("region", one<std::string>({"eu", "us"}));
    sent.properties.emplace_back("request", std::to_string(below(1 << 20)));
    return sent;
  }
  UsageQuery query() {
    UsageQuery query;
    if (below(3) == 0)
      query.subject = one<std::string>({"human:a@x", "service:1", "service:4", "subscription-2", "nobody"});
    if (below(3) == 0) query.event_type = one<std::string>({"tokens", "calls", "nothing"});
    if (below(3) == 0) query.filters.push_back({"model", {one<std::string>({"large", "", "none"}), "small"}});
    if (below(6) == 0) query.filters.push_back({"region", {"eu"}});
    if (below(2) == 0) query.from = time();
    if (below(2) == 0) query.until = std::max(query.from + 1ns, time());
    query.group_by.clear();
    const std::vector<UsageGrouping> groupings = {
        {By::type, {}},           {By::agent, {}},           {By::owner, {}},
        {By::ancestor, {}},       {By::subscription, {}},    {By::property, "model"},
        {By::property, "region"}, {By::property, "request"}, {By::property, "absent"}};
    for (std::size_t n = below(4); n > 0; --n) {
      const UsageGrouping& grouping = one(groupings);
      if (std::ranges::find(query.group_by, grouping) == query.group_by.end()) query.group_by.push_back(grouping);
    }
    if (below(2) == 0) query.group_by.push_back({one<By>({By::hour, By::day, By::week, By::month}), {}});
    query.zone =
        TimeZone::load(one<std::string>({"UTC", "Europe/Berlin", "Asia/Kathmandu", "Australia/Lord_Howe"})).value();
    query.order = one<UsageOrder>({UsageOrder::keys, UsageOrder::events, UsageOrder::units, UsageOrder::cost});
    query.limit = one<std::size_t>({1, 5, 100'000});
    return query;
  }

 private:
  std::mt19937_64 random_;
};

/// What the query says, event by event.
class Naive {
 public:
  Naive(House& house, const UsageQuery& query) : subjects_(house.ledger->subjects()), query_(query) {
    house.each([this](const StoredEvent& event) { add(event); });
  }
  Lines rows() const {
    std::vector<UsageRow> rows;
    for (const auto& [keys, row] : groups_) rows.push_back(row);
    const auto measure = [&](const UsageRow& row) {
      switch (query_.order) {
        case UsageOrder::events:
          return Decimal(row.events);
        case UsageOrder::units:
          return row.units;
        case UsageOrder::cost:
          return row.cost.amount;
        default:
          return Decimal();
      }
    };
    std::ranges::stable_sort(rows, [&](const UsageRow& a, const UsageRow& b) { return measure(a) > measure(b); });
    Lines texts;
    for (const UsageRow& row : rows) {
      if (texts.size() < query_.limit) texts.push_back(text_of(row));
    }
    return texts;
  }
  std::size_t groups() const { return groups_.size(); }

 private:
  std::string name(SubjectNumber number) const {
    return number == 0 ? "" : std::string(subjects_.subject(number).name);
  }
  void add(const StoredEvent& event) {
    const Attribution& whom = subjects_.attribution(event.attribution);
    const RecordView& record = event.record;
    if (subjects_.subject(whom.agent).org != "org") return;
    std::set<std::string> counts_for{"", name(whom.agent), name(whom.subscription)};
    for (const SubjectNumber ancestor : whom.ancestors) counts_for.insert(name(ancestor));
    if (!counts_for.contains(query_.subject)) return;
    if (!query_.event_type.empty() && record.type != query_.event_type) return;
    for (const PropertyMatch& filter : query_.filters) {
      if (std::ranges::find(filter.values, record.property(filter.property)) == filter.values.end()) return;
    }
    if (record.time < query_.from || record.time >= query_.until) return;
    const bool by_ancestor =
        std::ranges::find(query_.group_by, UsageGrouping{By::ancestor, {}}) != query_.group_by.end();
    if (!by_ancestor) {
      add(event, whom, 0);
      return;
    }
    for (const SubjectNumber ancestor : whom.ancestors) add(event, whom, ancestor);
  }
  void add(const StoredEvent& event, const Attribution& whom, SubjectNumber ancestor) {
    // Beside the texts the moment, so that hours that read alike stay apart and in order.
    std::vector<std::pair<Instant, std::string>> keys;
    UsageRow row;
    for (const UsageGrouping& grouping : query_.group_by) {
      keys.push_back(key(grouping, event, whom, ancestor));
      row.keys.push_back(keys.back().second);
    }
    UsageRow& group = groups_.try_emplace(keys, row).first->second;
    ++group.events;
    group.units = Decimal::add(group.units, Decimal::parse(event.record.units).value()).value();
    if (event.record.currency == "USD") {
      group.cost.amount = Decimal::add(group.cost.amount, Decimal::parse(event.record.cost).value()).value();
    }
  }
  std::pair<Instant, std::string> key(const UsageGrouping& grouping, const StoredEvent& event, const Attribution& whom,
                                      SubjectNumber ancestor) const {
    const auto local = query_.zone.local(event.record.time);
    const auto day = std::chrono::floor<std::chrono::days>(local);
    const std::chrono::year_month_day date(day);
    const auto text = [](const std::chrono::year_month_day& of) {
      return fmt::format("{}-{:02}-{:02}", static_cast<int>(of.year()), static_cast<unsigned>(of.month()),
                         static_cast<unsigned>(of.day()));
    };
    switch (grouping.by) {
      case By::type:
        return {{}, std::string(event.record.type)};
      case By::agent:
        return {{}, name(whom.agent)};
      case By::owner:
        return {{}, name(whom.ancestors.empty() ? whom.agent : whom.ancestors.front())};
      case By::ancestor:
        return {{}, name(ancestor)};
      case By::subscription:
        return {{}, name(whom.subscription)};
      case By::property:
        return {{}, std::string(event.record.property(grouping.property))};
      case By::hour: {
        const auto offset = query_.zone.offset_at(event.record.time);
        const auto hour = std::chrono::floor<std::chrono::hours>(local);
        const auto minutes = std::chrono::duration_cast<std::chrono::minutes>(offset).count();
        const Instant begin(hour.time_since_epoch() - offset);
        // The period's name is that of its beginning, which may have another offset.
        const auto shown = query_.zone.offset_at(begin);
        if (shown != offset) {
          const auto other = std::chrono::duration_cast<std::chrono::minutes>(shown).count();
          const auto wall = begin + shown;
          const auto wall_day = std::chrono::floor<std::chrono::days>(wall);
          const auto time = std::chrono::floor<std::chrono::minutes>(wall - wall_day).count();
          return {begin, fmt::format("{}T{:02}:{:02}:00+{:02}:{:02}", text(wall_day), time / 60, time % 60, other / 60,
                                     other % 60)};
        }
        const std::string zone = minutes == 0 ? "Z" : fmt::format("+{:02}:{:02}", minutes / 60, minutes % 60);
        return {begin, fmt::format("{}T{:02}:00:00{}", text(date),
                                   std::chrono::floor<std::chrono::hours>(local - day).count(), zone)};
      }
      case By::day:
        return {{}, text(date)};
      case By::week:
        return {{}, text(std::chrono::year_month_day(day - (std::chrono::weekday(day) - std::chrono::Monday)))};
      case By::month:
        return {{}, text(date).substr(0, 7)};
    }
    return {};
  }

  const Subjects& subjects_;
  const UsageQuery& query_;
  std::map<std::vector<std::pair<Instant, std::string>>, UsageRow> groups_;
};

TEST(UsageQuery, AnswersWhatAWalkOverTheLogGives) {
  const std::uint64_t seed = creto::testing::number_from("CRETO_SEED", 1);
  SCOPED_TRACE(fmt::format("CRETO_SEED={}", seed));
  Generator generator(seed);
  House house(300);
  for (int round = 0; round < 6; ++round) {
    for (std::size_t batch = 0; batch < 10; ++batch) {
      std::vector<Sent> sent(1 + generator.below(30));
      for (Sent& one : sent) one = generator.event();
      house.send(sent);
    }
    if (round % 5 == 4) house.open();
    for (int i = 0; i < 10; ++i) {
      const UsageQuery query = generator.query();
      std::string groups;
      for (const UsageGrouping& one : query.group_by) groups += to_string(one) + " ";
      SCOPED_TRACE(fmt::format("round {}, query {}: by {} in {}", round, i, groups, query.zone.name()));
      const Naive naive(house, query);
      const auto usage = house.ask(query, {.threads = 1 + generator.below(3)});
      ASSERT_EQ(texts_of(usage), naive.rows());
      ASSERT_EQ(usage->groups, naive.groups());
    }
  }
}

TEST(ColumnStore, LocatesTheEventsOfAttributions) {
  Generator generator(3);
  House house(200);
  for (std::size_t batch = 0; batch < 60; ++batch) {
    std::vector<Sent> sent(1 + generator.below(20));
    for (Sent& one : sent) one = generator.event();
    house.send(sent);
  }
  for (int i = 0; i < 20; ++i) {
    std::set<AttributionNumber> whose;
    for (std::size_t n = generator.below(5); n > 0; --n) {
      whose.insert(static_cast<AttributionNumber>(1 + generator.below(house.ledger->subjects().mark().attributions)));
    }
    const Instant until = generator.time();
    std::vector<RowPlace> expected;
    house.each([&](const StoredEvent& event) {
      if (whose.contains(event.attribution) && event.record.time < until)
        expected.push_back({event.block, event.index});
    });
    const std::vector<AttributionNumber> ascending(whose.begin(), whose.end());
    EXPECT_EQ(house.store->locate(ascending, until).value(), expected);
  }
}

TEST(UsageQuery, AnswersBesideIngestWithEverythingAcknowledgedBefore) {
  House house(500);
  std::atomic<std::int64_t> acknowledged = 0;
  std::atomic<bool> done = false;
  std::thread sender([&] {
    for (int i = 0; i < 300; ++i) {
      house.send({{}, {}, {}, {}, {}, {}, {}, {}, {}, {}});
      acknowledged += 10;
    }
    done = true;
  });
  std::vector<std::thread> readers;
  for (int r = 0; r < 2; ++r) {
    readers.emplace_back([&] {
      bool last = false;
      while (!last) {
        last = done;
        const std::int64_t before = acknowledged;
        const auto usage = house.ask({.group_by = {}});
        ASSERT_TRUE(usage) << usage.error().to_string();
        if (before > 0) ASSERT_GE(usage->rows.front().events, before);
      }
    });
  }
  sender.join();
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(texts_of(house.ask({})), (Lines{"tokens 3000 3000 0"}));
}

}  // namespace
}  // namespace creto::metering

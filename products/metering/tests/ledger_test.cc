// The ledger: every event once, whatever happens to threads, process, disk and power.

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "creto/crypto/hash.h"
#include "creto/io/sql.h"
#include "creto/testing/databases.h"
#include "creto/testing/fake_clock.h"
#include "creto/testing/fault_files.h"
#include "creto/testing/soak.h"
#include "creto/testing/temp_dir.h"
#include "ledger/ledger.h"
#include "ledger/repeated_keys.h"
#include "limits/counters.h"

namespace creto::metering {
namespace {

using namespace std::chrono_literals;
using creto::testing::FaultFiles;

/// A ledger over files that a test can break.
class House {
 public:
  explicit House(io::FileSystem& files, LedgerOptions options = {}) : files_(files), options_(options) { open(); }

  void open() {
    replayed.clear();
    restored.clear();
    ledger.reset();
    auto log = open_block_files(files_, "/usage/log");
    ASSERT_TRUE(log) << log.error().to_string();
    auto opened = Ledger::open(
        *std::move(log), files_, "/usage", clock, no_telemetry(), options_,
        [this](Ledger&, BytesView state, Ledger::Saved) -> Result<> {
          restored = as_text(state);
          return {};
        },
        [this](const StoredEvent& event) -> Result<> {
          replayed.emplace_back(event.record.key);
          return {};
        });
    ASSERT_TRUE(opened) << opened.error().to_string();
    ledger = *std::move(opened);
  }

  struct Sent {
    std::string key;
    std::string units = "1";
  };
  Result<std::vector<Outcome>> send(const std::vector<Sent>& sent, std::string_view envelope = {}) {
    return send_to(*ledger, sent, envelope, clock.now());
  }
  static Result<std::vector<Outcome>> send_to(
      Ledger& ledger, const std::vector<Sent>& sent, std::string_view envelope, Instant now,
      const std::function<void(std::span<const Outcome>, Instant)>& counted = {}) {
    const SubjectNumber agent = ledger.subjects().number("org", "service:a");
    const AttributionNumber whom = ledger.subjects().number(Attribution{agent, 0, {}});
    std::vector<Bytes> bytes(sent.size());
    RecordScratch scratch;
    std::vector<NewEvent> events;
    for (std::size_t i = 0; i < sent.size(); ++i) {
      encode_record(
          {.bytes = {}, .agent = "service:a", .type = "t", .key = sent[i].key, .time = now, .units = sent[i].units},
          bytes[i]);
      const RecordView record = parse_record(bytes[i], scratch).value();
      NewEvent event{.record = record,
                     .attribution = whom,
                     .key = ledger.key_hash("org", "service:a", record.key),
                     .content = std::hash<std::string>()(sent[i].units)};
      if (!envelope.empty()) {
        event.envelope = envelope;
        event.id = EventId::fresh(now);
      }
      events.push_back(event);
    }
    return ledger.append(events, nullptr, counted);
  }
  Outcome::Kind one(const std::string& key, const std::string& units = "1") {
    const auto outcomes = send({{key, units}});
    EXPECT_TRUE(outcomes) << outcomes.error().to_string();
    return outcomes ? outcomes->front().kind : Outcome::Kind::conflict;
  }
  std::multiset<std::string> keys() {
    std::multiset<std::string> all;
    EXPECT_TRUE(ledger->scan({}, ledger->position().end, [&](const StoredEvent& event) -> Result<> {
      all.emplace(event.record.key);
      return {};
    }));
    return all;
  }

  creto::testing::FakeClock clock{from_rfc3339("2026-11-10T12:00:00Z").value()};
  std::unique_ptr<Ledger> ledger;
  std::vector<std::string> replayed;
  std::string restored;

 private:
  io::FileSystem& files_;
  LedgerOptions options_;
};

using Kind = Outcome::Kind;

TEST(Ledger, TellsOfEveryFullSegmentUntilThatSucceeds) {
  FaultFiles files;
  std::mutex mutex;
  std::vector<std::uint32_t> told;
  LedgerOptions options{.segment_events_max = 10, .sealed_again_after = 1ms};
  options.sealed = [&](std::uint32_t segment) -> Result<> {
    const std::scoped_lock lock(mutex);
    told.push_back(segment);
    if (told.size() <= 3) return Error(Product::metering, ErrorKind::resource_exhausted, "the disk is full");
    return {};
  };
  House house(files, options);
  for (int i = 0; i < 45; ++i) EXPECT_EQ(house.one(std::to_string(i)), Outcome::Kind::accepted);
  house.ledger->settle();
  EXPECT_EQ(told, (std::vector<std::uint32_t>{1, 1, 1, 1, 2, 3, 4}));
}

TEST(Ledger, TakesAnEventOnceAndTellsOtherContentApart) {
  FaultFiles files;
  House house(files);
  const auto first = house.send({{"a", "1"}, {"b", "1"}, {"a", "1"}, {"a", "2"}}).value();
  EXPECT_EQ(first[0].kind, Kind::accepted);
  EXPECT_EQ(first[1].kind, Kind::accepted);
  EXPECT_EQ(first[2].kind, Kind::duplicate);
  EXPECT_EQ(first[2].id, first[0].id);
  EXPECT_EQ(first[3].kind, Kind::conflict);
  house.open();
  const auto again = house.send({{"a", "1"}, {"b", "3"}}).value();
  EXPECT_EQ(again[0].kind, Kind::duplicate);
  EXPECT_EQ(again[0].id, first[0].id);
  EXPECT_EQ(again[1].kind, Kind::conflict);
  EXPECT_EQ(again[1].id, first[1].id);
  EXPECT_EQ(house.keys(), (std::multiset<std::string>{"a", "b"}));
}

TEST(Ledger, AnEnvelopeKeepsItsOwnId) {
  FaultFiles files;
  House house(files);
  const auto first = house.send({{"a"}, {"a"}}, "the envelope").value();
  EXPECT_EQ(first[1].id, first[0].id);
  const auto again = house.send({{"a"}}, "the envelope").value();
  EXPECT_EQ(again[0].kind, Kind::duplicate);
  EXPECT_EQ(again[0].id, first[0].id);
  house.open();
  EXPECT_EQ(house.send({{"a"}}, "the envelope").value()[0].id, first[0].id);
}

TEST(Ledger, ForgetsAKeyWhenItsWindowIsOver) {
  FaultFiles files;
  House house(files);
  const auto first = house.send({{"a"}}).value();
  house.clock.advance(24h * 7 - 1s);
  EXPECT_EQ(house.one("a"), Kind::duplicate);
  house.clock.advance(2s);
  const auto second = house.send({{"a"}}).value();
  EXPECT_EQ(second[0].kind, Kind::accepted);
  EXPECT_NE(second[0].id, first[0].id);
  EXPECT_EQ(house.one("a"), Kind::duplicate);
}

TEST(Ledger, RepeatedKeysAreFoundInHoweverManyParts) {
  FaultFiles files;
  House house(files, {.idempotency_window = 1min});
  std::multiset<Instant> again;
  std::mt19937_64 random(5);
  std::map<std::string, Instant> last;
  for (int i = 0; i < 300; ++i) {
    house.clock.advance(2min);
    const std::string key = fmt::format("k{}", random() % 40);
    ASSERT_EQ(house.one(key), Outcome::Kind::accepted);
    if (const auto before = last.find(key); before != last.end() && house.clock.now() - before->second < 1h)
      again.insert(house.clock.now());
    last.insert_or_assign(key, house.clock.now());
  }
  ASSERT_FALSE(again.empty());
  const BlockAddress end = house.ledger->position().end;
  for (const std::uint64_t at_once : {1000u, 100u, 7u}) {
    const auto found = repeated_keys(*house.ledger, end, 300, 1h, at_once);
    ASSERT_TRUE(found) << found.error().to_string();
    EXPECT_EQ(std::multiset<Instant>(found->begin(), found->end()), again) << at_once;
  }
  EXPECT_TRUE(repeated_keys(*house.ledger, end, 300, 1min)->empty());
}

TEST(Ledger, KnowsEveryKeyOfManySegmentsAlsoAfterAStart) {
  FaultFiles files;
  House house(files, {.segment_events_max = 100});
  std::mt19937 random(7);  // tidy(seed): any order will do
  std::set<std::string> sent;
  for (int round = 0; round < 300; ++round) {
    std::vector<House::Sent> batch;
    for (int i = 0; i < 20; ++i) batch.push_back({std::to_string(random() % 8000)});
    const auto outcomes = house.send(batch).value();
    for (std::size_t i = 0; i < batch.size(); ++i) {
      EXPECT_EQ(outcomes[i].kind == Kind::accepted, sent.insert(batch[i].key).second) << batch[i].key;
    }
    if (round % 100 == 50) house.ledger->settle();
    if (round % 100 == 99) house.open();
  }
  EXPECT_EQ(house.keys(), std::multiset<std::string>(sent.begin(), sent.end()));
  for (const std::string& key : sent) ASSERT_EQ(house.one(key), Kind::duplicate) << key;
}

TEST(Ledger, StartsFromItsCheckpointAndReplaysWhatCameAfter) {
  FaultFiles files;
  House house(files, {.segment_events_max = 10});
  for (int i = 0; i < 25; ++i) house.one(std::to_string(i));
  ASSERT_TRUE(house.ledger->checkpoint(
      [](Bytes& out) {
        layout::put_bytes(out, as_bytes("st"));
        return true;
      },
      [](Bytes& out) {
        layout::put_bytes(out, as_bytes("a"));
        return out.size() < 5;
      }));
  house.one("after");
  house.open();
  EXPECT_EQ(house.restored, "staaa");
  EXPECT_EQ(house.replayed, std::vector<std::string>{"after"});
  EXPECT_EQ(house.one("3"), Kind::duplicate);
  EXPECT_EQ(house.one("after"), Kind::duplicate);
}

TEST(Ledger, RefusesWhereTheDiskIsFullAndGoesOnWhenThereIsRoom) {
  FaultFiles files;
  House house(files);
  EXPECT_EQ(house.one("a"), Kind::accepted);
  files.set_disk_bytes_max(1);
  const auto refused = house.send({{"b"}});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::resource_exhausted);
  files.set_disk_bytes_max(UINT64_MAX);
  EXPECT_EQ(house.one("b"), Kind::accepted);
  EXPECT_EQ(house.one("b"), Kind::duplicate);
  house.open();
  EXPECT_EQ(house.keys(), (std::multiset<std::string>{"a", "b"}));
}

TEST(Ledger, ASegmentThatCannotBeBegunIsBegunLater) {
  for (const std::uint64_t room : {1u, 40u, 100u, 400u}) {
    FaultFiles files;
    House house(files, {.segment_events_max = 2});
    EXPECT_EQ(house.one("a"), Kind::accepted);
    EXPECT_EQ(house.one("b"), Kind::accepted);
    files.set_disk_bytes_max(room);
    EXPECT_FALSE(house.send({{"c"}})) << room;
    EXPECT_FALSE(house.send({{"c"}})) << room;
    files.set_disk_bytes_max(UINT64_MAX);
    EXPECT_EQ(house.one("c"), Kind::accepted);
    EXPECT_EQ(house.one("a"), Kind::duplicate);
    files.crash();
    house.open();
    EXPECT_EQ(house.keys(), (std::multiset<std::string>{"a", "b", "c"}));
  }
}

TEST(Ledger, AnEmptySegmentBehindATornOneIsNoDamage) {
  FaultFiles files;
  House house(files);
  EXPECT_EQ(house.one("a"), Kind::accepted);
  house.ledger.reset();
  // The next segment was made, but its maker did not live to know; what he wrote last is torn.
  ASSERT_TRUE(io::write_durably(files, "/usage/log/00000002.usage", as_bytes("CRETOU1\n")));
  auto torn = files.open_append("/usage/log/00000001.usage", 0600).value();
  ASSERT_TRUE(torn->append(as_bytes("CMB1 and then nothing")));
  ASSERT_TRUE(torn->sync());
  house.open();
  ASSERT_NE(house.ledger, nullptr);
  EXPECT_EQ(house.one("a"), Kind::duplicate);
  EXPECT_EQ(house.one("b"), Kind::accepted);
  house.open();
  EXPECT_EQ(house.keys(), (std::multiset<std::string>{"a", "b"}));
}

TEST(Ledger, RefusesToStartOnADamagedLog) {
  FaultFiles files;
  House house(files);
  for (int i = 0; i < 5; ++i) house.one(std::to_string(i));
  house.ledger.reset();
  files.flip_bit("/usage/log/00000001.usage", 8 * 300);
  auto log = open_block_files(files, "/usage/log");
  ASSERT_FALSE(log);
  EXPECT_EQ(log.error().kind(), ErrorKind::hash_mismatch);
}

/// A ledger with a counter behind it, as a process has them.
class Counted {
 public:
  Counted(io::FileSystem& files, const std::filesystem::path& directory, std::uint32_t segment_events_max) {
    quota_.id = "all";
    quota_.subject = "service:a";
    quota_.event_type = "t";
    quota_.limit = limit_max;
    quota_.window = WindowKind::lifetime;
    EXPECT_TRUE(limits_.put_quota("org", quota_, now()));
    auto log = open_block_files(files, directory / "log");
    EXPECT_TRUE(log) << log.error().to_string();
    auto opened = Ledger::open(
        *std::move(log), files, directory, system_clock(), no_telemetry(), {.segment_events_max = segment_events_max},
        [this](Ledger&, BytesView state, Ledger::Saved) -> Result<> {
          if (!state.empty()) CRETO_TRY(limits_.load(state));
          return {};
        },
        [this](const StoredEvent&) -> Result<> {
          count(1);
          return {};
        });
    EXPECT_TRUE(opened) << opened.error().to_string();
    if (opened) ledger = *std::move(opened);
  }
  void count(std::size_t events) {
    const AccountNumber account = limits_.account("org", "service:a");
    const std::vector<Fact> facts(events,
                                  Fact{.accounts = std::span(&account, 1), .words = limits_.words_of_fact("org", "t")});
    std::vector<Notice> notices;
    limits_.add(facts, now(), notices);
  }
  Result<std::vector<Outcome>> send(const std::vector<House::Sent>& sent) {
    return House::send_to(*ledger, sent, {}, now(), [this](std::span<const Outcome> outcomes, Instant) {
      count(static_cast<std::size_t>(std::ranges::count(outcomes, Kind::accepted, &Outcome::kind)));
    });
  }
  Result<> checkpoint() {
    return ledger->checkpoint(
        [this](Bytes& out) {
          limits_.begin_copy(out);
          return true;
        },
        [this](Bytes& out) { return limits_.write_copy(out); });
  }
  /// Cuts off what lies before any of the segments, by what is counted of it anew.
  Result<> cut(std::mt19937_64& random) {
    const std::uint32_t first = ledger->held()->from.segment;
    const std::uint32_t last = ledger->position().end.segment;
    const std::uint32_t segment = first + static_cast<std::uint32_t>(random() % (last - first + 1));
    if (segment == first || !ledger->begins_block({segment, ledger->held()->from.offset}).value_or(false)) {
      CRETO_TRY(ledger->remove_cut());
      return {};
    }
    Limits before;
    CRETO_TRY(before.put_quota("org", quota_, now()));
    const Bytes state = CRETO_TRY(ledger->base_state());
    if (!state.empty()) CRETO_TRY(before.load(state));
    std::size_t events = 0;
    CRETO_TRY(ledger->scan({}, {segment, 0}, [&](const StoredEvent&) -> Result<> {
      ++events;
      return {};
    }));
    const AccountNumber account = before.account("org", "service:a");
    const std::vector<Fact> facts(events,
                                  Fact{.accounts = std::span(&account, 1), .words = before.words_of_fact("org", "t")});
    std::vector<Notice> notices;
    before.add(facts, now(), notices);
    Bytes counters;
    before.begin_copy(counters);
    while (before.write_copy(counters)) {
    }
    if (random() % 2 == 0) CRETO_TRY(checkpoint());
    CRETO_TRY(ledger->cut(segment, counters, [](const Ledger::Held&) { return Result<>(); }));
    if (random() % 2 == 0) CRETO_TRY(ledger->remove_cut());
    return {};
  }
  std::optional<std::string> first_key() {
    std::optional<std::string> first;
    EXPECT_TRUE(ledger->scan({}, ledger->position().end, [&](const StoredEvent& event) -> Result<> {
      if (!first) first = event.record.key;
      return {};
    }));
    return first;
  }
  std::int64_t counted() { return limits_.state("org", quota_, now())->used; }
  std::multiset<std::string> keys() {
    std::multiset<std::string> all;
    EXPECT_TRUE(ledger->scan({}, ledger->position().end, [&](const StoredEvent& event) -> Result<> {
      all.emplace(event.record.key);
      return {};
    }));
    return all;
  }
  static Instant now() { return system_clock().now(); }

  std::unique_ptr<Ledger> ledger;

 private:
  Limits limits_;
  Quota quota_;
};

TEST(Ledger, LosesNothingAcknowledgedAndTakesNothingTwiceHoweverThePowerFails) {
  const std::uint64_t seed = creto::testing::number_from("CRETO_SEED", 1);
  const std::uint64_t lives = creto::testing::number_from("CRETO_LIVES", 20);
  SCOPED_TRACE(fmt::format("CRETO_SEED={}", seed));
  std::mt19937_64 random(seed);
  FaultFiles files;
  auto house = std::make_unique<Counted>(files, "/usage", 40);
  std::set<std::string> acknowledged;
  std::set<std::string> offered;
  int next = 0;
  creto::testing::Progress progress("life", lives);
  for (std::uint64_t life = 0; life < lives; ++life) {
    progress.at(life);
    files.die_at(1 + random() % 60);
    for (int round = 0; round < 40 && !files.dead(); ++round) {
      std::vector<House::Sent> batch;
      for (std::size_t i = 0; i < 1 + random() % 8; ++i) {
        // New ones, and old ones again.
        batch.push_back({std::to_string(
            random() % 4 == 0 && next > 0 ? static_cast<int>(random() % static_cast<unsigned>(next)) : next++)});
      }
      for (const auto& sent : batch) offered.insert(sent.key);
      const auto outcomes = house->send(batch);
      if (!outcomes) continue;
      for (std::size_t i = 0; i < batch.size(); ++i) {
        EXPECT_NE((*outcomes)[i].kind, Kind::conflict);
        if ((*outcomes)[i].kind == Kind::accepted) EXPECT_FALSE(acknowledged.contains(batch[i].key));
        acknowledged.insert(batch[i].key);
      }
      if (random() % 16 == 0) (void)house->checkpoint();
    }
    house.reset();
    files.crash(random() | 1);
    house = std::make_unique<Counted>(files, "/usage", 40);
    ASSERT_NE(house->ledger, nullptr);
    const auto keys = house->keys();
    ASSERT_EQ(house->counted(), std::ssize(keys)) << "what was counted is not what happened, in life " << life;
    for (const std::string& key : keys) ASSERT_EQ(keys.count(key), 1u) << key;
    for (const std::string& key : acknowledged) ASSERT_EQ(keys.count(key), 1u) << key << " is lost in life " << life;
    for (const std::string& key : keys) {
      ASSERT_TRUE(offered.contains(key));
      acknowledged.insert(key);
    }
  }
}

TEST(Ledger, WhatWasCutOffIsStillCountedHoweverThePowerFails) {
  const std::uint64_t seed = creto::testing::number_from("CRETO_SEED", 1);
  const std::uint64_t lives = creto::testing::number_from("CRETO_LIVES", 40);
  SCOPED_TRACE(fmt::format("CRETO_SEED={}", seed));
  std::mt19937_64 random(seed);
  FaultFiles files;
  auto house = std::make_unique<Counted>(files, "/usage", 10);
  std::set<std::string> acknowledged;
  int next = 0;
  std::uint64_t cut = 0;
  creto::testing::Progress progress("life", lives);
  for (std::uint64_t life = 0; life < lives; ++life) {
    progress.at(life);
    files.die_at(1 + random() % 150);
    for (int round = 0; round < 60 && !files.dead(); ++round) {
      std::vector<House::Sent> batch;
      for (std::size_t i = 0; i < 1 + random() % 8; ++i) batch.push_back({std::to_string(next++)});
      if (house->send(batch))
        for (const auto& sent : batch) acknowledged.insert(sent.key);
      if (random() % 8 == 0) (void)house->cut(random);
    }
    house.reset();
    files.crash(random() | 1);
    house = std::make_unique<Counted>(files, "/usage", 10);
    ASSERT_NE(house->ledger, nullptr) << "in life " << life;
    const auto held = house->ledger->held();
    ASSERT_GE(held->events, cut) << "what was cut off is back";
    cut = held->events;
    const auto keys = house->keys();
    ASSERT_EQ(house->counted(), static_cast<std::int64_t>(cut) + std::ssize(keys)) << "in life " << life;
    ASSERT_GE(cut + keys.size(), acknowledged.size()) << "something is lost in life " << life;
    // Keys are numbers in the order in which they were sent: those that are held are the newest.
    const int first = keys.empty() ? next : std::stoi(*house->first_key());
    for (const std::string& key : acknowledged) {
      if (std::stoi(key) > first) ASSERT_EQ(keys.count(key), 1u) << key << " is lost in life " << life;
    }
    acknowledged.insert(keys.begin(), keys.end());
    const auto names = files.list("/usage/log").value();
    ASSERT_EQ(std::ranges::count_if(names, [](const std::string& name) { return name.ends_with(".usage"); }),
              house->ledger->position().end.segment - held->from.segment + 1);
  }
  EXPECT_GT(cut, 0u);
}

/// Takes events from two threads until it is killed, and says on `out` which are acknowledged.
[[noreturn]] void take_until_killed(const std::filesystem::path& directory, std::uint64_t life, int out) {
  Counted house(io::real_files(), directory, 300);
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(life * 2 + static_cast<std::uint64_t>(t));
      for (int next = 0;;) {
        std::vector<House::Sent> batch;
        std::string said;
        for (std::size_t i = 0; i < 1 + random() % 40; ++i) {
          const bool again = next > 0 && random() % 5 == 0;
          batch.push_back({fmt::format("{}-{}-{}", life, t,
                                       again ? static_cast<int>(random() % static_cast<unsigned>(next)) : next++)});
          said += batch.back().key + "\n";
        }
        if (!house.send(batch)) std::_Exit(1);
        if (::write(out, said.data(), said.size()) != std::ssize(said)) std::_Exit(1);
        if (t == 0 && random() % 50 == 0 && !house.checkpoint()) std::_Exit(1);  // one at a time
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::_Exit(1);
}

TEST(Ledger, LosesNothingAcknowledgedWhenItsProcessIsKilled) {
  const std::uint64_t kills = creto::testing::number_from("CRETO_KILLS", 20);
  std::mt19937_64 random(creto::testing::number_from("CRETO_SEED", 1));
  creto::testing::TempDir directory;
  std::set<std::string> acknowledged;
  creto::testing::Progress progress("life", kills);
  for (std::uint64_t life = 0; life < kills; ++life) {
    progress.at(life);
    int pipe[2];
    ASSERT_EQ(::pipe(pipe), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) take_until_killed(directory.path(), life, pipe[1]);
    ::close(pipe[1]);
    // Killed after so many bytes of answers: anywhere in what comes next.
    std::string said;
    const std::size_t wanted = random() % 6'000;
    std::array<char, 4096> part;
    while (said.size() < wanted) {
      const ssize_t got = ::read(pipe[0], part.data(), part.size());
      ASSERT_GT(got, 0);
      said.append(part.data(), static_cast<std::size_t>(got));
    }
    ::kill(child, SIGKILL);
    while (const ssize_t got = ::read(pipe[0], part.data(), part.size())) {
      ASSERT_GT(got, 0);
      said.append(part.data(), static_cast<std::size_t>(got));
    }
    ::close(pipe[0]);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "it ended by itself";
    for (std::size_t begin = 0, end; (end = said.find('\n', begin)) != said.npos; begin = end + 1) {
      acknowledged.insert(said.substr(begin, end - begin));
    }
    Counted house(io::real_files(), directory.path(), 300);
    const auto keys = house.keys();
    const std::set<std::string> once(keys.begin(), keys.end());
    ASSERT_EQ(once.size(), keys.size()) << "an event is there twice";
    for (const std::string& key : acknowledged) ASSERT_TRUE(once.contains(key)) << key << " is lost in life " << life;
    ASSERT_EQ(house.counted(), std::ssize(keys)) << "what was counted is not what happened, in life " << life;
  }
}

TEST(Ledger, ManyThreadsShareSyncsAndAgreeWhoWasFirst) {
  creto::testing::TempDir dir;
  creto::testing::FakeClock clock{from_rfc3339("2026-11-10T12:00:00Z").value()};
  auto ledger =
      Ledger::open(
          open_block_files(io::real_files(), dir.path() / "log").value(), io::real_files(), dir.path(), clock,
          no_telemetry(), {.segment_events_max = 500}, [](Ledger&, BytesView, Ledger::Saved) { return Result<>(); },
          [](const StoredEvent&) { return Result<>(); })
          .value();
  std::atomic<int> accepted{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 100; ++i) {
        // Every event is offered by two threads.
        const auto outcomes = House::send_to(
            *ledger, {{fmt::format("{}-{}", t / 2, i)}, {fmt::format("{}-{}b", t / 2, i)}}, {}, clock.now());
        ASSERT_TRUE(outcomes) << outcomes.error().to_string();
        for (const Outcome& outcome : *outcomes) accepted += outcome.kind == Kind::accepted ? 1 : 0;
        if (t == 0 && i % 30 == 0)
          ASSERT_TRUE(ledger->checkpoint([](Bytes&) { return true; }, [](Bytes&) { return false; }));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(accepted, 8 * 100 * 2 / 2);
}

/// Every log, in files and in both databases.
class BlockLogContract : public ::testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<BlockLog> open() {
    if (GetParam() == "files") return open_block_files(files_, "/log").value();
    if (!database_) {
      test_database_ = std::make_unique<creto::testing::TestDatabase>(
          GetParam() == "sqlite" ? creto::testing::DatabaseKind::sqlite : creto::testing::DatabaseKind::postgres,
          clock_);
      database_ = test_database_->open();
    }
    return open_block_table(*database_).value();
  }
  static std::vector<std::string> blocks(BlockLog& log, BlockAddress from = {}) { return blocks(log, from, log.end()); }
  static std::vector<std::string> blocks(BlockLog& log, BlockAddress from, BlockAddress until) {
    std::vector<std::string> all;
    EXPECT_TRUE(log.scan(from, until, [&](BlockAddress, BytesView content, const Hash256&) -> Result<> {
      all.emplace_back(as_text(content));
      return {};
    }));
    return all;
  }
  FaultFiles files_;
  creto::testing::FakeClock clock_{from_rfc3339("2026-11-10T12:00:00Z").value()};
  std::unique_ptr<creto::testing::TestDatabase> test_database_;
  std::unique_ptr<sql::Database> database_;
};

TEST_P(BlockLogContract, GivesBackWhatWasAppendedInItsOrder) {
  auto log = open();
  EXPECT_EQ(log->end(), log->begin());
  ASSERT_TRUE(log->append(as_bytes("one")));
  const BlockAddress second = log->end();
  ASSERT_TRUE(log->append(as_bytes("two")));
  ASSERT_TRUE(log->seal());
  ASSERT_TRUE(log->seal());
  EXPECT_EQ(log->end().segment, 2u);
  ASSERT_TRUE(log->append(as_bytes("three")));
  const Hash256 head = log->head();
  log.reset();
  log = open();
  EXPECT_EQ(log->head(), head);
  EXPECT_EQ(blocks(*log), (std::vector<std::string>{"one", "two", "three"}));
  EXPECT_EQ(blocks(*log, second), (std::vector<std::string>{"two", "three"}));
  EXPECT_EQ(blocks(*log, {2, 0}), (std::vector<std::string>{"three"}));
  EXPECT_EQ(log->read(second).value(), to_bytes(std::string_view("two")));
  ASSERT_TRUE(log->append(as_bytes("four")));
  EXPECT_EQ(blocks(*log).size(), 4u);
}

TEST_P(BlockLogContract, AScanVisitsWhatBeginsBeforeItsEnd) {
  const auto log = open();
  ASSERT_TRUE(log->append(as_bytes("one")));
  const BlockAddress second = log->end();
  ASSERT_TRUE(log->append(as_bytes("two")));
  const BlockAddress third = log->end();
  ASSERT_TRUE(log->append(as_bytes("three")));
  ASSERT_TRUE(log->seal());
  EXPECT_EQ(blocks(*log, {}, log->begin()), std::vector<std::string>());
  EXPECT_EQ(blocks(*log, {}, second), (std::vector<std::string>{"one"}));
  EXPECT_EQ(blocks(*log, second, {second.segment, second.offset + 1}), (std::vector<std::string>{"two"}));
  EXPECT_EQ(blocks(*log, second, third), (std::vector<std::string>{"two"}));
  EXPECT_EQ(blocks(*log, {}, {2, 0}), (std::vector<std::string>{"one", "two", "three"}));
}

TEST_P(BlockLogContract, ANewSegmentWithoutBlocksIsThereAfterAStart) {
  auto log = open();
  ASSERT_TRUE(log->append(as_bytes("one")));
  ASSERT_TRUE(log->seal());
  const Hash256 head = log->head();
  log.reset();
  log = open();
  EXPECT_EQ(log->end().segment, 2u);
  EXPECT_EQ(log->head(), head);
}

TEST_P(BlockLogContract, ABaseStandsForWhatWasCutOff) {
  auto log = open();
  for (const std::string_view block : {"one", "two", "three"}) {
    ASSERT_TRUE(log->append(as_bytes(block)));
    ASSERT_TRUE(log->seal());
  }
  ASSERT_TRUE(log->append(as_bytes("four")));
  EXPECT_FALSE(log->base()->has_value());
  std::map<std::uint32_t, Hash256> heads;
  ASSERT_TRUE(log->scan({}, log->end(), [&](BlockAddress address, BytesView, const Hash256& hash) -> Result<> {
    heads[address.segment] = hash;
    return {};
  }));
  const auto base_of = [&](std::uint32_t segment) {
    return LogBase{.segment = segment, .before = heads[segment - 1], .content = Bytes(20'000'000, 7)};
  };
  std::optional<Hash256> vouched;
  const auto vouch = [&](const Hash256& hash) -> Result<> {
    vouched = hash;
    return {};
  };
  const auto refused = log->cut(base_of(2), [](const Hash256&) -> Result<> {
    return Error(Product::metering, ErrorKind::unavailable, "nobody vouches");
  });
  EXPECT_FALSE(refused);
  EXPECT_FALSE(log->base()->has_value());
  ASSERT_TRUE(log->cut(base_of(2), vouch));
  ASSERT_TRUE(log->cut(base_of(3), vouch));
  EXPECT_EQ(blocks(*log, log->begin()).size(), 4u) << "who reads them still can";
  ASSERT_TRUE(log->remove_cut());
  EXPECT_EQ(blocks(*log, {3, 0}), (std::vector<std::string>{"three", "four"}));
  const Hash256 head = log->head();
  log.reset();
  log = open();
  EXPECT_EQ(log->head(), head);
  EXPECT_EQ(blocks(*log, {3, 0}), (std::vector<std::string>{"three", "four"}));
  const auto base = log->base().value();
  ASSERT_TRUE(base);
  EXPECT_EQ(base->hash, vouched);
  EXPECT_EQ(base->content, base_of(3).content);
  ASSERT_TRUE(log->append(as_bytes("five")));
  EXPECT_EQ(blocks(*log, {3, 0}).size(), 3u);
  // The chain goes on from it: what lies behind a base of another log is damage.
  LogBase other = base_of(4);
  other.before = Hash256{};
  ASSERT_TRUE(log->cut(other, vouch));
  EXPECT_EQ(log->scan({4, 0}, log->end(), [](auto, auto, const auto&) { return Result<>(); }).error().kind(),
            ErrorKind::hash_mismatch);
}

/// Several processes reach a database; a directory has one.
class BlockTableContract : public BlockLogContract {};

TEST_P(BlockTableContract, WhoOpensItLastOwnsIt) {
  const auto first = open();
  ASSERT_TRUE(first->append(as_bytes("one")));
  const auto second = open();
  const auto refused = first->append(as_bytes("two"));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::conflict);
  ASSERT_TRUE(second->append(as_bytes("three")));
  EXPECT_EQ(blocks(*second), (std::vector<std::string>{"one", "three"}));
}

INSTANTIATE_TEST_SUITE_P(Everywhere, BlockLogContract, ::testing::Values("files", "sqlite", "postgres"),
                         [](const auto& one) { return one.param; });
INSTANTIATE_TEST_SUITE_P(Everywhere, BlockTableContract, ::testing::Values("sqlite", "postgres"),
                         [](const auto& one) { return one.param; });

}  // namespace
}  // namespace creto::metering

// What was used: added up from columns, or event by event from the log.

#include <charconv>

#include "service.h"
#include "service_words.h"
#include "usage/logged_event.h"
#include "usage/usage_query.h"

namespace creto::metering {
namespace {

constexpr std::size_t page_bytes = 1 << 20;          // then a page ends
constexpr std::size_t page_events_read = 1'000'000;  // likewise, so that a page of few events takes no longer

/// Where a page ends: the place of the next event, as "<segment>.<offset>.<index>".
std::string text_of(const RowPlace& place) {
  return fmt::format("{}.{}.{}", place.block.segment, place.block.offset, place.index);
}

Result<RowPlace> place_from(std::string_view text) {
  RowPlace place;
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto number = [&](std::uint32_t& value, bool last) {
    const auto [stop, failed] = std::from_chars(at, end, value);
    if (failed != std::errc()) return false;
    at = stop;
    if (last) return at == end;
    return at != end && *at++ == '.';
  };
  if (!number(place.block.segment, false) || !number(place.block.offset, false) || !number(place.index, true))
    return error(ErrorKind::invalid_input, "after: must be the `next` of a page");
  return place;
}

}  // namespace

Result<UsageReport> MeteringService::usage(const Context& ctx, const UsageQuery& query) {
  CRETO_TRY(check_usage_query(query));
  const auto go_on = [&]() -> Result<> {
    if (ctx.expired(clock_)) return error(ErrorKind::timeout, "the deadline passed");
    return {};
  };
  UsageReport report;
  const auto held = ledger_->held();
  CRETO_TRY(columns_->use([&](const ColumnStore::All& all) -> Result<> {
    report = CRETO_TRY(
        query_usage(all, ledger_->subjects(), ledger_->corrections(), ctx.org, options_.currency, query, go_on));
    return {};
  }));
  if (!held->everything()) report.held_since = held->until;
  return report;
}

Result<UsageEventsPage> MeteringService::usage_events(const Context& ctx, const UsageEventsQuery& query) {
  CRETO_TRY(check_usage_events_query(query));
  const auto held = ledger_->held();
  const BlockAddress end = ledger_->position().end;
  const BlockAddress first = CRETO_TRY(ledger_->first_at(query.from));
  RowPlace from{first, 0};
  if (!query.after.empty()) {
    const RowPlace after = CRETO_TRY(place_from(query.after));
    if (after.block >= end || !CRETO_TRY(ledger_->begins_block(after.block)))
      return error(ErrorKind::invalid_input, "after: must be the `next` of a page");
    from = std::max(from, after);
  }

  const Subjects& subjects = ledger_->subjects();
  const SubjectNumber subject = query.subject.empty() ? 0 : subjects.find(ctx.org, query.subject);
  UsageEventsPage page;
  if (!held->everything()) page.held_since = held->until;
  if (!query.subject.empty() && subject == 0) return page;
  std::size_t read = 0;
  std::size_t bytes = 0;
  std::vector<std::string_view> ancestors;
  // The log has no way to stop but an error.
  bool stopped = false;
  const auto stop = [&](const RowPlace* next) {
    if (next != nullptr) page.next = text_of(*next);
    stopped = true;
    return error(ErrorKind::cancelled, "the page is full");
  };
  const auto visit = [&](const StoredEvent& event) -> Result<> {
    const RowPlace place = event.place();
    if (place < from || event.arrived < query.from) return {};
    // Later ones arrived later.
    if (event.arrived >= query.until) return stop(nullptr);
    if (page.events.size() == query.limit || bytes >= page_bytes || read == page_events_read) return stop(&place);
    if (++read % 1'024 == 0 && ctx.expired(clock_)) return error(ErrorKind::timeout, "the deadline passed");
    const Attribution& attribution = subjects.attribution(event.attribution);
    if (subjects.org_of(event.attribution) != ctx.org) return {};
    if (subject != 0 && !attribution.counts_for(subject)) return {};
    std::string line = CRETO_TRY(json_of(logged_event_of(subjects, event, ancestors)));
    bytes += line.size();
    page.events.push_back(std::move(line));
    return {};
  };
  const auto scanned = ledger_->scan(from.block, end, visit, held.get());
  if (!stopped) CRETO_TRY(scanned);
  return page;
}

}  // namespace creto::metering

#include "limits/terms.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "creto/common/assert.h"

namespace creto::metering {
namespace {

using contracts::BillingPeriod;
using contracts::ThresholdAction;

constexpr std::size_t event_types_max = 4096;
constexpr std::size_t defaults_max = 64;

/// Texts of any content, one behind the other, so that different lists never read the same.
void append(std::string& to, std::string_view text) {
  fmt::format_to(std::back_inserter(to), "{}:{}", text.size(), text);
}

std::string word_of(std::string_view property, std::string_view value) {
  std::string word(property);
  word += '=';
  word += value;
  return word;
}

std::string word_of_currency(std::string_view code) { return std::string("$:").append(code); }

/// The smallest use of which `percent` of the limit is not more.
std::int64_t soft_of(std::int64_t limit, int percent) {
  if (limit <= 0) return INT64_MAX;
  __extension__ typedef __int128 Wide;
  return static_cast<std::int64_t>((static_cast<Wide>(limit) * percent + 99) / 100);
}

Error exhausted(std::string message) {
  return Error(Product::metering, ErrorKind::resource_exhausted, std::move(message));
}

}  // namespace

WindowKind window_of(BillingPeriod period) {
  switch (period) {
    case BillingPeriod::transaction:
      return WindowKind::transaction;
    case BillingPeriod::hour:
      return WindowKind::hour;
    case BillingPeriod::day:
      return WindowKind::day;
    case BillingPeriod::month:
      return WindowKind::month;
    case BillingPeriod::lifetime:
      return WindowKind::lifetime;
  }
  CRETO_ASSERT(!"every period is a window");
  return WindowKind::lifetime;
}

bool Terms::matches(const Words& words) const {
  return std::ranges::all_of(said_.match, [&](const std::vector<std::uint32_t>& any) {
    return std::ranges::any_of(
        words.properties, [&](std::uint32_t word) { return word != 0 && std::ranges::find(any, word) != any.end(); });
  });
}

std::optional<std::size_t> Terms::cost_window() const {
  if (said_.family != Family::threshold || said_.currency != 0 || said_.zone != TimeZone()) return std::nullopt;
  const auto window = std::ranges::find(cost_windows, said_.window);
  if (window == cost_windows.end()) return std::nullopt;
  return static_cast<std::size_t>(window - cost_windows.begin());
}

Period Terms::find_window(std::int64_t ns) const {
  const std::int64_t begin = begin_.get();
  const std::int64_t end = end_.get();
  if (begin <= ns && ns < end && begin_.get() == begin) return {from_unix_ns(begin), from_unix_ns(end)};
  const Period window = calendar_window(said_.window, from_unix_ns(ns), said_.zone);
  if (unix_ns(window.end) > end_.get() && !writing_.test_and_set(std::memory_order_acquire)) {
    if (unix_ns(window.end) > end_.get()) {
      begin_.set(INT64_MAX);
      end_.set(unix_ns(window.end));
      begin_.set(unix_ns(window.begin));
    }
    writing_.clear(std::memory_order_release);
  }
  return window;
}

TermsTable::TermsTable(Currency accounting) : accounting_(std::move(accounting)) {
  terms_.make(Saying());  // no terms have number 0
  sets_.make();           // nor has a set
}

Result<std::uint32_t> TermsTable::of(OrgNumber org, const Quota& quota) {
  const std::scoped_lock lock(mutex_);
  Saying said;
  said.measure = quota.measure;
  said.window = quota.window;
  said.overflow = quota.overflow;
  said.each = each_of(quota.subject).has_value();
  said.limit = quota.limit;
  said.soft = soft_of(quota.limit, quota.soft_percent);
  said.rolling_length = quota.rolling_length;
  if (!quota.time_zone.empty()) said.zone = CRETO_TRY(TimeZone::load(quota.time_zone));
  if (said.each) said.id = quota.id;
  said.event_type = quota.event_type;
  said.approvers = quota.approvers;

  OrgTerms& of_org = obtain_org_terms(org);
  std::vector<std::string> new_properties;
  for (const PropertyMatch& one : quota.match) {
    const auto watched = std::span(of_org.watched).first(of_org.watched_count.get());
    if (std::ranges::find(watched, one.property) == watched.end()) new_properties.push_back(one.property);
  }
  if (of_org.watched_count.get() + new_properties.size() > watched_properties_max) {
    return exhausted(fmt::format("quotas already name {} properties", watched_properties_max));
  }
  if (!quota.event_type.empty() && find_word(quota.event_type) == 0 && rule_words_ >= event_types_max) {
    return exhausted(fmt::format("quotas already name {} event types", event_types_max));
  }
  if (!quota.event_type.empty()) {
    if (find_word(quota.event_type) == 0) ++rule_words_;
    said.type = obtain_word(quota.event_type);
  }
  for (const PropertyMatch& one : quota.match) {
    auto& any = said.match.emplace_back();
    for (const std::string& value : one.values) any.push_back(obtain_word(word_of(one.property, value)));
    std::ranges::sort(any);
  }
  for (std::string& property : new_properties) {
    of_org.watched[of_org.watched_count.get()] = std::move(property);
    of_org.watched_count.set(of_org.watched_count.get() + 1);
  }

  said.counted = fmt::format("quota {} {} {} {} {}", quota.event_type, to_string(quota.measure),
                             to_string(quota.window), quota.rolling_length.count(), quota.time_zone);
  if (!quota.currency.empty() && quota.currency != accounting_.code()) {
    said.currency_code = quota.currency;
    said.currency = obtain_word(word_of_currency(said.currency_code));
    said.counted += ' ' + said.currency_code;
  }
  for (const PropertyMatch& one : quota.match) {
    said.counted += ' ';
    append(said.counted, one.property);
    std::vector<std::string> values = one.values;
    std::ranges::sort(values);
    for (const std::string& value : values) append(said.counted, value);
  }
  std::string saying = fmt::format("{}/{}/{}", static_cast<int>(quota.overflow), quota.limit, quota.soft_percent);
  append(saying, said.id);
  for (const std::string& approver : quota.approvers) append(saying, approver);
  return put(std::move(said), saying);
}

Result<std::uint32_t> TermsTable::of(OrgNumber org, const SubjectThreshold& threshold) {
  const contracts::CostThreshold& rule = threshold.threshold;
  Saying said;
  said.family = Terms::Family::threshold;
  said.measure = Measure::cost;
  said.window = window_of(rule.period);
  said.action = rule.action;
  said.overflow = rule.action == ThresholdAction::block ? Overflow::block : Overflow::allow_with_notification;
  said.each = each_of(threshold.subject).has_value();
  said.limit = CRETO_TRY(to_nano_money(rule.limit.amount));
  said.soft = INT64_MAX;
  if (!threshold.time_zone.empty()) said.zone = CRETO_TRY(TimeZone::load(threshold.time_zone));
  if (said.each) said.id = rule.threshold_id;
  said.approvers = rule.approvers;

  said.counted = fmt::format("threshold {} {}", contracts::to_string(rule.period), threshold.time_zone);
  const bool foreign = !(rule.limit.currency == accounting_);
  if (foreign) {
    said.currency_code = rule.limit.currency.code();
    said.counted += ' ' + said.currency_code;
  }
  std::string saying = fmt::format("{}/{}", static_cast<int>(rule.action), said.limit);
  append(saying, said.id);
  for (const std::string& approver : rule.approvers) append(saying, approver);
  const std::scoped_lock lock(mutex_);
  obtain_org_terms(org);
  if (foreign) said.currency = obtain_word(word_of_currency(said.currency_code));
  return put(std::move(said), saying);
}

std::uint32_t TermsTable::put(Saying said, const std::string& saying) {
  const std::string content = said.counted + '|' + saying;
  if (const auto known = by_content_.find(content); known != by_content_.end()) return known->second;
  said.what = whats_.try_emplace(said.counted, static_cast<std::uint32_t>(whats_.size() + 1)).first->second;
  said.margin = said.limit / 4;
  const auto number = static_cast<std::uint32_t>(terms_.size());
  terms_.make(std::move(said));
  count_.store(number, std::memory_order_release);
  by_content_.emplace(content, number);
  return number;
}

std::uint32_t TermsTable::what(std::string_view counted) const {
  const std::scoped_lock lock(mutex_);
  const auto found = whats_.find(counted);
  return found == whats_.end() ? 0 : found->second;
}

std::uint32_t TermsTable::newest(std::uint32_t set) const {
  while (const std::uint32_t next = sets_[set].successor.get()) set = next;
  return set;
}

std::uint32_t TermsTable::defaults(OrgNumber org, SubjectKind kind) const {
  const OrgTerms* of_org = org_terms(org);
  return of_org == nullptr ? 0 : of_org->defaults[static_cast<std::size_t>(kind)].get();
}

std::uint32_t TermsTable::obtain_defaults(OrgNumber org, SubjectKind kind) {
  if (const std::uint32_t known = defaults(org, kind); known != 0) return known;
  const std::scoped_lock lock(mutex_);
  Cell<std::uint32_t>& current = obtain_org_terms(org).defaults[static_cast<std::size_t>(kind)];
  if (current.get() == 0) replace(current, {});
  return current.get();
}

void TermsTable::replace(Cell<std::uint32_t>& current, std::vector<std::uint32_t> terms) {
  const auto number = static_cast<std::uint32_t>(sets_.size());
  sets_.make().terms = std::move(terms);
  const std::uint32_t before = current.get();
  current.set(number);
  if (before != 0) sets_[before].successor.set(number);
}

Result<> TermsTable::put_default(OrgNumber org, SubjectKind kind, std::uint32_t number) {
  const std::scoped_lock lock(mutex_);
  Cell<std::uint32_t>& current = obtain_org_terms(org).defaults[static_cast<std::size_t>(kind)];
  const Terms& terms = (*this)[number];
  std::vector<std::uint32_t> all = sets_[current.get()].terms;
  std::erase_if(all, [&](std::uint32_t known) {
    return (*this)[known]->id == terms->id && (*this)[known]->family == terms->family;
  });
  if (all.size() >= defaults_max)
    return exhausted(fmt::format("there are already {} quotas for each of this kind", defaults_max));
  all.push_back(number);
  if (all != sets_[current.get()].terms) replace(current, std::move(all));
  return {};
}

void TermsTable::remove_default(OrgNumber org, SubjectKind kind, Terms::Family family, std::string_view id) {
  const std::scoped_lock lock(mutex_);
  OrgTerms* of_org = org_terms(org);
  if (of_org == nullptr) return;
  Cell<std::uint32_t>& current = of_org->defaults[static_cast<std::size_t>(kind)];
  std::vector<std::uint32_t> all = sets_[current.get()].terms;
  const auto gone = std::erase_if(
      all, [&](std::uint32_t known) { return (*this)[known]->id == id && (*this)[known]->family == family; });
  if (gone > 0) replace(current, std::move(all));
}

TermsTable::OrgTerms* TermsTable::org_terms(OrgNumber org) const {
  const auto number = static_cast<std::uint32_t>(org);
  return number < org_count_.load(std::memory_order_acquire) ? &orgs_[number] : nullptr;
}

TermsTable::OrgTerms& TermsTable::obtain_org_terms(OrgNumber org) {
  while (orgs_.size() <= static_cast<std::uint32_t>(org)) orgs_.make();
  org_count_.store(static_cast<std::uint32_t>(orgs_.size()), std::memory_order_release);
  return orgs_[static_cast<std::uint32_t>(org)];
}

std::uint32_t TermsTable::find_word(std::string_view text) const {
  if (text.empty()) return 0;
  const Word* word =
      words_.find(std::hash<std::string_view>()(text), [&](const Word& known) { return known.text == text; });
  return word == nullptr ? 0 : word->number;
}

std::uint32_t TermsTable::obtain_word(std::string_view text) {
  if (text.empty()) return 0;
  const std::uint64_t hash = std::hash<std::string_view>()(text);
  return words_
      .find_or_insert(
          hash, [&](const Word& known) { return known.text == text; },
          [&](std::size_t before) {
            return std::make_unique<Word>(Word{hash, std::string(text), static_cast<std::uint32_t>(before + 1)});
          })
      ->number;
}

std::uint32_t TermsTable::currency(std::string_view code) const {
  if (code.empty() || code == accounting_.code()) return 0;
  const std::uint32_t known = find_word(word_of_currency(code));
  return known == 0 ? unlimited_currency : known;
}

Words TermsTable::words(OrgNumber org, std::string_view event_type, std::string_view action, PropertyViews properties,
                        std::string_view currency_code) const {
  Words words{find_word(event_type), find_word(action), currency(currency_code), {}};
  if (properties.empty()) return words;
  const OrgTerms* of_org = org_terms(org);
  if (of_org == nullptr) return words;
  for (std::uint32_t i = 0; i < of_org->watched_count.get(); ++i) {
    const auto found = std::ranges::find(properties, of_org->watched[i], [](const auto& one) { return one.first; });
    if (found != properties.end()) words.properties[i] = find_word(word_of(found->first, found->second));
  }
  return words;
}

Words TermsTable::learn(OrgNumber org, std::string_view event_type, std::string_view action, PropertyViews properties,
                        std::string_view currency_code) {
  Words known = words(org, event_type, action, properties, currency_code);
  if (known.type == 0) known.type = learn_type(event_type);
  return known;
}

std::uint32_t TermsTable::learn_type(std::string_view event_type) {
  const std::uint32_t known = find_word(event_type);
  return known != 0 || words_.size() >= 2 * event_types_max ? known : obtain_word(event_type);
}

std::string_view TermsTable::word(std::uint32_t number) const {
  return number == 0 ? std::string_view() : std::string_view(words_.at(number - 1).text);
}

}  // namespace creto::metering

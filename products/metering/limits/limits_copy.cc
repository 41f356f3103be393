#include "ledger/layout.h"
#include "limits/limits_impl.h"

// Counters as bytes (docs/formats.md, "Copy of counters").
namespace creto::metering {
namespace {

constexpr std::string_view magic = "CRETOCNT";
constexpr std::uint8_t version = 2;
constexpr std::uint32_t slice_accounts = 8192;
constexpr std::uint32_t saved_flags = Account::soft_noticed | Account::hard_noticed;

enum class Entry : std::uint8_t { end, account };

Error damaged(std::string_view what) {
  return Error(Product::metering, ErrorKind::invalid_input, "copy of counters: " + std::string(what));
}

}  // namespace

bool Account::write(const Books& books, Bytes& out) {
  if (stamp_.get() == 0 && extra_.get() == 0) return false;
  layout::put(out, stamp_.get());
  const std::size_t count_at = out.size();
  std::uint16_t count = 0;
  layout::put(out, count);
  each(books, [&](Counter counter, const Terms& terms) {
    const std::int64_t used = counter.used.get();
    const Ring* ring = terms->window == WindowKind::rolling ? find_ring(books, counter.position) : nullptr;
    if (terms->each && used == 0) return;
    ++count;
    layout::put(out, counter.number());
    layout::put(out, counter.word.get() & saved_flags);
    layout::put(out, used);
    if (!terms->each) layout::put_sized(out, own_id(books, counter.position));
    layout::put(out, static_cast<std::uint8_t>(ring != nullptr));
    if (ring == nullptr) return;
    layout::put(out, ring->step);
    layout::put(out, ring->steps);
  });
  std::memcpy(out.data() + count_at, &count, sizeof(count));

  const Extra* beyond = extra(books);
  std::uint16_t types = 0;
  const std::size_t types_at = out.size();
  layout::put(out, types);
  layout::put(out, static_cast<std::uint8_t>(beyond != nullptr));
  if (beyond == nullptr) return true;
  const Costs& costs = beyond->costs;
  costs.each_type([&](std::uint32_t type, const auto& values) {
    if (std::ranges::all_of(values, [](NanoMoney value) { return value == 0; })) return;
    ++types;
    layout::put(out, type);
    layout::put(out, values);
  });
  std::memcpy(out.data() + types_at, &types, sizeof(types));
  layout::put(out, beyond->life);
  layout::put(out, costs.rhythm);
  const WeekRhythm* week = beyond->rare == nullptr ? nullptr : beyond->rare->week.get();
  layout::put(out, static_cast<std::uint8_t>(week != nullptr));
  if (week != nullptr) layout::put(out, *week);
  return true;
}

void Account::read(Books& books, layout::Reader& reader, std::span<const CopiedTerms> terms,
                   std::span<const std::uint32_t> types, std::vector<std::uint32_t>& found) {
  stamp_.set(std::clamp<std::int64_t>(reader.get<std::int64_t>(), 0, latest_ns));
  const auto count = reader.get<std::uint16_t>();
  for (std::uint16_t i = 0; i < count && reader.ok(); ++i) {
    const auto number = reader.get<std::uint32_t>();
    const std::uint32_t flags = reader.get<std::uint32_t>() & saved_flags;
    const auto used = reader.get<std::int64_t>();
    const CopiedTerms unknown{};
    const CopiedTerms& copied = number < terms.size() ? terms[number] : unknown;
    const std::string_view id = copied.each ? std::string_view(copied.id) : reader.text();
    Ring ring;
    const bool has_ring = reader.get<std::uint8_t>() != 0;
    if (has_ring) {
      ring.step = std::clamp<std::int64_t>(reader.get<std::int64_t>(), 0, latest_ns);
      ring.steps = reader.get<decltype(ring.steps)>();
    }
    if (copied.what == 0 || !reader.ok()) continue;
    each(books, [&](Counter counter, const Terms& now) {
      if (now->what != copied.what || now->each != copied.each) return;
      if ((copied.each ? now->id : own_id(books, counter.position)) != id) return;
      found.push_back(counter.position);
      set_used(counter, now, used);
      counter.word.set(counter.word.get() | flags);
      if (!has_ring) return;
      auto& rings = obtain_rare(books).rings;
      std::erase_if(rings, [&](const auto& one) { return one->position == counter.position; });
      rings.push_back(std::make_unique<Ring>(ring));
      rings.back()->position = counter.position;
    });
  }
  const auto of_types = reader.get<std::uint16_t>();
  const bool has_costs = reader.get<std::uint8_t>() != 0;
  if (!has_costs) return;
  for (std::uint16_t i = 0; i < of_types && reader.ok(); ++i) {
    const auto type = reader.get<std::uint32_t>();
    const auto values = reader.get<std::array<NanoMoney, cost_windows.size()>>();
    Costs& costs = obtain_extra(books).costs;
    costs.of(type < types.size() ? types[type] : 0) = values;
    for (std::size_t window = 0; window < values.size(); ++window)
      costs.totals[window].set(add_saturating(costs.totals[window].get(), values[window]));
  }
  if (!reader.ok()) return;
  const auto life = reader.get<SessionLife>();
  if (!life.is_free()) obtain_extra(books).life = life;
  Costs& costs = obtain_extra(books).costs;
  costs.rhythm = reader.get<Rhythm>();
  if (reader.get<std::uint8_t>() != 0) {
    const auto week = reader.get<WeekRhythm>();
    learn_weeks(books);
    *obtain_rare(books).week = week;
  }
  costs.unusual.set(unusual_above(expect(books, stamp_.get()), books.anomalies));
}

void Limits::Impl::write_account(AccountNumber number, Bytes& out) {
  const std::size_t before = out.size();
  // The name of an account that is nobody's may be another's at any moment.
  if (const Extra* known = at(number).extra(books); known != nullptr && known->life.is_free()) return;
  layout::put(out, Entry::account);
  layout::put(out, static_cast<std::uint32_t>(names.org(number)));
  layout::put(out, names.kind(number));
  layout::put_sized(out, names.rest(number));
  if (!at(number).write(books, out)) out.resize(before);
}

void Limits::Impl::keep_now(AccountNumber number) {
  const auto index = static_cast<std::uint32_t>(number);
  if (index > copy.last || copy.done[index] != 0) return;
  copy.done[index] = 1;
  const std::scoped_lock lock(copy.mutex);
  write_account(number, copy.kept);
}

void Limits::begin_copy(Bytes& out) {
  const std::scoped_lock rules(impl_->rules_mutex);
  CopyInProgress& copy = impl_->copy;
  CRETO_ASSERT(!copy.active.load());
  copy.last = impl_->names.count();
  copy.next = 1;
  copy.done.assign(copy.last + 1, 0);
  copy.kept.clear();
  layout::put_bytes(out, as_bytes(magic));
  layout::put(out, version);
  copy.active.store(true, std::memory_order_release);
}

bool Limits::write_copy(Bytes& out) {
  CopyInProgress& copy = impl_->copy;
  if (!copy.active.load(std::memory_order_acquire)) return false;
  const std::uint32_t until = static_cast<std::uint32_t>(
      std::min<std::uint64_t>(std::uint64_t{copy.next} + slice_accounts, std::uint64_t{copy.last} + 1));
  for (; copy.next < until; ++copy.next) {
    const auto number = static_cast<AccountNumber>(copy.next);
    const std::scoped_lock lock(impl_->at(number));
    if (std::exchange(copy.done[copy.next], 1) == 0) impl_->write_account(number, out);
  }
  if (copy.next <= copy.last) return true;

  // All have been written or kept. What their numbers mean comes last, since there may be new ones meanwhile.
  copy.active.store(false, std::memory_order_release);
  {
    const std::scoped_lock lock(copy.mutex);
    layout::put_bytes(out, copy.kept);
    copy.kept = {};
  }
  layout::put(out, Entry::end);
  const TermsTable& terms = impl_->books.terms;
  const std::size_t dictionary = out.size();
  const std::uint32_t orgs = impl_->names.org_count();
  layout::put(out, orgs);
  for (std::uint32_t org = 1; org <= orgs; ++org)
    layout::put_sized(out, impl_->names.org_name(static_cast<OrgNumber>(org)));
  const auto words = static_cast<std::uint32_t>(terms.word_count());
  layout::put(out, words);
  for (std::uint32_t word = 1; word <= words; ++word) layout::put_sized(out, terms.word(word));
  const std::uint32_t said = terms.count();
  layout::put(out, said);
  for (std::uint32_t number = 1; number <= said; ++number) {
    layout::put_sized(out, terms[number]->counted);
    layout::put(out, static_cast<std::uint8_t>(terms[number]->each));
    layout::put_sized(out, terms[number]->id);
  }
  layout::put(out, static_cast<std::uint64_t>(out.size() - dictionary));
  return false;
}

Result<std::vector<Limits::Younger>> Limits::load(BytesView bytes) {
  constexpr std::size_t head = magic.size() + 1;
  if (bytes.size() < head + sizeof(std::uint64_t) || as_text(bytes.first(magic.size())) != magic)
    return damaged("has no `CRETOCNT`");
  if (bytes[magic.size()] != version) return damaged("is of another version");
  const std::size_t body = bytes.size() - sizeof(std::uint64_t);
  const auto size = layout::Reader(bytes.subspan(body)).get<std::uint64_t>();
  if (size > body - head) return damaged("is cut off");

  layout::Reader dictionary(bytes.subspan(body - size, size));
  std::vector<OrgNumber> orgs{OrgNumber::none};
  for (std::size_t n = dictionary.count(4); n > 0; --n) {
    const std::string_view org = dictionary.text();
    if (dictionary.ok()) orgs.push_back(impl_->names.obtain_org(org));
  }
  std::vector<std::uint32_t> words{0};
  for (std::size_t n = dictionary.count(4); n > 0; --n) {
    const std::string_view word = dictionary.text();
    if (dictionary.ok()) words.push_back(impl_->books.terms.learn_type(word));
  }
  std::vector<CopiedTerms> terms{{}};
  for (std::size_t n = dictionary.count(9); n > 0; --n) {
    CopiedTerms& one = terms.emplace_back();
    one.what = impl_->books.terms.what(dictionary.text());
    one.each = dictionary.get<std::uint8_t>() != 0;
    one.id = dictionary.text();
  }
  if (!dictionary.done()) return damaged("does not say what it counts");

  layout::Reader reader(bytes.subspan(head, body - size - head));
  std::vector<std::uint8_t> restored;  // accounts with counters of their own that the copy knew
  std::vector<Younger> younger;
  std::vector<std::uint32_t> found;
  while (reader.get<Entry>() == Entry::account) {
    const auto org = reader.get<std::uint32_t>();
    const auto kind = reader.get<SubjectKind>();
    const std::string_view rest = reader.text();
    if (!reader.ok() || org == 0 || org >= orgs.size() || static_cast<std::size_t>(kind) >= subject_kinds)
      return damaged("an account has no name");
    const AccountNumber number = impl_->obtain(orgs[org], AccountNames::join(kind, rest));
    const auto index = static_cast<std::uint32_t>(number);
    if (restored.size() <= index) restored.resize(std::max<std::size_t>(index + 1, restored.size() * 2));
    if (restored[index] != 0) return damaged("an account comes twice");
    restored[index] = 1;
    Account& account = impl_->at(number);
    const std::scoped_lock lock(account);
    found.clear();
    account.read(impl_->books, reader, terms, words, found);
    if (!reader.ok()) return damaged("an account is cut off");
    impl_->find_younger(number, found, younger);
  }
  if (!reader.done()) return damaged("is cut off");
  for (std::uint32_t index = 1; index <= impl_->names.count(); ++index) {
    if (index < restored.size() && restored[index] != 0) continue;
    const auto number = static_cast<AccountNumber>(index);
    const std::scoped_lock lock(impl_->at(number));
    impl_->find_younger(number, {}, younger);
  }
  return younger;
}

/// What an account counts by quotas and thresholds of its own that were not in the copy.
void Limits::Impl::find_younger(AccountNumber number, std::span<const std::uint32_t> found,
                                std::vector<Younger>& younger) {
  Account& account = at(number);
  account.each(books, [&](const Account::Counter& counter, const Terms& said) {
    if (said->each || std::ranges::find(found, counter.position) != found.end()) return;
    if (const auto window = said.cost_window()) {
      account.set_used(counter, said, account.cost_in(books, *window, account.stamp()));
      return;
    }
    younger.push_back(
        {said->family, std::string(names.org_name(names.org(number))), account.own_id(books, counter.position)});
  });
}

}  // namespace creto::metering

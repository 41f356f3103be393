#include "limits/account_names.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "creto/common/assert.h"
#include "creto/crypto/random.h"

namespace creto::metering {
namespace {

constexpr std::array<std::string_view, subject_kinds> prefixes{
    "agent:nhi:ed25519:", "human:", "service:", "sub-", "", "session:"};

std::pair<SubjectKind, std::string_view> split(std::string_view subject) {
  const auto is = [&](SubjectKind kind) { return subject.starts_with(prefixes[static_cast<std::size_t>(kind)]); };
  const char first = subject.empty() ? '\0' : subject.front();
  const SubjectKind kind = first == 'a'               ? SubjectKind::agent
                           : first == 'h'             ? SubjectKind::human
                           : first != 's'             ? SubjectKind::other
                           : is(SubjectKind::service) ? SubjectKind::service
                           : is(SubjectKind::session) ? SubjectKind::session
                                                      : SubjectKind::subscription;
  if (!is(kind)) return {SubjectKind::other, subject};
  return {kind, subject.substr(prefixes[static_cast<std::size_t>(kind)].size())};
}

std::uint64_t fold(std::uint64_t a, std::uint64_t b) {
  __extension__ typedef unsigned __int128 Wide;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

/// Two lanes, so that the multiplications of a long name overlap. The last words overlap what was read before, since
/// reading fewer bytes than a word takes longer.
std::uint64_t hash_of(std::string_view text, std::uint64_t seed) {
  const auto word = [](const char* at) {
    std::uint64_t value = 0;
    std::memcpy(&value, at, sizeof(value));
    return value;
  };
  std::uint64_t a = seed ^ text.size();
  std::uint64_t b = seed ^ 0xa0761d6478bd642fu;
  const char* at = text.data();
  std::size_t left = text.size();
  if (left < 16) {
    std::array<char, 16> padded{};
    std::copy_n(at, left, padded.begin());
    a = fold(a ^ word(padded.data()), 0xd6e8feb86659fd93u);
    b = fold(b ^ word(padded.data() + 8), 0xe7037ed1a0b428dbu);
  } else {
    const char* last = at + left - 16;
    for (; at < last; at += 16) {
      a = fold(a ^ word(at), 0xd6e8feb86659fd93u);
      b = fold(b ^ word(at + 8), 0xe7037ed1a0b428dbu);
    }
    a = fold(a ^ word(last), 0xd6e8feb86659fd93u);
    b = fold(b ^ word(last + 8), 0xe7037ed1a0b428dbu);
  }
  return fold(a ^ 0x8ebc6af09c88c6e3u, b ^ 0x589965cc75374cc3u);
}

std::uint64_t drawn() {
  ByteArray<8> bytes{};
  crypto::random_fill(bytes);
  return std::bit_cast<std::uint64_t>(bytes);
}

constexpr std::uint64_t index_size_min = 1024;

}  // namespace

SubjectKind subject_kind(std::string_view subject) { return split(subject).first; }

std::optional<SubjectKind> each_of(std::string_view subject) {
  constexpr std::array<std::string_view, subject_kinds> each{"agent:*",        "human:*", "service:*",
                                                             "subscription:*", "",        "session:*"};
  const auto found = std::ranges::find(each, subject);
  if (subject.empty() || found == each.end()) return std::nullopt;
  return static_cast<SubjectKind>(found - each.begin());
}

AccountNames::AccountNames() : secret_(drawn()) {
  names_.make();  // of AccountNumber::none
  for (Table& table : tables_) grow(table, index_size_min);
}

AccountNames::~AccountNames() {
  for (const Table& table : tables_) {
    for (const auto& index : table.all) ::munmap(index->entries, (index->mask + 1) * sizeof(*index->entries));
  }
}

OrgNumber AccountNames::find_org(std::string_view org) const {
  const Org* found = orgs_.find(hash_of(org, secret_), [&](const Org& known) { return known.name == org; });
  return found == nullptr ? OrgNumber::none : found->number;
}

OrgNumber AccountNames::obtain_org(std::string_view org) {
  const std::uint64_t hash = hash_of(org, secret_);
  return orgs_
      .find_or_insert(
          hash, [&](const Org& known) { return known.name == org; },
          [&](std::size_t before) {
            return std::make_unique<Org>(
                Org{hash, std::string(org), static_cast<OrgNumber>(static_cast<std::uint32_t>(before + 1))});
          })
      ->number;
}

std::string_view AccountNames::org_name(OrgNumber org) const {
  return orgs_.at(static_cast<std::uint32_t>(org) - 1).name;
}

std::uint64_t AccountNames::hash(OrgNumber org, SubjectKind kind, std::string_view rest) const {
  return hash_of(rest, secret_ ^ (static_cast<std::uint64_t>(org) << 3 | static_cast<std::uint64_t>(kind)));
}

std::string_view AccountNames::rest(const Name& name) const {
  if (name.size != Name::elsewhere) return {name.text.data(), name.size};
  return long_names_[long_place(name)];
}

std::size_t AccountNames::long_place(const Name& name) {
  std::size_t place = 0;
  std::memcpy(&place, name.text.data(), sizeof(place));
  return place;
}

AccountNames::Looked AccountNames::look(OrgNumber org, std::string_view subject) const {
  const auto [kind, rest] = split(subject);
  return look(org, kind, rest);
}

AccountNames::Named AccountNames::name(OrgNumber org, const Looked& looked) {
  Named named{static_cast<AccountNumber>(static_cast<std::uint32_t>(names_.size())), true};
  if (looked.kind == SubjectKind::session && !spare_.empty()) {
    named = {spare_.back(), false};
    spare_.pop_back();
  } else {
    names_.make();
    if (looked.kind == SubjectKind::session) sessions_.push_back(named.number);
  }
  Name& name = names_[static_cast<std::uint32_t>(named.number)];
  if (name.size == Name::elsewhere) spare_long_names_.push_back(long_place(name));
  name.org = org;
  name.kind = looked.kind;
  if (looked.rest.size() <= name.text.size()) {
    name.size = static_cast<std::uint8_t>(looked.rest.size());
    std::ranges::copy(looked.rest, name.text.begin());
    return named;
  }
  std::size_t place = long_names_.size();
  if (spare_long_names_.empty()) {
    long_names_.make(looked.rest);
  } else {
    place = spare_long_names_.back();
    spare_long_names_.pop_back();
    long_names_[place] = looked.rest;
  }
  name.size = Name::elsewhere;
  std::memcpy(name.text.data(), &place, sizeof(place));
  return named;
}

void AccountNames::publish(AccountNumber number, const Looked& looked) {
  Table& table = table_of(looked.kind);
  const Index* index = table.index.load(std::memory_order_relaxed);
  if (++table.size > index->mask / 8 * 5) index = grow(table, (index->mask + 1) * 2);
  put(*index, looked.hash, static_cast<std::uint32_t>(number));
  if (static_cast<std::uint32_t>(number) > count_.load(std::memory_order_relaxed))
    count_.store(static_cast<std::uint32_t>(number), std::memory_order_release);
}

void AccountNames::give_back(std::span<const AccountNumber> sessions) {
  const std::scoped_lock lock(mutex_);
  for (const AccountNumber session : sessions) {
    const auto number = static_cast<std::uint32_t>(session);
    erase(table_of(SubjectKind::session), number);
    resting_.push_back(session);
  }
}

void AccountNames::reuse() {
  const std::scoped_lock lock(mutex_);
  spare_.insert(spare_.end(), resting_.begin(), resting_.end());
  resting_.clear();
}

std::vector<AccountNumber> AccountNames::session_numbers() const {
  const std::scoped_lock lock(mutex_);
  return sessions_;
}

std::uint32_t AccountNames::in_use() const {
  const std::scoped_lock lock(mutex_);
  return tables_[0].size + tables_[1].size;
}

void AccountNames::put(const Index& index, std::uint64_t hash, std::uint32_t number) {
  std::uint64_t at = hash & index.mask;
  while (index.entries[at].load(std::memory_order_relaxed) != 0) at = (at + 1) & index.mask;
  index.entries[at].store((hash >> 32 << 32) | number, std::memory_order_release);
}

void AccountNames::erase(Table& table, std::uint32_t number) {
  const Index& index = *table.index.load(std::memory_order_relaxed);
  const auto number_at = [&](std::uint64_t at) {
    return static_cast<std::uint32_t>(index.entries[at].load(std::memory_order_relaxed));
  };
  std::uint64_t hole = hash(names_[number]) & index.mask;
  while (number_at(hole) != number) {
    CRETO_ASSERT(number_at(hole) != 0);
    hole = (hole + 1) & index.mask;
  }
  // What follows without a gap moves up, so that no search ends too early.
  for (std::uint64_t at = (hole + 1) & index.mask; number_at(at) != 0; at = (at + 1) & index.mask) {
    const std::uint64_t home = hash(names_[number_at(at)]) & index.mask;
    if (((at - home) & index.mask) < ((at - hole) & index.mask)) continue;
    index.entries[hole].store(index.entries[at].load(std::memory_order_relaxed), std::memory_order_relaxed);
    hole = at;
  }
  index.entries[hole].store(0, std::memory_order_release);
  --table.size;
}

const AccountNames::Index* AccountNames::grow(Table& table, std::uint64_t size) {
  const std::size_t bytes = size * sizeof(std::atomic<std::uint64_t>);
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CRETO_ASSERT(memory != MAP_FAILED);
  ::madvise(memory, bytes, MADV_HUGEPAGE);
  auto index = std::make_unique<Index>(Index{size - 1, static_cast<std::atomic<std::uint64_t>*>(memory)});
  if (const Index* old = table.index.load(std::memory_order_relaxed)) {
    for (std::uint64_t at = 0; at <= old->mask; ++at) {
      const auto number = static_cast<std::uint32_t>(old->entries[at].load(std::memory_order_relaxed));
      if (number != 0) put(*index, hash(names_[number]), number);
    }
  }
  const Index* before = table.index.exchange(index.get(), std::memory_order_acq_rel);
  table.all.push_back(std::move(index));
  // Its memory goes back, its addresses stay: who still looks there finds it empty and looks again in the new one.
  if (before != nullptr) ::madvise(before->entries, (before->mask + 1) * sizeof(*before->entries), MADV_DONTNEED);
  return table.all.back().get();
}

std::string AccountNames::subject(AccountNumber number) const { return join(kind(number), rest(number)); }

std::string AccountNames::join(SubjectKind kind, std::string_view rest) {
  return std::string(prefixes[static_cast<std::size_t>(kind)]).append(rest);
}

}  // namespace creto::metering

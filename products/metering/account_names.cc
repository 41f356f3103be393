#include "account_names.h"

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
  publish(index_size_min);
}

AccountNames::~AccountNames() {
  for (const auto& index : indexes_) ::munmap(index->entries, (index->mask + 1) * sizeof(*index->entries));
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
  std::size_t place = 0;
  std::memcpy(&place, name.text.data(), sizeof(place));
  return long_names_[place];
}

AccountNames::Looked AccountNames::look(OrgNumber org, std::string_view subject) const {
  const auto [kind, rest] = split(subject);
  return {hash(org, kind, rest), kind, rest};
}

AccountNumber AccountNames::insert(OrgNumber org, std::string_view subject) {
  const auto [kind, rest] = split(subject);
  const auto number = static_cast<std::uint32_t>(names_.size());
  Name& name = names_.make();
  name.org = org;
  name.kind = kind;
  if (rest.size() <= name.text.size()) {
    name.size = static_cast<std::uint8_t>(rest.size());
    std::ranges::copy(rest, name.text.begin());
  } else {
    const std::size_t place = long_names_.size();
    long_names_.make(rest);
    name.size = Name::elsewhere;
    std::memcpy(name.text.data(), &place, sizeof(place));
  }
  const Index* index = index_.load(std::memory_order_relaxed);
  if (number > index->mask / 8 * 5) index = publish((index->mask + 1) * 2);
  put(*index, hash(org, kind, rest), number);
  count_.store(number, std::memory_order_release);
  return static_cast<AccountNumber>(number);
}

void AccountNames::put(const Index& index, std::uint64_t hash, std::uint32_t number) {
  std::uint64_t at = hash & index.mask;
  while (index.entries[at].load(std::memory_order_relaxed) != 0) at = (at + 1) & index.mask;
  index.entries[at].store((hash >> 32 << 32) | number, std::memory_order_release);
}

const AccountNames::Index* AccountNames::publish(std::uint64_t size) {
  const std::size_t bytes = size * sizeof(std::atomic<std::uint64_t>);
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CRETO_ASSERT(memory != MAP_FAILED);
  ::madvise(memory, bytes, MADV_HUGEPAGE);
  auto index = std::make_unique<Index>(Index{size - 1, static_cast<std::atomic<std::uint64_t>*>(memory)});
  for (std::uint32_t number = 1; number <= count_.load(std::memory_order_relaxed); ++number) {
    const Name& name = names_[number];
    put(*index, hash(name.org, name.kind, rest(name)), number);
  }
  const Index* before = index_.exchange(index.get(), std::memory_order_acq_rel);
  indexes_.push_back(std::move(index));
  // Its memory goes back, its addresses stay: who still looks there finds it empty and looks again in the new one.
  if (before != nullptr) ::madvise(before->entries, (before->mask + 1) * sizeof(*before->entries), MADV_DONTNEED);
  return indexes_.back().get();
}

std::string AccountNames::subject(AccountNumber number) const { return join(kind(number), rest(number)); }

std::string AccountNames::join(SubjectKind kind, std::string_view rest) {
  return std::string(prefixes[static_cast<std::size_t>(kind)]).append(rest);
}

}  // namespace creto::metering

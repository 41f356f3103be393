#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tables/chunks.h"
#include "tables/published_map.h"

namespace creto::metering {

/// An identity, subscription or session of one organization, as a dense number: stable as long as the process, but for
/// that of a session, which goes to another one once it was given back.
enum class AccountNumber : std::uint32_t { none = 0 };
enum class OrgNumber : std::uint32_t { none = 0 };

/// What kind of subject a name is; "agent:*" means every account of that kind. Copies of counters have the numbers.
enum class SubjectKind : std::uint8_t { agent, human, service, subscription, other, session };
inline constexpr std::size_t subject_kinds = 6;
SubjectKind subject_kind(std::string_view subject);
/// Of "agent:*" and its like; none of any other subject.
std::optional<SubjectKind> each_of(std::string_view subject);

/// Numbers names. Looking up takes no lock and does not allocate; 70 bytes per name. Thread-safe, but for sessions: who
/// gives numbers back sees to it that nobody looks one up meanwhile.
class AccountNames {
 public:
  AccountNames();
  ~AccountNames();

  OrgNumber find_org(std::string_view org) const;
  OrgNumber obtain_org(std::string_view org);
  std::string_view org_name(OrgNumber org) const;
  std::uint32_t org_count() const { return static_cast<std::uint32_t>(orgs_.size()); }

  AccountNumber find(OrgNumber org, std::string_view subject) const {
    return find(org, subject, [](AccountNumber) {});
  }
  /// `likely(number)` runs before the name is compared, for memory to be asked for meanwhile.
  template <class Likely>
  AccountNumber find(OrgNumber org, std::string_view subject, Likely likely) const {
    return find(org, look(org, subject), likely);
  }
  /// Likewise of a session, by its bare name.
  template <class Likely>
  AccountNumber find_session(OrgNumber org, std::string_view name, Likely likely) const {
    return find(org, look(org, SubjectKind::session, name), likely);
  }
  /// `made(number, anew)` runs before anybody can find the number, one at a time: new numbers in their order, and
  /// those that were given back.
  template <class Made>
  AccountNumber obtain(OrgNumber org, std::string_view subject, Made&& made) {
    return obtain(org, look(org, subject), made);
  }
  template <class Made>
  AccountNumber obtain_session(OrgNumber org, std::string_view name, Made&& made) {
    return obtain(org, look(org, SubjectKind::session, name), made);
  }
  /// Gives back numbers of sessions. Others get them only after the next `reuse`, so that what is still told of one
  /// until then names nobody else. Requires: nobody looks up a session.
  void give_back(std::span<const AccountNumber> sessions);
  void reuse();
  /// Every number that a session has or had.
  std::vector<AccountNumber> session_numbers() const;

  std::string subject(AccountNumber number) const;
  OrgNumber org(AccountNumber number) const { return names_[static_cast<std::uint32_t>(number)].org; }
  SubjectKind kind(AccountNumber number) const { return names_[static_cast<std::uint32_t>(number)].kind; }
  /// The subject without the prefix of its kind; `join` puts it before it again.
  std::string_view rest(AccountNumber number) const { return rest(names_[static_cast<std::uint32_t>(number)]); }
  static std::string join(SubjectKind kind, std::string_view rest);
  /// Numbers are 1 to this.
  std::uint32_t count() const { return count_.load(std::memory_order_acquire); }
  std::uint32_t in_use() const;

 private:
  /// Agents' names differ only behind their prefix, so that is what is kept; 46 bytes hold all but long mail addresses.
  struct Name {
    static constexpr std::uint8_t elsewhere = 0xFF;
    OrgNumber org{};
    SubjectKind kind{};
    std::uint8_t size = 0;  ///< or `elsewhere`: then `text` begins with the number of a long name
    std::array<char, 46> text{};
  };
  struct Org {
    std::uint64_t hash;
    std::string name;
    OrgNumber number;
  };
  /// Open addressing; an entry is the high half of the hash above the number, zero where there is none.
  struct Index {
    std::uint64_t mask;
    std::atomic<std::uint64_t>* entries;
  };
  /// The names of one part, and how many: those that stay, or sessions.
  struct Table {
    std::atomic<const Index*> index{nullptr};
    std::vector<std::unique_ptr<Index>> all{};  ///< the last one is in use
    std::uint32_t size = 0;
  };

  struct Looked {
    std::uint64_t hash;
    SubjectKind kind;
    std::string_view rest;  ///< behind the prefix of its kind
  };

  template <class Likely>
  AccountNumber find(OrgNumber org, const Looked& looked, Likely likely) const {
    const Table& table = table_of(looked.kind);
    for (const Index* index = table.index.load(std::memory_order_acquire);;) {
      for (std::uint64_t at = looked.hash & index->mask;; at = (at + 1) & index->mask) {
        const std::uint64_t entry = index->entries[at].load(std::memory_order_acquire);
        if (entry == 0) break;
        if (entry >> 32 != looked.hash >> 32) continue;
        const auto number = static_cast<std::uint32_t>(entry);
        likely(static_cast<AccountNumber>(number));
        if (is(names_[number], org, looked)) return static_cast<AccountNumber>(number);
      }
      // An index that was replaced meanwhile reads as empty.
      const Index* newest = table.index.load(std::memory_order_acquire);
      if (newest == index) return AccountNumber::none;
      index = newest;
    }
  }
  template <class Made>
  AccountNumber obtain(OrgNumber org, const Looked& looked, Made& made) {
    const auto nobody = [](AccountNumber) {};
    if (const AccountNumber known = find(org, looked, nobody); known != AccountNumber::none) return known;
    const std::scoped_lock lock(mutex_);
    if (const AccountNumber known = find(org, looked, nobody); known != AccountNumber::none) return known;
    const auto [number, anew] = name(org, looked);
    made(number, anew);
    publish(number, looked);
    return number;
  }

  const Table& table_of(SubjectKind kind) const { return tables_[kind == SubjectKind::session ? 1 : 0]; }
  Table& table_of(SubjectKind kind) { return tables_[kind == SubjectKind::session ? 1 : 0]; }
  Looked look(OrgNumber org, std::string_view subject) const;
  Looked look(OrgNumber org, SubjectKind kind, std::string_view rest) const {
    return {hash(org, kind, rest), kind, rest};
  }
  std::uint64_t hash(OrgNumber org, SubjectKind kind, std::string_view rest) const;
  std::string_view rest(const Name& name) const;
  static std::size_t long_place(const Name& name);
  bool is(const Name& name, OrgNumber org, const Looked& looked) const {
    return name.org == org && name.kind == looked.kind && rest(name) == looked.rest;
  }
  std::uint64_t hash(const Name& name) const { return hash(name.org, name.kind, rest(name)); }
  struct Named {
    AccountNumber number;
    bool anew;  ///< nobody had it before
  };
  Named name(OrgNumber org, const Looked& looked);
  void publish(AccountNumber number, const Looked& looked);
  static void put(const Index& index, std::uint64_t hash, std::uint32_t number);
  void erase(Table& table, std::uint32_t number);
  const Index* grow(Table& table, std::uint64_t size);

  const std::uint64_t secret_;  ///< so that nobody can choose names that collide
  mutable std::mutex mutex_;
  Chunks<Name, 1 << 16> names_;
  Chunks<std::string, 1024> long_names_;
  std::atomic<std::uint32_t> count_{0};
  std::array<Table, 2> tables_;
  std::vector<AccountNumber> sessions_;         ///< all that there ever were
  std::vector<AccountNumber> resting_, spare_;  ///< of them, those that were given back
  std::vector<std::size_t> spare_long_names_;
  PublishedMap<Org> orgs_;
};

}  // namespace creto::metering

#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "chunks.h"
#include "published_map.h"

namespace creto::metering {

/// An identity or subscription of one organization, as a dense number: stable as long as the process.
enum class AccountNumber : std::uint32_t { none = 0 };
enum class OrgNumber : std::uint32_t { none = 0 };

/// What kind of subject a name is; "agent:*" means every account of that kind. Copies of counters have the numbers.
enum class SubjectKind : std::uint8_t { agent, human, service, subscription, other, session };
inline constexpr std::size_t subject_kinds = 6;
SubjectKind subject_kind(std::string_view subject);
/// Of "agent:*" and its like; none of any other subject.
std::optional<SubjectKind> each_of(std::string_view subject);

/// Numbers names. Looking up takes no lock and does not allocate; 70 bytes per name. Thread-safe.
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
    const Looked looked = look(org, subject);
    for (const Index* index = index_.load(std::memory_order_acquire);;) {
      for (std::uint64_t at = looked.hash & index->mask;; at = (at + 1) & index->mask) {
        const std::uint64_t entry = index->entries[at].load(std::memory_order_acquire);
        if (entry == 0) break;
        if (entry >> 32 != looked.hash >> 32) continue;
        const auto number = static_cast<std::uint32_t>(entry);
        likely(static_cast<AccountNumber>(number));
        if (is(names_[number], org, looked)) return static_cast<AccountNumber>(number);
      }
      // An index that was replaced meanwhile reads as empty.
      const Index* newest = index_.load(std::memory_order_acquire);
      if (newest == index) return AccountNumber::none;
      index = newest;
    }
  }
  /// `made(kind)` runs for a new number before anybody can find it, one at a time, in the order of the numbers.
  template <class Made>
  AccountNumber obtain(OrgNumber org, std::string_view subject, Made&& made) {
    if (const AccountNumber known = find(org, subject); known != AccountNumber::none) return known;
    const std::scoped_lock lock(mutex_);
    if (const AccountNumber known = find(org, subject); known != AccountNumber::none) return known;
    made();
    return insert(org, subject);
  }

  std::string subject(AccountNumber number) const;
  OrgNumber org(AccountNumber number) const { return names_[static_cast<std::uint32_t>(number)].org; }
  SubjectKind kind(AccountNumber number) const { return names_[static_cast<std::uint32_t>(number)].kind; }
  /// The subject without the prefix of its kind; `join` puts it before it again.
  std::string_view rest(AccountNumber number) const { return rest(names_[static_cast<std::uint32_t>(number)]); }
  static std::string join(SubjectKind kind, std::string_view rest);
  /// Numbers are 1 to this.
  std::uint32_t count() const { return count_.load(std::memory_order_acquire); }

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

  struct Looked {
    std::uint64_t hash;
    SubjectKind kind;
    std::string_view rest;  ///< behind the prefix of its kind
  };

  Looked look(OrgNumber org, std::string_view subject) const;
  std::uint64_t hash(OrgNumber org, SubjectKind kind, std::string_view rest) const;
  std::string_view rest(const Name& name) const;
  bool is(const Name& name, OrgNumber org, const Looked& looked) const {
    return name.org == org && name.kind == looked.kind && rest(name) == looked.rest;
  }
  AccountNumber insert(OrgNumber org, std::string_view subject);
  static void put(const Index& index, std::uint64_t hash, std::uint32_t number);
  const Index* publish(std::uint64_t size);

  const std::uint64_t secret_;  ///< so that nobody can choose names that collide
  std::mutex mutex_;
  Chunks<Name, 1 << 16> names_;
  Chunks<std::string, 1024> long_names_;
  std::atomic<std::uint32_t> count_{0};
  std::atomic<const Index*> index_{nullptr};
  std::vector<std::unique_ptr<Index>> indexes_;  ///< the last one is in use
  PublishedMap<Org> orgs_;
};

}  // namespace creto::metering

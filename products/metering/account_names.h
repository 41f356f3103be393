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

/// What kind of subject a name is; "agent:*" means every account of that kind.
enum class SubjectKind : std::uint8_t { agent, human, service, subscription, other };
inline constexpr std::size_t subject_kinds = 5;
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

  AccountNumber find(OrgNumber org, std::string_view subject) const;
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

  std::uint64_t hash(OrgNumber org, SubjectKind kind, std::string_view rest) const;
  bool is(const Name& name, OrgNumber org, SubjectKind kind, std::string_view rest) const;
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

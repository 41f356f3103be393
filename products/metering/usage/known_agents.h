#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "creto/common/time.h"
#include "ledger/block_reader.h"
#include "limits/account_names.h"
#include "tables/chunks.h"
#include "tables/number_table.h"

namespace creto::metering {

/// Whom an agent's use counts for, as it was told once, and for how long that holds: one cache line.
struct alignas(64) KnownAgent {
  static constexpr std::size_t accounts_max = 5;

  KeyHash agent;  ///< of organization and name
  AttributionNumber attribution = 0;
  std::uint32_t version = 0;  ///< of who told it
  // Seconds since 1970, rounded so that they say less rather than more.
  std::uint32_t asked_s = 0, good_until_s = 0;  ///< when it is now
  std::uint32_t from_s = 0, until_s = 0;        ///< when it was used
  std::uint32_t needs = 0;                      ///< of who bills it, as the intake numbers them; 0: none
  /// Up to the first `none`; all none: they are more than fit here, and have to be looked up.
  std::array<AccountNumber, accounts_max> accounts{};

  bool holds(std::uint32_t now_version, std::uint32_t when_s, std::uint32_t now_s) const {
    return attribution != 0 && version == now_version && now_s >= asked_s && now_s < good_until_s && when_s >= from_s &&
           when_s < until_s;
  }
};
static_assert(sizeof(KnownAgent) == 64);

/// Known agents by the keyed hash of their names, in which two names never meet. Not thread-safe.
class KnownAgents {
 public:
  // Two steps through memory that is rarely in the cache; each is begun for many before the next.
  void prefetch(const KeyHash& agent) const { numbers_.prefetch(short_of(agent)); }
  void prefetch_likely(const KeyHash& agent) const {
    if (const std::uint32_t number = numbers_.likely(short_of(agent))) __builtin_prefetch(&agents_[number - 1]);
  }
  const KnownAgent* find(const KeyHash& agent) const {
    const std::uint32_t number = number_of(agent);
    return number == 0 ? nullptr : &agents_[number - 1];
  }
  /// Replaces what is known of the same agent.
  void put(const KnownAgent& known) {
    if (const std::uint32_t number = number_of(known.agent)) {
      agents_[number - 1] = known;
      return;
    }
    agents_.make(known);
    numbers_.insert(short_of(known.agent), static_cast<std::uint32_t>(agents_.size()));
  }

 private:
  static std::uint32_t short_of(const KeyHash& agent) { return static_cast<std::uint32_t>(agent.low); }
  std::uint32_t number_of(const KeyHash& agent) const {
    return numbers_.find(short_of(agent), [&](std::uint32_t number) { return agents_[number - 1].agent == agent; });
  }

  NumberTable numbers_;
  Chunks<KnownAgent, 1 << 15> agents_;
};

}  // namespace creto::metering

#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "amounts.h"
#include "creto/common/id.h"
#include "creto/common/time.h"
#include "limits/account_names.h"

namespace creto::metering {

/// What a reservation holds, and where.
struct Hold {
  struct Part {
    AccountNumber account;
    std::uint32_t position;  ///< of the counter
  };
  std::uint64_t content = 0;  ///< a hash of what was asked
  std::int64_t units = 0;
  NanoMoney cost = 0;
  bool accounted = true;  ///< the cost is in the accounting currency
  std::int64_t expires_ns = 0;
  std::vector<AccountNumber> accounts;
  std::vector<Part> parts;
};

/// Open reservations by id and by expiry. A hold that ends leaves its memory to the next one, so that in the long run
/// none is asked for. Thread-safe: the caller locks the shard of an id, before the accounts that it holds.
class Holds {
 public:
  class Shard {
   public:
    std::mutex mutex;

    // --- under the mutex
    const Hold* find(const ReservationId& id) const;
    /// A hold to fill, whose lists are empty. Requires: the id has none.
    Hold& open(const ReservationId& id, std::int64_t expires_ns);
    /// Lets the hold of `id` last until then, where it would end sooner. Requires: there is one.
    void extend(const ReservationId& id, std::int64_t expires_ns);
    /// Ends the hold of `id` after `visit(hold)`; false where there is none.
    template <class Visit>
    bool end(const ReservationId& id, Visit visit) {
      auto node = open_.extract(id);
      if (node.empty()) return false;
      visit(std::as_const(node.mapped()));
      recycle(std::move(node));
      return true;
    }
    /// Ends those whose time is over; returns how many.
    template <class Visit>
    std::size_t expire(std::int64_t now_ns, Visit visit) {
      std::size_t ended = 0;
      while (!by_expiry_.empty() && by_expiry_.front().ns <= now_ns) {
        const Due due = pop_due();
        const auto found = open_.find(due.id);
        if (found == open_.end() || found->second.expires_ns != due.ns) continue;  // ended before
        end(due.id, visit);
        ++ended;
      }
      return ended;
    }
    std::size_t size() const { return open_.size(); }

    /// No hold ends before this; read without the mutex.
    std::int64_t earliest() const { return earliest_.load(std::memory_order_acquire); }

   private:
    using Table = std::unordered_map<ReservationId, Hold>;
    struct Due {
      std::int64_t ns;
      ReservationId id;
      bool operator>(const Due& other) const { return ns > other.ns; }
    };
    static constexpr std::size_t spare_max = 1024;

    Due pop_due();
    void forget_ended();
    void note_earliest();
    void recycle(Table::node_type node);

    Table open_;
    std::vector<Due> by_expiry_;  ///< a heap; also of holds that have ended
    std::vector<Table::node_type> spare_;
    std::atomic<std::int64_t> earliest_{INT64_MAX};
  };

  Shard& of(const ReservationId& id) { return shards_[std::hash<ReservationId>()(id) % shards_.size()]; }
  std::array<Shard, 64>& shards() { return shards_; }

 private:
  std::array<Shard, 64> shards_;
};

}  // namespace creto::metering

#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "creto/authz/authz.h"
#include "decision_cache.h"
#include "hash.h"
#include "snapshot.h"

/// The bytes of a segment of the decision log: docs/formats.md, "Decision log". Pure; the blocks that are written and
/// read here are the records of a journal.
namespace creto::authz {

/// What decided.
enum class DecidedBy : std::uint8_t {
  policies,
  extension,  ///< which was stricter than they
  token,      ///< the override token does not hold
  request,    ///< it is malformed
  trouble,    ///< policies or entities cannot be read
  rate,       ///< of a permit, which had no room
};
std::string_view to_string(DecidedBy by);

/// `Decision::index()` of each kind.
enum class Outcome : std::uint8_t { allow, deny, requires_oversight, quota_exceeded, rate_limited };
std::string_view to_string(Outcome outcome);

/// The items of a block, by their first byte.
enum class Item : std::uint8_t {
  header = 1,
  text,
  policy,
  entity,
  state,
  set,
  chain,
  request,
  decision,
  refused,
  end,
};

/// A `reason` is cut here.
inline constexpr std::size_t reason_bytes_max = 4'096;

using SourceEntities = std::list<Entity>;

/// A decision as the service hands it over; everything is borrowed.
struct LoggedDecision {
  Instant at{};
  Outcome outcome = Outcome::allow;
  Outcome said = Outcome::allow;  ///< by the policies alone
  DecidedBy by = DecidedBy::policies;
  bool cached = false;
  bool context_left_out = false;
  BytesView key;  ///< `CacheKey::written`
  std::size_t source_versions = 0;
  const OrgState* state = nullptr;  ///< null: the organization has stored nothing
  bool state_unknown = false;       ///< true: nobody knows what was in force
  std::uint64_t entities = 0;       ///< the name of `source_entities`; 0: there are none
  const SourceEntities* source_entities = nullptr;
  std::vector<const cedar::PlannedPolicy*> policies;  ///< of `state`, those that determined it
  std::vector<OverrideGrant::Lift> lifts;             ///< of its override token
  std::string_view reason;                            ///< who else refused; the oversight policies that are asked for
  std::optional<Hash256> arguments_hash;
};

/// Writes one segment, block by block. Names, policies, entities and requests are written once and then referred to.
/// One thread.
class SegmentWriter {
 public:
  SegmentWriter(const ByteArray<16>& log, std::uint64_t sequence, Instant created);

  void add(const LoggedDecision& decision);
  /// So many decisions were refused because they could not be logged.
  void add_refused(std::uint64_t count);
  void add_end(bool recovered);

  std::size_t block_size() const { return block_.size(); }
  std::uint64_t decisions() const { return decisions_; }
  /// What was added since, as blocks of a size for a journal.
  std::vector<Bytes> take();

 private:
  struct TextHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return hash_text(text); }
  };
  /// What was written, so that it is referred to and not written again. Forgets everything where it grows too large:
  /// then it is written anew, under another number.
  class Numbers {
   public:
    const std::uint32_t* find(std::string_view written) const;
    void add(std::string_view written, std::uint32_t number);

   private:
    std::unordered_map<std::string, std::uint32_t, TextHash, std::equal_to<>> known_;
    std::size_t bytes_ = 0;
  };
  struct Known {
    std::shared_ptr<const void> kept;  ///< so that its address is nobody else's
    std::uint32_t number = 0;
    std::uint64_t seen = 0;
    bool present = false;  ///< in the last state
  };
  struct Org {
    std::map<std::int64_t, std::uint32_t> versions, unknown;  ///< to their states
    std::unordered_map<const void*, Known> policies, entities;
    std::uint64_t round = 0;
    std::optional<std::uint32_t> last;
  };

  void begin(Item item);
  void number(std::uint64_t value);
  void signed_number(std::int64_t value);
  std::uint32_t text(std::string_view text);
  void encode(Bytes& out, const Value& value);
  void encode(Bytes& out, const Attributes& attributes);
  void encode(Bytes& out, const EntityUid& uid);
  std::uint32_t entity(const Entity& entity);
  std::uint32_t state(Org& org, std::string_view name, std::int64_t version, const LoggedDecision& decision);
  std::uint32_t source_set(std::uint64_t name, const SourceEntities* entities);
  std::uint32_t request(const LoggedDecision& decision);
  std::uint32_t chain(const DecodedKey& key);

  Bytes block_;
  std::vector<std::size_t> cuts_;
  Numbers texts_, entities_, chains_, requests_;
  std::uint32_t text_count_ = 0, policy_count_ = 0, entity_count_ = 0, state_count_ = 0, set_count_ = 0,
                chain_count_ = 0, request_count_ = 0;
  std::map<std::string, Org, std::less<>> orgs_;
  std::unordered_map<std::uint64_t, std::uint32_t> sets_;
  Instant last_at_{};
  std::uint64_t decisions_ = 0;
};

/// Reads the blocks of one segment in order. Texts borrow from the blocks, which must outlive it. One thread.
///
/// Errors of everything here: invalid_input, naming the item, for what the format does not allow.
class SegmentReader {
 public:
  struct Header {
    ByteArray<16> log{};
    std::uint64_t sequence = 0;
    Instant created{};
  };
  struct LoggedPolicy {
    std::string_view id, text;
  };
  struct State {
    std::string_view org;
    std::int64_t version = 0;
    bool unknown = false;
    std::optional<std::uint32_t> base;
    std::vector<std::uint32_t> policies_added, policies_removed, entities_added, entities_removed;
  };
  struct Chain {
    std::vector<std::string_view> links;  ///< as given; may be empty
    EntityUid principal;
    Value delegation{false};
  };
  struct Lift {
    std::string_view forbid, oversight_policy;
  };
  struct Decided {
    Instant at{};
    Outcome outcome = Outcome::allow, said = Outcome::allow;
    DecidedBy by = DecidedBy::policies;
    bool cached = false;
    std::uint32_t request = 0, state = 0, set = 0;  ///< set 0: no entities of sources
    std::vector<std::uint32_t> policies;
    std::vector<Lift> lifts;
    std::string_view reason;
    std::optional<Hash256> arguments_hash;
  };
  /// Made ready for the engine; reused from request to request.
  struct Request {
    std::string_view org;
    const Chain* chain = nullptr;
    EntityUid action, resource;
    Attributes context;  ///< sorted by name, with `delegation`
    bool context_left_out = false;
  };

  /// Gives each decision to `use`, whose error ends the reading. What is in the block stays known for later ones.
  Result<> read(BytesView block, const std::function<Result<>(const Decided&)>& use);

  const std::optional<Header>& header() const { return header_; }
  bool ended() const { return ended_; }
  bool recovered() const { return recovered_; }
  std::uint64_t decisions() const { return decisions_; }
  std::uint64_t refused() const { return refused_; }
  Instant first_at() const { return first_at_; }
  Instant last_at() const { return latest_at_; }

  /// Numbers are those of a `Decided` or `State` that was read: in range.
  const std::vector<LoggedPolicy>& policies() const { return policies_; }
  const std::vector<std::shared_ptr<const Entity>>& entities() const { return entities_; }
  const std::vector<State>& states() const { return states_; }
  const std::vector<std::vector<std::uint32_t>>& sets() const { return sets_; }  ///< set n at n - 1
  Result<> request(std::uint32_t number, Request& into) const;

 private:
  class Cursor;

  Result<> read_item(Cursor& in, const std::function<Result<>(const Decided&)>& use);
  Result<> read_state(Cursor& in);
  Result<> read_decision(Cursor& in);

  std::optional<Header> header_;
  std::vector<std::string_view> texts_;
  std::vector<LoggedPolicy> policies_;
  std::vector<std::shared_ptr<const Entity>> entities_;
  std::vector<State> states_;
  std::vector<std::vector<std::uint32_t>> sets_;
  std::deque<Chain> chains_;
  std::vector<BytesView> requests_;
  Decided decided_;
  std::int64_t last_ns_ = 0;
  Instant first_at_ = Instant::max(), latest_at_ = Instant::min();
  std::uint64_t decisions_ = 0, refused_ = 0;
  bool ended_ = false, recovered_ = false;
};

}  // namespace creto::authz

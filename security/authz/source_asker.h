#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "authz_probe.h"
#include "creto/authz/authz.h"

namespace creto::authz {

/// Asks one product on threads of its own, a few: who waits for an answer waits as long as he may and no longer,
/// whatever the product does. While all of these threads hang in it nobody waits at all. Thread-safe.
class SourceAsker {
 public:
  static constexpr std::size_t threads_max = 4;

  /// All references must outlive it.
  SourceAsker(const ResourceSource& source, const Clock& clock, AuthzProbe::OfSource counters)
      : source_(source), clock_(clock), counters_(counters) {}
  /// Waits for what the product has begun.
  ~SourceAsker();

  const ResourceSource& source() const { return source_; }

  /// Waits for `budget` of the source at most, and not beyond the deadline of `ctx`, of which the organization counts
  /// too. Errors: the product's; timeout where there was no answer by then; unavailable where it answers nobody.
  Result<std::optional<Entity>> find(const Context& ctx, const EntityUid& uid);

 private:
  using Answer = Result<std::optional<Entity>>;
  struct Question {
    Context ctx;
    EntityUid uid;
    bool begun = false;
    bool given_up = false;  ///< nobody waits for the answer
    std::optional<Answer> answer;
    std::condition_variable answered;
  };

  Answer ask(const Question& question) const;
  void work();

  const ResourceSource& source_;
  const Clock& clock_;
  const AuthzProbe::OfSource counters_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::shared_ptr<Question>> waiting_;
  std::size_t idle_ = 0;
  std::size_t hanging_ = 0;  ///< threads that ask what nobody waits for any more
  bool stopping_ = false;
  std::vector<std::jthread> threads_;
};

}  // namespace creto::authz

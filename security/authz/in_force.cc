#include "in_force.h"

#include <algorithm>
#include <utility>

#include "creto/common/assert.h"
#include "entity_rules.h"
#include "store.h"

namespace creto::authz {
namespace {

Error error(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

}  // namespace

Result<> InForce::start(DecisionLog* log) {
  log_ = log;
  const std::lock_guard lock(writing_);
  const Monotonic begin = clock_.monotonic();
  CRETO_TRY(reload(Context{}));
  is_fresh_as_of(begin);
  return begin_histories();
}

Result<> InForce::amend(const std::function<Result<>(Snapshot& next)>& fn) {
  const std::lock_guard lock(writing_);
  auto next = std::make_shared<Snapshot>(*snapshots_.current());
  CRETO_TRY(fn(*next));
  put_in_force(std::move(next));
  return {};
}

Result<> InForce::change(const Context& ctx, const Change& fn) {
  const std::lock_guard lock(writing_);
  for (int attempt = 0; attempt < 3; ++attempt) {
    const auto snapshot = snapshots_.current();
    const OrgState* before = snapshot->org(ctx.org);
    std::shared_ptr<OrgState> state;
    bool behind = false, changed = true;
    auto done = database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
      state = before ? std::make_shared<OrgState>(*before) : std::make_shared<OrgState>();
      const std::int64_t stored = CRETO_TRY(store::version(tx, ctx.org));
      behind = snapshot->stale || stored != state->version;
      if (behind) return error(ErrorKind::conflict, "another process has changed the policies");
      state->version = stored + 1;
      changed = CRETO_TRY(fn(tx, *state));
      if (!changed) return {};
      const std::int64_t version = CRETO_TRY(store::bump(tx, ctx.org));
      CRETO_ASSERT(version == state->version);
      return {};
    });
    if (done) {
      if (changed) publish(ctx.org, std::move(state));
      return {};
    }
    if (behind) {
      CRETO_TRY(reload_or_deny(ctx));
      continue;
    }
    const ErrorKind kind = done.error().kind();
    if (kind == ErrorKind::unavailable || kind == ErrorKind::timeout || kind == ErrorKind::internal) {
      (void)reload_or_deny(ctx);
    }
    return done;
  }
  return error(ErrorKind::unavailable, "other processes change the policies all the time");
}

void InForce::put_in_force(std::shared_ptr<const Snapshot> next) {
  if (log_) {
    const auto before = snapshots_.current();
    for (const auto& [org, state] : next->orgs)
      if (before->org(org) != state.get()) log_->publish(org, state);
  }
  snapshots_.publish(std::move(next));
}

void InForce::publish(const std::string& org, std::shared_ptr<const OrgState> state) {
  auto next = std::make_shared<Snapshot>(*snapshots_.current());
  next->orgs[org] = std::move(state);
  put_in_force(std::move(next));
}

Result<> InForce::reload(const Context& ctx) {
  const auto before = snapshots_.current();
  auto stored = CRETO_TRY(sql::read(database_, ctx, [](sql::Tx& tx) { return store::load_all(tx); }));
  auto next = std::make_shared<Snapshot>();
  next->extensions = before->extensions;
  next->sources = before->sources;
  for (auto& [org, rows] : stored) {
    const OrgState* old = before->org(org);
    auto state = std::make_shared<OrgState>();
    state->version = rows.version;
    state->policies_version = rows.policies_version;
    state->policies = CRETO_TRY(editor_.reload(std::move(rows.policies), old));
    if (rows.schema) state->schema = CRETO_TRY(load_schema(*std::move(rows.schema)));
    load_entities(*state, std::move(rows.entities));
    state->revoked = std::make_shared<const std::map<RequestId, Instant>>(std::move(rows.revoked));
    state->plan();
    next->orgs.emplace(org, std::move(state));
  }
  put_in_force(std::move(next));
  return {};
}

Result<> InForce::begin_histories() {
  const auto snapshot = snapshots_.current();
  for (const auto& [org, state] : snapshot->orgs) {
    if (state->policies_version != 0 || state->version == 0) continue;
    PolicyVersion first{.version = state->version,
                        .what = "policies_found",
                        .policies = static_cast<std::int64_t>(state->policies.size()),
                        .hash = state->policies.hash(nullptr)};
    CRETO_TRY(database_.transaction(Context{}, [&](sql::Tx& tx) -> Result<> {
      first.made_at = tx.now();
      return store::put_version(tx, org, first);
    }));
    auto next = std::make_shared<OrgState>(*state);
    next->policies_version = state->version;
    publish(org, std::move(next));
  }
  return {};
}

Result<> InForce::reload_or_deny(const Context& ctx) {
  Context fresh = ctx;
  fresh.deadline = Monotonic::max();
  auto done = reload(fresh);
  if (!done) {
    probe_.stale(ctx, done.error());
    auto next = std::make_shared<Snapshot>(*snapshots_.current());
    next->stale = true;
    put_in_force(std::move(next));
  }
  return done;
}

Result<> InForce::refresh(const Context& ctx) {
  const std::lock_guard lock(writing_);
  const auto snapshot = snapshots_.current();
  const Monotonic begin = clock_.monotonic();
  const auto stored = CRETO_TRY(sql::read(database_, ctx, [](sql::Tx& tx) { return store::versions(tx); }));
  const bool same = !snapshot->stale && std::all_of(stored.begin(), stored.end(), [&](const auto& entry) {
    const OrgState* state = snapshot->org(entry.first);
    return state && state->version == entry.second;
  });
  if (!same) CRETO_TRY(reload(ctx));
  is_fresh_as_of(begin);
  return {};
}

bool InForce::is_stale(const Snapshot& snapshot) const {
  if (snapshot.stale) return true;
  const Monotonic until = fresh_until_.load(std::memory_order_relaxed);
  return until != Monotonic::max() && clock_.monotonic() > until;
}
void InForce::is_fresh_as_of(Monotonic begin) {
  if (fresh_for_ > Nanos(0)) fresh_until_.store(begin + fresh_for_, std::memory_order_relaxed);
}

}  // namespace creto::authz

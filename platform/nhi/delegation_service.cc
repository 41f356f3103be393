#include "nhi_service.h"

#include <fmt/format.h>

#include <algorithm>

#include "creto/common/names.h"
#include "creto/io/idempotency.h"
#include "delegation.h"

namespace creto::nhi {

/// That the delegator's key signed `link`, which was valid then. Bytes are rebuilt from fields that admit one spelling
/// only.
Result<> NhiService::verify_link(const Context& ctx, const Delegation& link) {
  auto delegator = CRETO_TRY(known(ctx, link.delegator));
  const PublicKeys* keys = delegator->find(link.key_id);
  if (keys == nullptr)
    return refuse(ErrorKind::signature_invalid,
                  fmt::format("`{}` has no key `{}`", link.delegator.text(), link.key_id.substr(0, 64)));
  if (link.created_at + options_.clock_skew < keys->valid_from || link.created_at >= keys->valid_until)
    return refuse(ErrorKind::signature_invalid,
                  fmt::format("key `{}` was not valid at the delegation's time", link.key_id));
  std::string bytes = CRETO_TRY(link.signed_bytes());
  return keys->signing.verify(as_bytes(bytes), link.signature, as_bytes(delegation_context));
}

Result<Delegation> NhiService::create_delegation(const Context& ctx, const NewDelegation& wanted) {
  Instant now = clock_.now();
  if (!ctx.caller) return refuse(ErrorKind::unauthenticated, "the caller is not known");
  CRETO_TRY(check_speaks_for(ctx, wanted.delegator));
  auto delegator = CRETO_TRY(acting(ctx, wanted.delegator));
  auto delegatee = CRETO_TRY(acting(ctx, wanted.delegatee));
  if (delegatee->agent.type == AgentType::human)
    return refuse(ErrorKind::invalid_input, "`delegatee` must be an agent or a service");

  bool signed_elsewhere = wanted.signature.has_value();
  std::vector<std::string> permissions = wanted.permissions;
  if (!signed_elsewhere) {
    std::ranges::sort(permissions);
    permissions.erase(std::unique(permissions.begin(), permissions.end()), permissions.end());
  }
  CRETO_TRY(check_permissions(permissions));
  if (signed_elsewhere && (!wanted.id || !wanted.created_at || wanted.key_id.empty()))
    return refuse(ErrorKind::invalid_input, "a signed delegation needs `id`, `created_at` and `key_id`");
  if (!signed_elsewhere && delegator->agent.type == AgentType::human)
    return refuse(ErrorKind::invalid_input, "a human's delegation needs `signature`, made on his side");
  Instant created_at = wanted.created_at.value_or(now);
  if (created_at > now + options_.clock_skew || created_at < now - options_.clock_skew)
    return refuse(ErrorKind::invalid_input, "`created_at` is not within five minutes of the server's clock");
  if (wanted.expires_at <= now) return refuse(ErrorKind::invalid_input, "`expires_at` must lie ahead");

  Chain above{delegator->agent, {}, {}};
  std::optional<DelegationId> parent = wanted.parent;
  if (wanted.delegator.is_agent()) {
    above = CRETO_TRY(get_delegation_chain(ctx, wanted.delegator, wanted.parent));
    parent = above.delegations.back().id;
  } else if (wanted.parent) {
    return refuse(ErrorKind::invalid_input, "`parent` is for an agent's delegation");
  }

  Delegation delegation{wanted.id ? *wanted.id : DelegationId::fresh(now),
                        ctx.org,
                        wanted.delegator,
                        wanted.delegatee,
                        parent,
                        std::move(permissions),
                        created_at,
                        wanted.expires_at,
                        wanted.key_id,
                        wanted.signature.value_or(Signature()),
                        false};
  std::vector<Delegation> links = above.delegations;
  links.push_back(delegation);
  CRETO_TRY(check_structure(above.root.identity, links, now));
  if (signed_elsewhere) {
    CRETO_TRY(verify_link(ctx, delegation));
    // `created_at` is what he says: by it alone keys that have just ended would go on for the minutes of skew.
    if (const PublicKeys* keys = delegator->find(delegation.key_id); !keys || !keys->in_force(now))
      return refuse(ErrorKind::signature_invalid, fmt::format("key `{}` has ended", legible(delegation.key_id, 64)));
  } else {
    delegation.key_id = delegator->keys.front().key_id;
    auto keys = CRETO_TRY(private_keys(ctx, *delegator, delegation.key_id));
    std::string bytes = CRETO_TRY(delegation.signed_bytes());
    delegation.signature = CRETO_TRY(keys->signing.sign(as_bytes(bytes), as_bytes(delegation_context)));
  }

  return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Delegation> {
    return io::once(
        tx, ctx, "nhi.create_delegation", idempotency_window,
        [&]() -> Result<Delegation> {
          bool inserted = CRETO_TRY(store::insert_delegation(tx, delegation));
          if (!inserted) {
            auto there = CRETO_TRY(store::find_delegation(tx, ctx.org, delegation.id));
            std::string ours = CRETO_TRY(delegation.signed_bytes());
            std::string theirs = CRETO_TRY(there->signed_bytes());
            if (ours == theirs) return *std::move(there);
            return refuse(ErrorKind::conflict,
                          fmt::format("delegation `{}` exists with other content", delegation.id.to_string()));
          }
          CRETO_TRY(audit::record(tx, ctx, record_of(ctx, "delegation_created", delegation.delegatee)));
          CRETO_TRY(forget_after(tx));
          return delegation;
        },
        [](const Delegation& made) { return made.id.to_string(); },
        [&](std::string_view text) -> Result<Delegation> {
          auto id = CRETO_TRY(DelegationId::parse(text));
          auto there = CRETO_TRY(store::find_delegation(tx, ctx.org, id));
          if (!there) return refuse(ErrorKind::not_found, fmt::format("there is no delegation `{}`", text));
          return *std::move(there);
        });
  });
}

/// Follows parents from `last` to the root, then checks everything that must hold.
Result<Chain> NhiService::chain_from(const Context& ctx, Delegation last) {
  std::vector<Delegation> links = {std::move(last)};
  while (links.back().parent) {
    if (links.size() >= delegation_chain_max_depth)
      return refuse(ErrorKind::permission_denied,
                    fmt::format("the chain is deeper than {}", delegation_chain_max_depth));
    auto parent = CRETO_TRY(sql::read(
        database_, ctx, [&](sql::Tx& tx) { return store::find_delegation(tx, ctx.org, *links.back().parent); }));
    if (!parent) return refuse(ErrorKind::permission_denied, "a delegation of the chain is missing");
    links.push_back(*std::move(parent));
  }
  std::ranges::reverse(links);
  auto root = CRETO_TRY(known(ctx, links.front().delegator));
  Chain chain{root->agent, std::move(links), root->agent.expires_at};
  CRETO_TRY(verify_delegation(ctx, chain));
  for (const Delegation& link : chain.delegations) {
    auto holder = CRETO_TRY(known(ctx, link.delegatee));
    chain.valid_until = std::min({chain.valid_until, link.expires_at, holder->agent.expires_at});
  }
  return chain;
}

Result<Chain> NhiService::load_chain(const Context& ctx, const Agent& agent, const std::optional<DelegationId>& leaf) {
  if (leaf) {
    auto link =
        CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find_delegation(tx, ctx.org, *leaf); }));
    if (!link || link->delegatee != agent.identity)
      return refuse(ErrorKind::not_found,
                    fmt::format("there is no delegation `{}` to `{}`", leaf->to_string(), agent.identity.text()));
    return chain_from(ctx, *std::move(link));
  }
  // Only what leads back to the owner counts by default: otherwise anybody could change for whom an agent acts.
  auto candidates = CRETO_TRY(sql::read(
      database_, ctx, [&](sql::Tx& tx) { return store::delegations_to(tx, ctx.org, agent.identity, clock_.now()); }));
  std::optional<Error> reason;
  for (Delegation& candidate : candidates) {
    auto chain = chain_from(ctx, std::move(candidate));
    if (chain && chain->root.identity == agent.owner) return chain;
    if (!chain && category_of(chain.error().kind()) == ErrorCategory::transient) return chain;
    if (!chain && !reason) reason = chain.error();
  }
  Error refusal = refuse(ErrorKind::permission_denied,
                         fmt::format("`{}` has no valid delegation from its owner", agent.identity.text()));
  if (reason) refusal = std::move(refusal).with_cause(*std::move(reason));
  return refusal;
}

Result<Chain> NhiService::get_delegation_chain(const Context& ctx, const Identity& identity,
                                               const std::optional<DelegationId>& leaf) {
  std::string key = cache_key(ctx, identity.text() + "\n" + (leaf ? leaf->to_string() : ""));
  if (auto found = chains_.find(key); found && found->valid_until > clock_.now()) return *found;
  std::uint64_t generation = chains_.generation();
  auto agent = CRETO_TRY(acting(ctx, identity));
  if (!identity.is_agent()) {
    Chain self{agent->agent, {}, agent->agent.expires_at};
    return self;
  }
  Chain chain = CRETO_TRY(load_chain(ctx, agent->agent, leaf));
  return *chains_.put(key, std::move(chain), generation);
}

/// The chain that ended with `last`, between its beginning and its end: everything but what changed since must hold.
Result<PastChain> NhiService::past_chain_from(const Context& ctx, store::PastDelegation last) {
  const Instant made = last.link.created_at;
  Instant ends_at = last.ends_at;
  std::vector<Delegation> links = {std::move(last.link)};
  while (links.back().parent) {
    if (links.size() >= delegation_chain_max_depth)
      return refuse(ErrorKind::permission_denied,
                    fmt::format("the chain is deeper than {}", delegation_chain_max_depth));
    auto parent = CRETO_TRY(sql::read(
        database_, ctx, [&](sql::Tx& tx) { return store::find_past_delegation(tx, ctx.org, *links.back().parent); }));
    if (!parent) return refuse(ErrorKind::permission_denied, "a delegation of the chain is missing");
    ends_at = std::min(ends_at, parent->ends_at);
    links.push_back(std::move(parent->link));
  }
  std::ranges::reverse(links);
  auto root = CRETO_TRY(known(ctx, links.front().delegator));
  ends_at = std::min(ends_at, root->agent.expires_at);
  for (Delegation& link : links) {
    auto holder = CRETO_TRY(known(ctx, link.delegatee));
    ends_at = std::min(ends_at, holder->agent.expires_at);
    CRETO_TRY(verify_link(ctx, link));
    link.revoked = false;  // as it was
  }
  CRETO_TRY(check_structure(root->agent.identity, links, made));
  return PastChain{Chain{root->agent, std::move(links), ends_at}, made, ends_at};
}

Result<PastChain> NhiService::get_past_delegation_chain(const Context& ctx, const Identity& identity, Instant when) {
  auto agent = CRETO_TRY(known(ctx, identity));
  if (!identity.is_agent()) return PastChain{Chain{agent->agent, {}, agent->agent.expires_at}};
  auto candidates = CRETO_TRY(
      sql::read(database_, ctx, [&](sql::Tx& tx) { return store::past_delegations_to(tx, ctx.org, identity, when); }));
  std::optional<PastChain> found;
  // Nothing begins or ends between these.
  Instant from = Instant::min(), until = Instant::max();
  for (store::PastDelegation& candidate : candidates) {
    auto past = past_chain_from(ctx, std::move(candidate));
    if (!past && category_of(past.error().kind()) == ErrorCategory::transient) return past;
    if (!past || past->chain.root.identity != agent->agent.owner) continue;
    for (const Instant change : {past->from, past->until}) {
      if (change <= when) from = std::max(from, change);
      if (change > when) until = std::min(until, change);
    }
    // The newest that held then; else the last that did; else, of an event from before any, the first.
    const auto rank = [&](const PastChain& one) {
      if (one.from > when) return std::pair(0, Instant::min());
      return one.until > when ? std::pair(2, one.from) : std::pair(1, one.until);
    };
    if (!found || rank(*past) > rank(*found)) found = *std::move(past);
  }
  if (!found)
    return refuse(ErrorKind::permission_denied,
                  fmt::format("`{}` never had a delegation from its owner", identity.text()));
  found->from = from;
  found->until = until;
  return *std::move(found);
}

Result<> NhiService::verify_delegation(const Context& ctx, const Chain& chain) {
  Instant now = clock_.now();
  CRETO_TRY(check_structure(chain.root.identity, chain.delegations, now));
  auto root = CRETO_TRY(acting(ctx, chain.root.identity));
  for (const Delegation& link : chain.delegations) {
    if (link.org != ctx.org) return refuse(ErrorKind::permission_denied, "the chain is another organization's");
    CRETO_TRY(acting(ctx, link.delegatee));
    CRETO_TRY(verify_link(ctx, link));
    auto stored =
        CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find_delegation(tx, ctx.org, link.id); }));
    if (!stored)
      return refuse(ErrorKind::permission_denied,
                    fmt::format("delegation `{}` is not registered", link.id.to_string()));
    if (stored->revoked)
      return refuse(ErrorKind::permission_denied, fmt::format("delegation `{}` is revoked", link.id.to_string()));
  }
  return {};
}

Result<> NhiService::revoke_delegation(const Context& ctx, const DelegationId& id) {
  return database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    auto link = CRETO_TRY(store::find_delegation(tx, ctx.org, id));
    if (!link) return refuse(ErrorKind::not_found, fmt::format("there is no delegation `{}`", id.to_string()));
    bool may = ctx.caller && ctx.caller->kind() == Identity::Kind::service;
    std::optional<Delegation> above = link;
    for (std::size_t depth = 0; ctx.caller && !may && above && depth < delegation_chain_max_depth; ++depth) {
      may = above->delegator == *ctx.caller;
      if (!above->parent) break;
      above = CRETO_TRY(store::find_delegation(tx, ctx.org, *above->parent));
    }
    if (!may)
      return refuse(ErrorKind::permission_denied,
                    fmt::format("`{}` is not above delegation `{}`", ctx.caller_text(), id.to_string()));
    if (link->revoked) return {};
    CRETO_TRY(store::revoke_delegation(tx, ctx.org, id, clock_.now()));
    CRETO_TRY(audit::record(tx, ctx, record_of(ctx, "delegation_revoked", link->delegatee)));
    return forget_after(tx);
  });
}

}  // namespace creto::nhi

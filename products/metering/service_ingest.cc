#include "service.h"

#include <fmt/format.h>

#include <algorithm>

#include "creto/contracts/events.h"
#include "creto/crypto/hash.h"
#include "creto/io/bus.h"
#include "service_words.h"

namespace creto::metering {
namespace {

constexpr std::size_t batch_max = 1'000;

}  // namespace

/// An event that may be taken.
struct MeteringService::Candidate {
  UsageEvent event;
  StoredEvent stored;
  DelegationChain chain;  ///< whom it counts for beside the agent
};

std::string MeteringService::subscription_at(const std::string& org, const Identity& agent,
                                             const DelegationChain& chain, Instant when) const {
  const auto of = [&](const Identity& identity) -> const Subscription* {
    const auto found = subscriptions_.find({org, identity.text()});
    if (found == subscriptions_.end()) return nullptr;
    const auto active = std::ranges::find_if(found->second, [&](const Subscription& s) { return s.active_at(when); });
    return active == found->second.end() ? nullptr : &*active;
  };
  const Subscription* found = of(agent);
  for (auto ancestor = chain.rbegin(); found == nullptr && ancestor != chain.rend(); ++ancestor) found = of(*ancestor);
  return found == nullptr ? std::string() : found->id.to_string();
}

Result<MeteringService::Candidate> MeteringService::prepare(const Context& ctx, UsageEvent event, bool trusted) const {
  const EventEnvelope& envelope = event.envelope;
  const bool known = CRETO_TRY(nhi_.is_registered(ctx, envelope.agent));
  if (!known) {
    return error(ErrorKind::not_found, fmt::format("agent `{}` is not registered", envelope.agent.text()))
        .with_retryable(true);
  }
  if (!trusted) {
    if (!envelope.signature) return error(ErrorKind::signature_invalid, "event: is not signed").with_number(401);
    const std::string& algorithm = envelope.signature->algorithm;
    if (algorithm != "ml-dsa-65" && algorithm != "hybrid-ed25519-ml-dsa-65") {
      return error(ErrorKind::signature_invalid,
                   fmt::format("event: `{}` is no signature for events", algorithm.substr(0, 64)))
          .with_number(401);
    }
    auto verified =
        nhi_.verify(ctx, envelope.agent, as_bytes(event.signed_bytes), *envelope.signature, event_signature_context);
    if (!verified) {
      if (verified.error().category() == ErrorCategory::transient) return verified.error();
      return error(ErrorKind::signature_invalid, "event: the signature does not verify")
          .with_number(401)
          .with_cause(verified.error());
    }
  }
  const Instant now = clock_.now();
  const Instant when = envelope.timestamp.instant();
  if (when < now - options_.event_age_max || when > now + options_.event_ahead_max) {
    return error(ErrorKind::invalid_input, fmt::format("event.timestamp: {} is too far from now", to_rfc3339(when)));
  }

  Candidate candidate{std::move(event), {}, {}};
  const UsageEvent& taken = candidate.event;
  // The chain that nhi vouches for. An agent whose chain has just ended still used what it used: then its own word
  // counts.
  candidate.chain = envelope.delegation_chain;
  if (!trusted && taken.envelope.agent.is_agent()) {
    if (auto chain = nhi_.get_delegation_chain(ctx, taken.envelope.agent)) candidate.chain = chain->identities();
  }
  StoredEvent& stored = candidate.stored;
  stored.id = taken.envelope.event_id.to_string();
  stored.agent = taken.envelope.agent.text();
  stored.key = taken.idempotency_key;
  stored.content = crypto::sha3_256(as_bytes(taken.signed_bytes));
  stored.event_type = taken.usage_type;
  stored.action = taken.action;
  stored.event_time = when;
  stored.arrived = now;
  stored.units = CRETO_TRY(to_whole_units(taken.units));
  // Cost in another currency is a fact too; it is recorded in the event, but cannot be added up here.
  if (taken.cost && taken.cost->currency == options_.currency)
    stored.cost = CRETO_TRY(to_nano_money(taken.cost->amount));
  stored.properties = taken.properties;
  stored.properties.try_emplace("units", taken.units.to_string());
  if (taken.cost) stored.properties.try_emplace("cost", taken.cost->amount.to_string());
  stored.document = CRETO_TRY(taken.envelope.to_json());
  return candidate;
}

Result<MeteringService::SignedNotice> MeteringService::sign_notice(const Context& ctx, const Candidate& candidate,
                                                                   const Notice& notice) {
  contracts::CostThresholdExceededEvent event;
  const bool cost = notice.kind == Notice::Kind::cost;
  event.kind = cost ? "cost_threshold" : "quota_breach";
  event.threshold_id = notice.id;
  event.triggering_event = candidate.stored.id;
  event.current = cost ? from_nano_money(notice.used).to_string() : std::to_string(notice.used);
  event.limit = cost ? from_nano_money(notice.limit).to_string() : std::to_string(notice.limit);
  event.unit = cost ? options_.currency.code() : notice.event_type;
  event.period = notice.period;
  event.action = notice.action;
  event.approvers = notice.approvers;
  std::string payload = CRETO_TRY(event.to_json());
  const EventId id = EventId::fresh(clock_.now());
  const EventEnvelope envelope =
      CRETO_TRY(signed_envelope(ctx, contracts::CostThresholdExceededEvent::event_type, candidate.event.envelope.agent,
                                candidate.chain, std::move(payload), id));
  std::string body = CRETO_TRY(envelope.to_json());
  return SignedNotice{notice, id.to_string(), std::move(body)};
}

Result<std::vector<Result<Ingested>>> MeteringService::take(const Context& ctx,
                                                            std::vector<Result<Candidate>> candidates) {
  const std::shared_lock rules(rules_mutex_);
  const Instant keys_from = clock_.now() - options_.idempotency_window;
  const auto repeated = [](const StoredEvent& stored, const SeenKey& seen) -> Result<Ingested> {
    if (seen.content != stored.content) {
      return error(ErrorKind::conflict, fmt::format("idempotency key `{}` was used for other content by event `{}`",
                                                    stored.key, seen.event_id));
    }
    const EventId first = CRETO_TRY(EventId::parse(seen.event_id));
    return Ingested{first, true};
  };

  // What has been here before, so that only new use is counted. The transaction below looks again.
  std::vector<std::optional<Result<Ingested>>> answers(candidates.size());
  CRETO_TRY(database_.read(ctx, [&](sql::Tx& tx) -> Result<> {
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      answers[i].reset();
      if (!candidates[i]) {
        answers[i] = candidates[i].error();
        continue;
      }
      const StoredEvent& stored = candidates[i]->stored;
      const auto seen = CRETO_TRY(store::find_key(tx, ctx.org, stored.agent, stored.key, keys_from));
      if (seen) answers[i] = repeated(stored, *seen);
    }
    return {};
  }));

  // Within the batch the first of a key counts.
  std::map<std::pair<std::string, std::string>, std::size_t> first_of;
  std::vector<std::size_t> fresh;
  std::vector<std::pair<std::size_t, std::size_t>> later_of;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (answers[i]) continue;
    const auto [place, first] = first_of.try_emplace({candidates[i]->stored.agent, candidates[i]->stored.key}, i);
    if (first)
      fresh.push_back(i);
    else
      later_of.emplace_back(i, place->second);
  }

  std::vector<std::optional<Limits::Added>> added(candidates.size());
  std::vector<std::vector<SignedNotice>> notices(candidates.size());
  const auto take_all_back = [&] {
    for (auto& one : added) {
      if (one) limits_.take_back(*one);
      one.reset();
    }
  };
  for (const std::size_t i : fresh) {
    Candidate& candidate = *candidates[i];
    StoredEvent& stored = candidate.stored;
    stored.subscription = subscription_at(ctx.org, candidate.event.envelope.agent, candidate.chain, stored.event_time);
    stored.subjects = {stored.agent};
    const auto attribute = [&](const std::string& subject) {
      if (!subject.empty() && std::ranges::find(stored.subjects, subject) == stored.subjects.end())
        stored.subjects.push_back(subject);
    };
    for (const Identity& ancestor : candidate.chain) attribute(ancestor.text());
    attribute(stored.subscription);
    std::vector<Notice> reached;
    added[i] = limits_.add({.org = ctx.org,
                            .agent = stored.agent,
                            .chain = candidate.chain,
                            .event_type = stored.event_type,
                            .action = stored.action,
                            .units = stored.units,
                            .cost = stored.cost,
                            .subscription = stored.subscription},
                           stored.arrived, candidate.event.settles, reached);
    for (const Notice& notice : reached) {
      auto ready = sign_notice(ctx, candidate, notice);
      if (!ready) {
        take_all_back();
        return std::move(ready).error();
      }
      notices[i].push_back(*std::move(ready));
    }
  }

  const auto stored = database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
    for (const std::size_t i : fresh) {
      const StoredEvent& event = candidates[i]->stored;
      answers[i].reset();
      const auto outcome = tx.savepoint([&]() -> Result<> {
        const bool inserted = CRETO_TRY(store::insert_event(tx, ctx.org, event, keys_from));
        if (!inserted) {
          const auto seen = CRETO_TRY(store::find_key(tx, ctx.org, event.agent, event.key, keys_from));
          if (!seen) return error(ErrorKind::unavailable, "the idempotency key is being used");
          answers[i] = repeated(event, *seen);
          return {};
        }
        for (const SignedNotice& notice : notices[i]) {
          const bool first = CRETO_TRY(store::insert_notice(tx, ctx.org, notice.notice));
          if (!first) continue;
          CRETO_TRY(
              bus::publish(tx, ctx, contracts::CostThresholdExceededEvent::subject, notice.message_id, notice.body));
          const bool cost = notice.notice.kind == Notice::Kind::cost;
          CRETO_TRY(audit_change(tx, ctx, cost ? "cost_threshold_exceeded" : "quota_notice",
                                 fmt::format("metering:{}:{}", cost ? "threshold" : "quota", notice.notice.id)));
        }
        return audit_change(tx, ctx, "event_ingested", fmt::format("metering:event:{}", event.id),
                            fmt::format(R"({{"agent":"{}","event_type":"{}","units":"{}"}})", event.agent,
                                        event.event_type, event.units));
      });
      if (!outcome) {
        // Only what is wrong with this one event; trouble with the database fails the whole.
        if (outcome.error().kind() != ErrorKind::conflict || outcome.error().product() != Product::metering)
          return outcome.error();
        answers[i] = outcome.error();
      } else if (!answers[i]) {
        answers[i] = Ingested{candidates[i]->event.envelope.event_id, false};
      }
    }
    return {};
  });
  if (!stored) {
    take_all_back();
    return stored.error();
  }

  for (const std::size_t i : fresh) {
    const bool counted = answers[i]->has_value() && !(*answers[i])->duplicate;
    if (!counted) limits_.take_back(*added[i]);
  }
  for (const auto& [later, first] : later_of) {
    if (!answers[first]->has_value()) {
      answers[later] = answers[first]->error();
    } else {
      answers[later] =
          repeated(candidates[later]->stored, {(*answers[first])->id.to_string(), candidates[first]->stored.content});
    }
  }
  std::vector<Result<Ingested>> result;
  for (auto& answer : answers) {
    if (!answer->has_value())
      probe_.rejected();
    else if ((*answer)->duplicate)
      probe_.duplicate();
    else
      probe_.ingested();
    result.push_back(*std::move(answer));
  }
  return result;
}

Result<Ingested> MeteringService::ingest(const Context& ctx, std::string_view envelope) {
  const std::string one(envelope);
  auto answers = CRETO_TRY(ingest_batch(ctx, std::span(&one, 1)));
  return std::move(answers.front());
}

Result<std::vector<Result<Ingested>>> MeteringService::ingest_batch(const Context& ctx,
                                                                    std::span<const std::string> envelopes) {
  if (envelopes.size() > batch_max)
    return error(ErrorKind::too_large, fmt::format("events: must be at most {}", batch_max));
  std::vector<Result<Candidate>> candidates;
  for (const std::string& text : envelopes) {
    auto event = parse_usage_event(text);
    if (!event)
      candidates.emplace_back(std::move(event).error());
    else
      candidates.push_back(prepare(ctx, *std::move(event), false));
  }
  return take(ctx, std::move(candidates));
}

Result<std::vector<RejectedEvent>> MeteringService::rejected_events(const Context& ctx, std::size_t limit) {
  if (limit < 1 || limit > 1'000) return error(ErrorKind::invalid_input, "limit: must be 1 to 1000");
  return sql::read(database_, ctx, [&](sql::Tx& tx) { return store::list_rejected(tx, ctx.org, limit); });
}

Result<EventId> MeteringService::track_message_event(const Context& ctx, const contracts::MessageBillableEvent& event) {
  const std::string_view type = contracts::to_string(event.event_type);
  if (event.idempotency_key.empty() || event.idempotency_key.size() > 256 || !is_valid_utf8(event.idempotency_key)) {
    return error(ErrorKind::invalid_input, "idempotency_key: must have 1 to 256 characters");
  }
  if (event.message_size_bytes > static_cast<std::uint64_t>(limit_max) ||
      event.recipient_count > static_cast<std::uint64_t>(limit_max)) {
    return error(ErrorKind::invalid_input, "message_size_bytes, recipient_count: must be at most 10^18");
  }
  std::string payload = CRETO_TRY(message_usage_payload(type, event.idempotency_key, event.message_size_bytes,
                                                        event.recipient_count, contracts::to_string(event.priority)));
  // The id follows from the key, so that a repetition is the same event to the last bit.
  const Hash256 digest = crypto::sha3_256({as_bytes(ctx.org), as_bytes("\n"), as_bytes(event.agent.text()),
                                           as_bytes("\n"), as_bytes(event.idempotency_key)});
  ByteArray<16> id{};
  std::ranges::copy_n(digest.begin(), id.size(), id.begin());
  id[6] = static_cast<std::uint8_t>(0x80 | (id[6] & 0x0F));  // UUIDv8: made by us, not by time
  id[8] = static_cast<std::uint8_t>(0x80 | (id[8] & 0x3F));
  EventEnvelope envelope{"message_usage", EventId::from_bytes(id), event.agent, event.delegation_chain,
                         event.timestamp, std::move(payload),      {}};
  auto understood = usage_event_of(std::move(envelope));
  if (!understood) return std::move(understood).error();
  std::vector<Result<Candidate>> candidates;
  candidates.push_back(prepare(ctx, *std::move(understood), true));
  auto answers = CRETO_TRY(take(ctx, std::move(candidates)));
  if (!answers.front()) return answers.front().error();
  return answers.front()->id;
}

}  // namespace creto::metering

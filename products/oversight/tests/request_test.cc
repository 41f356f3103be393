#include "request.h"

#include <gtest/gtest.h>

#include "codec.h"

namespace creto::oversight {
namespace {

using namespace std::chrono_literals;
using contracts::ApprovalState;

const Identity cfo = Identity::human("cfo@example.com").value();
const Identity ceo = Identity::human("ceo@example.com").value();
const Identity ada = Identity::human("ada@example.com").value();
const Identity agent = Identity::service("stands-for-an-agent").value();
const Instant start = from_unix_ns(1'000'000'000'000);

Policy two_tiers() {
  return {.id = "large-payments",
          .description = "",
          .triggers = {Trigger::authorization},
          .tiers = {{.approvers = {cfo, ada}, .quorum = 2, .timeout = 10min},
                    {.approvers = {ceo}, .quorum = 1, .timeout = 1h}},
          .final_action = FinalAction::auto_deny,
          .allow_self_approval = false,
          .channels = {"cli"}};
}

Request request_under(const std::vector<Policy>& policies, const contracts::ApprovalNeed& need = {}) {
  Request request{
      .id = RequestId::fresh(start),
      .action = {agent, {agent}, std::nullopt, "payments.pay", "Ledger", "main", R"({"amount":"25000.00"})"}};
  for (const Policy& policy : policies) request.requirements.push_back(begin_requirement(policy, need, start).value());
  request.created_at = start;
  request.decision_response = "{}";
  return request;
}

Response answer(const Identity& approver, bool approve) {
  return {approver, approve, "because", "doc", {"x", {1}}, start};
}

TEST(Request, IsApprovedByAQuorumOfItsTier) {
  Request request = request_under({two_tiers()});
  ASSERT_TRUE(apply_response(request, answer(cfo, true), "{}", start + 1s));
  EXPECT_EQ(request.state, ApprovalState::pending);
  ASSERT_TRUE(apply_response(request, answer(ada, true), "{}", start + 2s));
  EXPECT_EQ(request.state, ApprovalState::approved);
  EXPECT_EQ(request.decided_at, start + 2s);
  EXPECT_EQ(next_deadline(request), Instant::max());
}

TEST(Request, IsEndedByOneDenial) {
  Request request = request_under({two_tiers()});
  ASSERT_TRUE(apply_response(request, answer(ada, false), "{}", start));
  EXPECT_EQ(request.state, ApprovalState::denied);
}

TEST(Request, RefusesWhoIsNotAskedNow) {
  Request request = request_under({two_tiers()});
  EXPECT_EQ(apply_response(request, answer(ceo, true), "{}", start).error().code(), "OV-403");
  EXPECT_TRUE(request.responses.empty());
}

TEST(Request, RefusesASecondAnswer) {
  Request request = request_under({two_tiers()});
  ASSERT_TRUE(apply_response(request, answer(cfo, true), "{}", start));
  EXPECT_EQ(apply_response(request, answer(cfo, true), "{}", start).error().kind(), ErrorKind::conflict);
}

TEST(Request, EscalatesThenTimesOutAndATimeoutIsNoDenial) {
  Request request = request_under({two_tiers()});
  EXPECT_FALSE(apply_timeouts(request, start + 9min));
  EXPECT_TRUE(apply_timeouts(request, start + 10min));
  EXPECT_EQ(request.state, ApprovalState::escalated);
  EXPECT_EQ(asked_now(request), std::vector{ceo});
  EXPECT_EQ(next_deadline(request), start + 70min);
  EXPECT_TRUE(apply_timeouts(request, start + 70min));
  EXPECT_EQ(request.state, ApprovalState::timed_out);
}

TEST(Request, CatchesUpWithEveryTierAfterALongSleep) {
  Request request = request_under({two_tiers()});
  EXPECT_TRUE(apply_timeouts(request, start + 48h));
  EXPECT_EQ(request.state, ApprovalState::timed_out);
}

TEST(Request, IsApprovedByTimeWhereThePolicySaysSo) {
  Policy policy = two_tiers();
  policy.final_action = FinalAction::auto_approve;
  Request request = request_under({policy});
  EXPECT_TRUE(apply_timeouts(request, start + 48h));
  EXPECT_EQ(request.state, ApprovalState::approved);
  EXPECT_TRUE(request.requirements.front().met_by_timeout);
}

TEST(Request, NeedsEveryPolicy) {
  Policy other = two_tiers();
  other.id = "other";
  other.tiers = {{.approvers = {ceo}, .quorum = 1, .timeout = 1h}};
  Policy first = two_tiers();
  first.tiers.front().quorum = 1;
  Request request = request_under({first, other});
  ASSERT_TRUE(apply_response(request, answer(cfo, true), "{}", start));
  EXPECT_EQ(request.state, ApprovalState::pending);
  ASSERT_TRUE(apply_response(request, answer(ceo, true), "{}", start));
  EXPECT_EQ(request.state, ApprovalState::approved);
}

TEST(Request, MayNotBeApprovedByWhoActsThroughTheAgent) {
  Request request = request_under({two_tiers()});
  request.action.delegation_chain = {cfo, agent};
  EXPECT_EQ(apply_response(request, answer(cfo, true), "{}", start).error().kind(), ErrorKind::permission_denied);
  EXPECT_TRUE(apply_response(request, answer(cfo, false), "{}", start)) << "he may still say no";
}

TEST(Requirement, IsNarrowedByTheDecisionAndNeverWidened) {
  const Requirement narrowed =
      begin_requirement(two_tiers(),
                        {.policy = {}, .forbid = "f", .timeout = 5s, .approvers = {cfo.text(), ada.text()}}, start)
          .value();
  ASSERT_EQ(narrowed.policy.tiers.size(), 1U);
  EXPECT_EQ(narrowed.policy.tiers.front().approvers, (std::vector{cfo, ada}));
  EXPECT_EQ(narrowed.policy.tiers.front().quorum, 2U);
  EXPECT_EQ(narrowed.tier_ends, start + 5s);
  EXPECT_EQ(narrowed.forbid, "f");
  EXPECT_EQ(begin_requirement(two_tiers(), {.policy = {}, .forbid = {}, .timeout = 24h}, start)->tier_ends,
            start + 10min);
  EXPECT_FALSE(
      begin_requirement(two_tiers(), {.policy = {}, .forbid = {}, .approvers = {"human:eve@example.com"}}, start));
  EXPECT_FALSE(begin_requirement(two_tiers(), {.policy = {}, .forbid = {}, .approvers = {cfo.text()}}, start))
      << "fewer people than the quorum never become a smaller quorum";
  Policy silent = two_tiers();
  silent.final_action = FinalAction::auto_approve;
  Request request = request_under({silent}, {.policy = {}, .forbid = {}, .timeout = 5s});
  EXPECT_TRUE(apply_timeouts(request, start + 1h));
  EXPECT_EQ(request.state, ApprovalState::timed_out) << "a shorter time is no earlier yes";
}

TEST(Codec, KeepsARequestWhole) {
  Request request = request_under({two_tiers()});
  ASSERT_TRUE(apply_response(request, answer(cfo, true), R"({"new_limit":"5"})", start));
  const std::string text = encode(request).value();
  EXPECT_EQ(encode(decode_request(text).value()).value(), text);
  EXPECT_EQ(encode(decode_policy(encode(two_tiers()).value()).value()).value(), encode(two_tiers()).value());
}

TEST(ResponseDocument, IsReadFromTheSignedBytesAlone) {
  const ResponseDocument document{
      .request = RequestId::fresh(start), .approver = cfo, .approve = true, .arguments_hash = {1, 2}, .notes = "fine"};
  const std::string bytes = document.signed_bytes().value();
  const ResponseDocument again = ResponseDocument::from_signed_bytes(bytes).value();
  EXPECT_EQ(again.signed_bytes().value(), bytes);
  // As docs/formats.md has it: what was signed years ago must still be read so.
  const ResponseDocument written{.request = RequestId::parse("req-01890a5d-ac96-774b-bcce-b302099a8057").value(),
                                 .approver = ada,
                                 .approve = true,
                                 .arguments_hash = Hash256{},
                                 .notes = "checked",
                                 .response = "{}"};
  EXPECT_EQ(written.signed_bytes().value(),
            "creto.oversight.response.v1\n"
            R"({"approver":"human:ada@example.com","arguments_sha3_256":")" +
                std::string(64, '0') +
                R"(","decision":"approve","notes":"checked","request_id":"req-01890a5d-ac96-774b-bcce-b302099a8057",)"
                R"("response":{},"schema_version":1})");
  EXPECT_FALSE(ResponseDocument::from_signed_bytes(bytes.substr(1)));
  EXPECT_FALSE(ResponseDocument::from_signed_bytes(std::string(100'000, 'x')));
  std::string other = bytes;
  other.replace(other.find("approve"), 7, "perhaps");
  EXPECT_FALSE(ResponseDocument::from_signed_bytes(other));
}

TEST(Policy, IsRefusedWithTheFieldAndTheRule) {
  Policy policy = two_tiers();
  policy.tiers[1].quorum = 2;
  EXPECT_EQ(validate(policy).error().message(), "policy.tiers[1].quorum: must be 1 to the number of approvers");
  policy = two_tiers();
  policy.channels = {"fax"};
  EXPECT_EQ(validate(policy).error().message(), "policy.channels: `fax` is neither `cli` nor `webhook`");
  policy = two_tiers();
  policy.tiers[0].approvers[0] = agent;
  EXPECT_FALSE(validate(policy));
}

}  // namespace
}  // namespace creto::oversight

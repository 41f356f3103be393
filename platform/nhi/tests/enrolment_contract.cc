// What every Enrolment keeps, whether it runs here or at the other end of a connection.

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "creto/crypto/random.h"
#include "creto/io/sql.h"
#include "creto/io/tls.h"
#include "creto/nhi/nhi_rpc.h"
#include "creto/testing/databases.h"
#include "creto/testing/fake_clock.h"
#include "creto/testing/human.h"
#include "creto/testing/result.h"
#include "creto/testing/sealer.h"
#include "creto/testing/wire.h"

namespace creto::nhi {
namespace {

using creto::testing::Human;
using creto::testing::kind;
using creto::testing::Where;
using creto::testing::Wire;
using std::chrono::days;
using std::chrono::hours;
using std::chrono::minutes;
constexpr auto hybrid = crypto::SignatureAlgorithm::hybrid_ed25519_ml_dsa_65;

/// A real authority, as `creto init` makes one.
class TestCertifier final : public Certifier {
 public:
  explicit TestCertifier(const Clock& clock)
      : clock_(clock), authority_(tls::create_authority("test", days(3650), clock).value()) {}
  Result<std::string> certify(const Identity& identity, std::string_view key_id, std::string_view request) override {
    const tls::Subject subject{.common_name = std::string(identity.name()),
                               .uri = tls::identity_uri({identity.text(), std::string(key_id)})};
    return tls::issue_for(authority_, request, subject, days(90), clock_);
  }
  Result<std::string> authority() override { return authority_.certificate; }

 private:
  const Clock& clock_;
  const tls::KeyPair authority_;
};

/// What somebody has on his side who wants to come in.
struct Newcomer {
  crypto::SigningKey signing = crypto::SigningKey::generate(hybrid);
  crypto::KemPrivateKey kem = crypto::KemPrivateKey::generate(crypto::KemAlgorithm::x_wing);
  std::string request = tls::request_certificate().value().request;

  std::string key_id() const { return key_id_of(signing.verifying_key(), kem.public_key()); }
  Joining joining(const Secret& secret) const {
    const std::string bytes = join_signed_bytes("default", secret, request).value();
    return {"default",
            secret.clone(),
            "Bob",
            signing.verifying_key(),
            kem.public_key(),
            request,
            signing.sign(as_bytes(bytes), as_bytes(join_context)).value()};
  }
  CertificateRenewal renewal(const Identity& human, Instant now) const {
    const std::string bytes = renewal_signed_bytes("default", human, request, now).value();
    return {"default", human, request, now, signing.sign(as_bytes(bytes), as_bytes(certificate_context)).value()};
  }
};

class EnrolmentContract : public ::testing::TestWithParam<Where> {
 protected:
  EnrolmentContract() {
    db = database_.open();
    nhi = create_nhi(*db, sealer_, clock).value();
    service_ = create_enrolment(*db, *nhi, certifier_, clock).value();
    enrolment = service_.get();
    ada.emplace(*nhi, "ada@example.com");
    if (GetParam() != Where::grpc) return;
    wire_.emplace(clock);
    register_enrolment(wire_->dispatcher(), *service_);
    client_ = create_enrolment_client(wire_->connect());
    enrolment = client_.get();
  }

  Context as_ada() { return Context::of(ada->identity, {ada->identity}); }
  /// Nobody: who joins has no credentials yet.
  static Context as_nobody() { return Context(); }
  IssuedInvitation invited(Nanos valid_for = days(1)) { return enrolment->invite(as_ada(), bob, valid_for).value(); }
  std::string state() { return std::string(to_string(enrolment->invitations(as_ada()).value().front().state)); }

  creto::testing::FakeClock clock{system_clock().now()};
  creto::testing::TestDatabase database_{database_of(GetParam()), clock};
  creto::testing::TestSealer sealer_;
  TestCertifier certifier_{clock};
  std::unique_ptr<sql::Database> db;
  std::unique_ptr<Nhi> nhi;
  std::unique_ptr<Enrolment> service_, client_;
  std::optional<Wire> wire_;
  Enrolment* enrolment = nullptr;
  std::optional<Human> ada;
  const Identity bob = Identity::human("bob@example.com").value();
};

TEST_P(EnrolmentContract, WhoIsInvitedJoinsWithHisOwnKeysAndIsCertifiedForThem) {
  const IssuedInvitation invitation = invited();
  EXPECT_EQ(state(), "open");
  const Newcomer newcomer;
  const Joined joined = enrolment->join(as_nobody(), newcomer.joining(invitation.secret)).value();
  EXPECT_EQ(joined.human.identity, bob);
  EXPECT_EQ(state(), "used");
  const PublicKeys keys = nhi->get_public_keys(as_ada(), bob).value();
  EXPECT_EQ(keys.key_id, newcomer.key_id());
  const auto facts = tls::facts_of(joined.certificate).value();
  ASSERT_EQ(facts.uris.size(), 1u);
  EXPECT_EQ(tls::identity_from_uri(facts.uris.front()).value(),
            (tls::CertifiedIdentity{bob.text(), newcomer.key_id()}));
}

TEST_P(EnrolmentContract, AnInvitationMakesOneHumanWithOneSetOfKeys) {
  const IssuedInvitation invitation = invited();
  const Newcomer first, second;
  ASSERT_TRUE(enrolment->join(as_nobody(), first.joining(invitation.secret)));
  EXPECT_EQ(kind(enrolment->join(as_nobody(), second.joining(invitation.secret))), "unauthenticated");
  EXPECT_EQ(nhi->get_public_keys(as_ada(), bob).value().key_id, first.key_id());
  EXPECT_TRUE(enrolment->join(as_nobody(), first.joining(invitation.secret))) << "his connection may have broken";
  clock.advance(days(2));
  EXPECT_EQ(kind(enrolment->join(as_nobody(), first.joining(invitation.secret))), "unauthenticated");
}

TEST_P(EnrolmentContract, OfManyWhoJoinAtOnceOneDoes) {
  const IssuedInvitation invitation = invited();
  std::atomic<int> in = 0;
  std::vector<std::jthread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      const Newcomer newcomer;
      const auto joined = enrolment->join(as_nobody(), newcomer.joining(invitation.secret));
      if (joined) ++in;
    });
  }
  threads.clear();
  EXPECT_EQ(in, 1);
}

TEST_P(EnrolmentContract, NothingElseOpensTheDoor) {
  const IssuedInvitation invitation = invited();
  const Newcomer newcomer;
  const auto refused = [&](const Joining& joining) { return kind(enrolment->join(as_nobody(), joining)); };

  Secret forged = invitation.secret.clone();
  forged.writable()[31] ^= 1;
  EXPECT_EQ(refused(newcomer.joining(forged)), "unauthenticated");
  EXPECT_EQ(refused(newcomer.joining(Secret::copy_of(std::string_view()))), "unauthenticated");
  Joining elsewhere = newcomer.joining(invitation.secret);
  elsewhere.org = "other";
  EXPECT_EQ(refused(elsewhere), "unauthenticated");

  Joining others_key = newcomer.joining(invitation.secret);
  others_key.signing = Newcomer().signing.verifying_key();
  EXPECT_EQ(refused(others_key), "signature_invalid") << "he must hold the key that he registers";
  Joining others_request = newcomer.joining(invitation.secret);
  others_request.certificate_request = Newcomer().request;
  EXPECT_EQ(refused(others_request), "signature_invalid");
  Newcomer broken;
  broken.request = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n";
  EXPECT_EQ(refused(broken.joining(invitation.secret)), "invalid_input");

  EXPECT_EQ(state(), "open") << "what was refused used nothing up";
  EXPECT_FALSE(nhi->is_registered(as_ada(), bob).value());
  EXPECT_TRUE(enrolment->join(as_nobody(), newcomer.joining(invitation.secret)));
}

TEST_P(EnrolmentContract, AnInvitationEndsByTimeByWithdrawalAndWithItsInviter) {
  const Newcomer newcomer;
  const IssuedInvitation late = invited(minutes(10));
  clock.advance(minutes(10));
  EXPECT_EQ(state(), "expired");
  EXPECT_EQ(kind(enrolment->join(as_nobody(), newcomer.joining(late.secret))), "unauthenticated");

  clock.advance(minutes(1));
  const IssuedInvitation withdrawn = invited();
  ASSERT_EQ(enrolment->withdraw(as_ada(), withdrawn.invitation.id).value().state, InvitationState::withdrawn);
  EXPECT_TRUE(enrolment->withdraw(as_ada(), withdrawn.invitation.id)) << "again is no harm";
  EXPECT_EQ(kind(enrolment->join(as_nobody(), newcomer.joining(withdrawn.secret))), "unauthenticated");
  EXPECT_EQ(kind(enrolment->withdraw(as_ada(), "0123456789abcdef")), "not_found");

  const IssuedInvitation orphaned = invited();
  ASSERT_TRUE(nhi->revoke_agent(as_ada(), ada->identity, "left"));
  EXPECT_EQ(kind(enrolment->join(as_nobody(), newcomer.joining(orphaned.secret))), "unauthenticated");
}

TEST_P(EnrolmentContract, AUsedInvitationIsNotWithdrawn) {
  const IssuedInvitation invitation = invited();
  ASSERT_TRUE(enrolment->join(as_nobody(), Newcomer().joining(invitation.secret)));
  EXPECT_EQ(kind(enrolment->withdraw(as_ada(), invitation.invitation.id)), "conflict");
  EXPECT_EQ(kind(enrolment->invite(as_ada(), bob, days(1))), "already_exists");
}

TEST_P(EnrolmentContract, RefusesTimesAndIdentitiesThatMakeNoSense) {
  EXPECT_EQ(kind(enrolment->invite(as_ada(), bob, minutes(1) - Nanos(1))), "invalid_input");
  EXPECT_EQ(kind(enrolment->invite(as_ada(), bob, days(30) + Nanos(1))), "invalid_input");
  EXPECT_EQ(kind(enrolment->invite(as_ada(), Identity::service("bob").value(), days(1))), "invalid_input");
  EXPECT_EQ(kind(enrolment->invite(as_ada(), ada->identity, days(1))), "already_exists");
}

TEST_P(EnrolmentContract, ForgetsWhatEndedLongAgo) {
  invited(hours(1));
  clock.advance(days(91));
  EXPECT_TRUE(enrolment->invitations(as_ada()).value().empty());
  invited();
  EXPECT_EQ(enrolment->invitations(as_ada()).value().size(), 1u);
}

TEST_P(EnrolmentContract, AHumanRenewsHisCertificateByHisSignature) {
  const IssuedInvitation invitation = invited();
  const Newcomer newcomer;
  ASSERT_TRUE(enrolment->join(as_nobody(), newcomer.joining(invitation.secret)));
  clock.advance(days(60));
  const auto renewed = enrolment->renew_certificate(as_nobody(), newcomer.renewal(bob, clock.now()));
  ASSERT_TRUE(renewed) << renewed.error().to_string();
  EXPECT_GT(tls::facts_of(*renewed).value().ends, clock.now() + days(89));

  EXPECT_EQ(kind(enrolment->renew_certificate(as_nobody(), Newcomer().renewal(bob, clock.now()))), "signature_invalid");
  EXPECT_EQ(kind(enrolment->renew_certificate(as_nobody(), newcomer.renewal(ada->identity, clock.now()))),
            "signature_invalid");
  EXPECT_EQ(kind(enrolment->renew_certificate(as_nobody(), newcomer.renewal(bob, clock.now() - minutes(6)))),
            "expired");
  CertificateRenewal swapped = newcomer.renewal(bob, clock.now());
  swapped.certificate_request = Newcomer().request;
  EXPECT_EQ(kind(enrolment->renew_certificate(as_nobody(), swapped)), "signature_invalid");
  ASSERT_TRUE(nhi->revoke_agent(as_ada(), bob, "left"));
  EXPECT_EQ(kind(enrolment->renew_certificate(as_nobody(), newcomer.renewal(bob, clock.now()))), "unauthenticated");
}

INSTANTIATE_TEST_SUITE_P(, EnrolmentContract, everywhere(), database_name);

}  // namespace
}  // namespace creto::nhi

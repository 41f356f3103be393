// The parts without I/O: the bytes of messages, the key agreement and the ratchet.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "creto/crypto/random.h"
#include "ratchet.h"
#include "wire.h"

namespace creto::messaging {
namespace {

using crypto::KemAlgorithm;
using crypto::KemPrivateKey;

const Identity alice = *Identity::service("alice");
const Identity bob = *Identity::service("bob");

KemPrivateKey x25519() { return KemPrivateKey::generate(KemAlgorithm::x25519); }

ByteArray<32> public_of(const KemPrivateKey& key) {
  ByteArray<32> out;
  std::ranges::copy(key.public_key().bytes(), out.begin());
  return out;
}

struct Sent {
  RatchetHeader header;
  Bytes authenticated;
  Bytes ciphertext;
};

Sent send(Ratchet& from, std::string_view text) {
  auto sealing = from.next_sending();
  EXPECT_TRUE(sealing);
  Sent out{sealing->header, to_bytes("header"), {}};
  out.ciphertext = from.seal(*sealing, out.authenticated, as_bytes(text));
  return out;
}

Result<std::string> receive(Ratchet& to, const Sent& sent) {
  const Secret opened = CRETO_TRY(to.decrypt(sent.header, sent.authenticated, sent.ciphertext));
  return std::string(opened.reveal_text());
}

struct Pair {
  Ratchet a;
  Ratchet b;
};

Pair pair() {
  const Bytes shared = crypto::random_bytes(32);
  KemPrivateKey prekey = x25519();
  const auto prekey_public = public_of(prekey);
  auto a = Ratchet::initiate(to_bytes("ad"), Secret::copy_of(BytesView(shared)), prekey_public);
  EXPECT_TRUE(a);
  return {*std::move(a), Ratchet::respond(to_bytes("ad"), Secret::copy_of(BytesView(shared)), std::move(prekey))};
}

TEST(Pqxdh, BothEndsAgreeWithAndWithoutAOneTimePrekey) {
  for (const bool with_one_time : {false, true}) {
    const KemPrivateKey ik_a = x25519(), ik_b = x25519(), ek = x25519(), spk = x25519(), opk = x25519();
    const KemPrivateKey kem = KemPrivateKey::generate(KemAlgorithm::ml_kem_768);
    HandshakeKeys keys{.initiator = alice, .responder = bob};
    keys.initiator_dh = public_of(ik_a);
    keys.responder_dh = public_of(ik_b);
    keys.base_key = public_of(ek);
    keys.signed_prekey = public_of(spk);
    if (with_one_time) keys.one_time_prekey = public_of(opk);
    keys.kem_prekey = kem.public_key().bytes();
    const auto made = kem.public_key().encapsulate();
    const auto a = pqxdh_initiate(keys, ik_a, ek, made->shared_secret.reveal());
    const auto b =
        pqxdh_respond(keys, ik_b, spk, with_one_time ? &opk : nullptr, kem.decapsulate(made->ciphertext)->reveal());
    ASSERT_TRUE(a && b);
    EXPECT_EQ(to_bytes(a->reveal()), to_bytes(b->reveal()));
    const auto without_kem = pqxdh_initiate(keys, ik_a, ek, Bytes(32));
    EXPECT_NE(to_bytes(a->reveal()), to_bytes(without_kem->reveal())) << "the KEM secret must matter";
  }
}

TEST(Pqxdh, EveryKeyAndBothIdentitiesAreBound) {
  HandshakeKeys keys{.initiator = alice, .responder = bob};
  keys.kem_prekey = Bytes(1184);
  const Bytes original = keys.associated_data();
  std::vector<HandshakeKeys> changed(8, keys);
  changed[0].initiator = bob;
  changed[1].responder = alice;
  changed[2].initiator_dh[0] = 1;
  changed[3].responder_dh[0] = 1;
  changed[4].base_key[0] = 1;
  changed[5].signed_prekey[0] = 1;
  changed[6].one_time_prekey = ByteArray<32>{};
  changed[7].kem_prekey[0] = 1;
  for (const HandshakeKeys& other : changed) {
    EXPECT_NE(other.associated_data(), original);
    EXPECT_NE(other.session_id(), keys.session_id());
  }
}

TEST(Ratchet, CarriesAConversation) {
  auto [a, b] = pair();
  for (int round = 0; round < 20; ++round) {
    const std::string text = "message " + std::to_string(round);
    EXPECT_EQ(*receive(b, send(a, text)), text);
    EXPECT_EQ(*receive(b, send(a, text + "!")), text + "!");
    EXPECT_EQ(*receive(a, send(b, text)), text);
  }
  EXPECT_EQ(*receive(b, send(a, "")), "");
}

TEST(Ratchet, TheResponderCannotBeginByItself) {
  auto [a, b] = pair();
  const auto refused = b.next_sending();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::conflict);
}

TEST(Ratchet, OpensMessagesInAnyOrderAndEachOnce) {
  std::mt19937 random(7);
  auto [a, b] = pair();
  std::vector<std::pair<Sent, std::string>> under_way;
  for (int round = 0; round < 6; ++round) {
    for (int i = 0; i < 5; ++i) {
      const std::string text = std::to_string(round) + "." + std::to_string(i);
      under_way.emplace_back(send(a, text), text);
    }
    // One arrives, so that the other side turns its ratchet.
    std::shuffle(under_way.begin(), under_way.end(), random);
    EXPECT_EQ(*receive(b, under_way.back().first), under_way.back().second);
    under_way.pop_back();
    EXPECT_EQ(*receive(a, send(b, "ok")), "ok");
  }
  std::shuffle(under_way.begin(), under_way.end(), random);
  for (const auto& [sent, text] : under_way) EXPECT_EQ(*receive(b, sent), text);
  for (const auto& [sent, text] : under_way) {
    const auto again = receive(b, sent);
    ASSERT_FALSE(again) << text;
    EXPECT_EQ(again.error().kind(), ErrorKind::decryption_failed);
  }
}

TEST(Ratchet, AFailedMessageChangesNothing) {
  auto [a, b] = pair();
  EXPECT_EQ(*receive(b, send(a, "first")), "first");
  const Sent good = send(a, "second");
  const Bytes before = to_bytes(b.serialize().reveal());
  const auto refuse = [&](const Sent& bad) {
    EXPECT_FALSE(receive(b, bad));
    EXPECT_EQ(to_bytes(b.serialize().reveal()), before);
  };
  for (std::size_t i = 0; i < good.ciphertext.size(); ++i) {
    Sent bad = good;
    bad.ciphertext[i] ^= 1;
    refuse(bad);
  }
  Sent bad = good;
  bad.authenticated[0] ^= 1;
  refuse(bad);
  bad = good;
  bad.header.number += 3;
  refuse(bad);
  bad = good;
  bad.header.key[5] ^= 1;
  refuse(bad);
  bad = good;
  bad.header.key = {};
  refuse(bad);
  bad = good;
  bad.ciphertext.clear();
  refuse(bad);
  EXPECT_EQ(*receive(b, good), "second");
}

TEST(Ratchet, RefusesToJumpTooFarAhead) {
  auto [a, b] = pair();
  EXPECT_TRUE(receive(b, send(a, "0")));
  Sent far = send(a, "1");
  far.header.number = forward_jump_max + 2;
  const auto refused = receive(b, far);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::invalid_input);
  far.header.number = 0xffffffff;
  EXPECT_FALSE(receive(b, far));
}

TEST(Ratchet, KeepsALimitedNumberOfSkippedKeys) {
  auto [a, b] = pair();
  std::vector<Sent> skipped;
  for (std::size_t i = 0; i < skipped_keys_max; ++i) skipped.push_back(send(a, "skipped"));
  EXPECT_TRUE(receive(b, send(a, "after")));
  EXPECT_TRUE(receive(a, send(b, "answer")));
  std::vector<Sent> more;
  for (int i = 0; i < 10; ++i) more.push_back(send(a, "more"));
  EXPECT_TRUE(receive(b, send(a, "last")));
  // The ten oldest had to go for the ten newest.
  EXPECT_FALSE(receive(b, skipped[9]));
  EXPECT_TRUE(receive(b, skipped[10]));
  EXPECT_TRUE(receive(b, more[0]));
  EXPECT_LT(b.serialize().size(), skipped_keys_max * 70 + 1000);
}

TEST(Ratchet, GoesOnAfterItWasStored) {
  auto [a, b] = pair();
  const Sent early = send(a, "early");
  EXPECT_TRUE(receive(b, send(a, "late")));
  auto b2 = Ratchet::deserialize(b.serialize().reveal());
  auto a2 = Ratchet::deserialize(a.serialize().reveal());
  ASSERT_TRUE(a2 && b2);
  EXPECT_EQ(*receive(*b2, early), "early");
  EXPECT_EQ(*receive(*a2, send(*b2, "answer")), "answer");
  const Secret state = b.serialize();
  for (std::size_t size = 0; size < state.size(); ++size) {
    EXPECT_FALSE(Ratchet::deserialize(state.reveal().first(size))) << size;
  }
}

TEST(Ratchet, NoKeyAndNonceServeTwiceAfterTheStateWentBack) {
  auto [a, b] = pair();
  const Secret copy = a.serialize();
  const std::string one(64, '1'), other(64, '2');
  const auto sealed = [](Ratchet& from, std::string_view header, std::string_view text) {
    const auto sealing = from.next_sending();
    EXPECT_TRUE(sealing);
    return Sent{sealing->header, to_bytes(header), from.seal(*sealing, as_bytes(header), as_bytes(text))};
  };
  const Sent first = sealed(a, "id 1", one);
  auto restored = Ratchet::deserialize(copy.reveal());
  ASSERT_TRUE(restored);
  const Sent second = sealed(*restored, "id 2", other);
  ASSERT_EQ(first.header.number, second.header.number);
  // Under one key stream the ciphertexts would differ just where the texts do, and by as much.
  std::size_t same = 0;
  for (std::size_t i = 0; i < one.size(); ++i)
    same += (first.ciphertext[i] ^ second.ciphertext[i]) == (one[i] ^ other[i]) ? 1 : 0;
  EXPECT_LT(same, 16U);
  EXPECT_EQ(*receive(b, second), other);
}

TEST(Ratchet, AnotherAssociatedDataIsAnotherSession) {
  const Bytes shared = crypto::random_bytes(32);
  KemPrivateKey prekey = x25519();
  auto a = Ratchet::initiate(to_bytes("alice, bob"), Secret::copy_of(BytesView(shared)), public_of(prekey));
  Ratchet b = Ratchet::respond(to_bytes("mallory, bob"), Secret::copy_of(BytesView(shared)), std::move(prekey));
  EXPECT_FALSE(receive(b, send(*a, "hello")));
}

// --- the wire

Header header_of(Kind kind) {
  Header header{.id = MessageId::from_bytes({1, 2, 3}), .sender = alice};
  header.kind = kind;
  header.sent_at = from_unix_ns(1'700'000'000'000'000'000);
  header.ttl = std::chrono::hours(1);
  header.priority = contracts::MessagePriority::high;
  header.recipient = bob;
  return header;
}

const Signature some_signature = {"hybrid-ed25519-ml-dsa-65", Bytes(3373, 7)};

Bytes one_shot_bytes() {
  Writer out;
  header_of(Kind::one_shot).write(out);
  write_one_shot(out, {{{bob, "key-1", "x-wing", Bytes(1120, 1), Bytes(61, 2)}}, Bytes(40, 3)});
  write_signature(out, some_signature);
  return std::move(out).take();
}

Bytes start_bytes() {
  Writer out;
  header_of(Kind::session_start).write(out);
  StartBody start;
  start.one_time_prekey = 5;
  start.kem_ciphertext = Bytes(1088, 4);
  start.write(out);
  RatchetHeader().write(out);
  out.bytes32(Bytes(20, 5));
  write_signature(out, some_signature);
  return std::move(out).take();
}

Bytes ratchet_bytes() {
  Writer out;
  header_of(Kind::ratchet).write(out);
  RatchetHeader header;
  header.number = 9;
  header.write(out);
  out.bytes32(Bytes(20, 5));
  return std::move(out).take();
}

TEST(Wire, ReadsBackWhatWasWritten) {
  const Bytes bytes = one_shot_bytes();
  const auto parsed = parse_envelope(bytes);
  ASSERT_TRUE(parsed) << parsed.error().to_string();
  EXPECT_EQ(parsed->header.id, MessageId::from_bytes({1, 2, 3}));
  EXPECT_EQ(parsed->header.sender, alice);
  EXPECT_EQ(parsed->header.recipient, bob);
  EXPECT_EQ(parsed->header.ttl, std::chrono::hours(1));
  EXPECT_EQ(parsed->header.priority, contracts::MessagePriority::high);
  ASSERT_EQ(parsed->one_shot->keys.size(), 1U);
  EXPECT_EQ(parsed->one_shot->keys[0].key_id, "key-1");
  EXPECT_EQ(parsed->one_shot->payload, Bytes(40, 3));
  EXPECT_EQ(*parsed->signature, some_signature);
  EXPECT_EQ(parsed->signed_bytes.size() + 2 + 24 + 4 + 3373, bytes.size());

  const Bytes start = start_bytes();
  const auto started = parse_envelope(start);
  ASSERT_TRUE(started);
  EXPECT_EQ(started->start->one_time_prekey, 5U);
  EXPECT_TRUE(started->signature);

  const Bytes ratchet = ratchet_bytes();
  const auto ratcheted = parse_envelope(ratchet);
  ASSERT_TRUE(ratcheted);
  EXPECT_EQ(ratcheted->ratchet->header.number, 9U);
  EXPECT_FALSE(ratcheted->signature);
  EXPECT_EQ(ratcheted->authenticated.size() + 4 + 20, ratchet.size());
}

TEST(Wire, RefusesEveryCutAndEveryTail) {
  for (const Bytes& bytes : {one_shot_bytes(), start_bytes(), ratchet_bytes()}) {
    for (std::size_t size = 0; size < bytes.size(); ++size) {
      ASSERT_FALSE(parse_envelope(BytesView(bytes).first(size))) << size;
    }
    Bytes longer = bytes;
    longer.push_back(0);
    EXPECT_FALSE(parse_envelope(longer));
  }
}

TEST(Wire, RefusesWhatItDoesNotKnow) {
  Bytes bytes = one_shot_bytes();
  bytes[4] = 2;  // version
  EXPECT_FALSE(parse_envelope(bytes));
  bytes = one_shot_bytes();
  bytes[5] = 9;  // kind
  EXPECT_FALSE(parse_envelope(bytes));
  Writer out;
  header_of(Kind::one_shot).write(out);
  write_one_shot(out, {{{bob, "key-1", "rsa", Bytes(1120, 1), Bytes(61, 2)}}, Bytes(40, 3)});
  write_signature(out, some_signature);
  const auto unknown = parse_envelope(out.bytes());
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().kind(), ErrorKind::unsupported_algorithm);
  Writer weak;
  header_of(Kind::one_shot).write(weak);
  write_one_shot(weak, {{{bob, "key-1", "x-wing", Bytes(1120, 1), Bytes(61, 2)}}, Bytes(40, 3)});
  write_signature(weak, {"ed25519", Bytes(64, 7)});
  const auto half = parse_envelope(weak.bytes());
  ASSERT_FALSE(half) << "one half is no hybrid";
  EXPECT_EQ(half.error().kind(), ErrorKind::unsupported_algorithm);
}

TEST(Wire, RefusesTenMegabytes) {
  Bytes bytes = ratchet_bytes();
  bytes.resize(10 << 20);
  const auto refused = parse_envelope(bytes);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::too_large);
}

TEST(Wire, TheFieldsBesideTheEnvelopeMustBeItsOwn) {
  const Bytes bytes = one_shot_bytes();
  const Header header = header_of(Kind::one_shot);
  const contracts::SealedMessage good = to_sealed_message(header, bytes);
  EXPECT_TRUE(check_fields(good, header));
  std::vector<contracts::SealedMessage> bad(7, good);
  bad[0].message_id = MessageId::from_bytes({9});
  bad[1].sender = bob;
  bad[2].recipient = alice;
  bad[3].topic = "t";
  bad[4].priority = contracts::MessagePriority::low;
  bad[5].sent_at += Nanos(1);
  bad[6].ttl += Nanos(1);
  for (const auto& message : bad) {
    const auto refused = check_fields(message, header);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind(), ErrorKind::invalid_input);
  }
}

}  // namespace
}  // namespace creto::messaging

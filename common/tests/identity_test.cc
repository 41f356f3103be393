#include "creto/common/identity.h"

#include <gtest/gtest.h>

#include "creto/common/id.h"

namespace creto {
namespace {

TEST(Identity, RoundTripsAnAgentsKey) {
  ByteArray<32> key{};
  key[1] = 7;
  const Identity agent = Identity::agent(key);
  EXPECT_TRUE(agent.text().starts_with("agent:nhi:ed25519:1"));
  EXPECT_EQ(Identity::parse(agent.text()).value(), agent);
  EXPECT_EQ(agent.pinned_key(), key);
}

TEST(Identity, HasOneSpellingPerPrincipal) {
  EXPECT_EQ(Identity::human("Ada@Example.com").value().text(), "human:ada@example.com");
  for (const char* text :
       {"human:Ada@example.com", "human:@x", "human:a@", "human:a@b@c", "human:a b@c", "service:Metering",
        "service:", "agent:nhi:ed25519:", "agent:nhi:ed25519:zz", "agent:x", "", "human:"})
    EXPECT_FALSE(Identity::parse(text)) << text;
}

TEST(Id, SortsByTheTimeItWasMade) {
  const auto first = SandboxId::fresh(from_unix_ns(1'000'000'000));
  const auto second = SandboxId::fresh(from_unix_ns(1'001'000'000));
  EXPECT_LT(first, second);
  EXPECT_LT(first.to_string(), second.to_string());
  EXPECT_EQ(SandboxId::parse(first.to_string()).value(), first);
}

TEST(Id, RefusesAnotherKindAndAnotherSpelling) {
  const std::string text = MessageId::fresh(from_unix_ns(0)).to_string();
  EXPECT_FALSE(SandboxId::parse(text));
  EXPECT_FALSE(MessageId::parse(text + "0"));
  EXPECT_FALSE(MessageId::parse("msg-0193A000-0000-7000-8000-000000000000"));
}

}  // namespace
}  // namespace creto

#include "invitation.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "creto/crypto/random.h"

namespace creto::app {
namespace {

Invitation invitation() {
  return {.org = "acme",
          .human = Identity::human("bob@example.com").value(),
          .server = "creto.example:8080",
          .authority = "-----BEGIN CERTIFICATE-----\n",
          .secret = crypto::random_secret(32),
          .expires_at = from_rfc3339("2026-12-01T00:00:00Z").value()};
}

TEST(Invitation, ReadsBackWhatWasWritten) {
  const Invitation made = invitation();
  const auto read = parse_invitation(to_text(made));
  ASSERT_TRUE(read) << read.error().to_string();
  EXPECT_EQ(read->org, made.org);
  EXPECT_EQ(read->human, made.human);
  EXPECT_EQ(read->server, made.server);
  EXPECT_EQ(read->authority, made.authority);
  EXPECT_EQ(read->expires_at, made.expires_at);
  EXPECT_TRUE(equal_constant_time(read->secret.reveal(), made.secret.reveal()));
}

TEST(Invitation, NothingInItReachesBeyondItsPlaceInTheSettings) {
  for (const auto& [field, value] :
       std::initializer_list<std::pair<const char*, std::string>>{{"org", "a\"\ndatabase = \"x"},
                                                                  {"org", ""},
                                                                  {"org", std::string(129, 'a')},
                                                                  {"server", "a:1\"\ntls = false"},
                                                                  {"server", "a"},
                                                                  {"server", std::string(301, 'a') + ":1"},
                                                                  {"human", "agent:nhi:x"},
                                                                  {"secret", "AAAA"},
                                                                  {"expires_at", "tomorrow"}}) {
    auto json = nlohmann::json::parse(to_text(invitation()));
    json[field] = value;
    const auto read = parse_invitation(json.dump());
    ASSERT_FALSE(read) << field << " " << value;
    EXPECT_NE(read.error().message().find(field), std::string::npos) << read.error().to_string();
  }
  EXPECT_FALSE(parse_invitation(std::string(17 << 10, ' ')));
}

}  // namespace
}  // namespace creto::app

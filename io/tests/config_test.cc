#include "creto/io/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "creto/io/telemetry.h"

namespace creto {
namespace {

using testing::HasSubstr;

struct Options {
  std::string name = "creto";
  std::int64_t port = 8080;
  bool tls = true;
  Nanos timeout = std::chrono::seconds(30);
  std::vector<std::string> services = {"nhi"};
  std::map<std::string, std::string> integrations;
  std::string secret;
  ConfigSchema schema() {
    ConfigSchema schema;
    schema.add("name", name, "the name");
    schema.add("grpc.port", port, "the port", {.min = 1, .max = 65535});
    schema.add("grpc.tls", tls, "whether TLS");
    schema.add("grpc.timeout", timeout, "how long");
    schema.add("services", services, "which");
    schema.add_table("integrations", integrations, "where others are");
    schema.add_secret("smtp.password", secret, "of the mail server");
    return schema;
  }
};

TEST(Config, LaterSourcesWin) {
  Options options;
  auto schema = options.schema();
  auto done = schema.load_text(
      "name = \"file\"\nservices = [\"a\", \"${WHO}\"]\n[grpc]\nport = 9\ntimeout = "
      "\"250ms\"\n[integrations.nhi]\nendpoint = \"nhi:8080\"\n",
      "creto.toml", {"WHO=b", "CRETO_GRPC__PORT=10", "CRETO_GRPC__TLS=false"});
  ASSERT_TRUE(done.has_value()) << done.error().to_string();
  EXPECT_EQ(options.name, "file");
  EXPECT_EQ(options.port, 10);
  EXPECT_FALSE(options.tls);
  EXPECT_EQ(options.timeout, std::chrono::milliseconds(250));
  EXPECT_EQ(options.services, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(options.integrations["nhi.endpoint"], "nhi:8080");
  EXPECT_THAT(schema.show(), HasSubstr("grpc.port = 10"));
  EXPECT_THAT(schema.show(), HasSubstr("environment CRETO_GRPC__PORT"));
}

TEST(Config, RefusesAVariableThatIsAlmostASettings) {
  Options options;
  for (const char* almost : {"CRETO_GRPC_PORT=10", "CRETO__GRPC__PORT=10", "CRETO_NAME_=x"})
    EXPECT_FALSE(options.schema().load_text("", "creto.toml", {almost})) << almost;
  const auto refused = options.schema().load_text("", "creto.toml", {"CRETO_GRPC_PORT=10"});
  EXPECT_THAT(refused.error().message(), HasSubstr("did you mean CRETO_GRPC__PORT?"));
  EXPECT_TRUE(options.schema().load_text("", "creto.toml", {"CRETO_HOME=/x", "CRETO_SOMETHING=1"}));
}

TEST(Config, ReadsYaml) {
  Options options;
  auto done =
      options.schema().load_text("name: file\ngrpc:\n  port: 9\n  tls: false\nservices: [a, b]\n", "creto.yaml", {});
  ASSERT_TRUE(done.has_value()) << done.error().to_string();
  EXPECT_EQ(options.port, 9);
  EXPECT_EQ(options.services.size(), 2u);
}

TEST(Config, NamesTheExactKeyAndChangesNothing) {
  auto refused = [](std::string_view text, std::string_view part, std::string_view name = "creto.toml") {
    Options options;
    auto done = options.schema().load_text(text, name, {});
    ASSERT_FALSE(done.has_value()) << text;
    EXPECT_THAT(done.error().message(), HasSubstr(std::string(part)));
    EXPECT_EQ(options.name, "creto");
  };
  refused("name = \"x\"\n[grpc]\nprot = 1", "unknown setting `grpc.prot`");
  refused("name = \"x\"\ngrpc.port = 70000", "`grpc.port` must be from 1 to 65535");
  refused("name = \"x\"\ngrpc.port = \"8080\"", "`grpc.port` must be a whole number");
  refused("name = \"x\"\ngrpc.tls = 1", "`grpc.tls` must be true or false");
  refused("name = \"${NOT_SET}\"", "`NOT_SET` is not set");
  refused("name = \"x", "creto.toml:1");
  refused("name: [", "creto.yaml:", "creto.yaml");
  refused("name: x\nother: y", "unknown setting `other`", "creto.yaml");
  refused(std::string(2 << 20, '#'), "over 1 MiB");
}

TEST(Config, ShowsNoSecrets) {
  Options options;
  auto schema = options.schema();
  ASSERT_TRUE(schema.load_text("smtp.password = \"hunter2\"", "c.toml", {}).has_value());
  EXPECT_EQ(options.secret, "hunter2");
  EXPECT_THAT(schema.show(), testing::Not(HasSubstr("hunter2")));
}

TEST(Telemetry, WritesOneJsonLinePerEventAndPrometheusText) {
  std::vector<std::string> lines;
  auto telemetry =
      ExportedTelemetry::create({.sink = [&](std::string_view line) { lines.emplace_back(line); }}, system_clock());
  Context ctx = Context::of_service(Identity::service("nhi").value());
  ctx.trace.trace_id = "0af7651916cd43dd8448eb211c80319c";
  telemetry->log(LogLevel::info, "platform", "agent_registered", &ctx,
                 {{"name", "a\"b\n\xff"}, {"n", 3}, {"ok", true}});
  telemetry->log(LogLevel::debug, "platform", "quiet", nullptr, {});
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_THAT(lines[0], HasSubstr("\"operation\":\"agent_registered\""));
  EXPECT_THAT(lines[0], HasSubstr("\"trace_id\":\"0af7651916cd43dd8448eb211c80319c\""));
  EXPECT_THAT(lines[0], HasSubstr("\"agent_nhi\":\"service:nhi\""));
  EXPECT_THAT(lines[0], HasSubstr("\"name\":\"a\\\"b\\u000a\xef\xbf\xbd\""));
  auto& counter = telemetry->counter("nhi_calls_total", "calls", {{"method", "get"}});
  EXPECT_EQ(&counter, &telemetry->counter("nhi_calls_total", "calls", {{"method", "get"}}));
  counter.add(2);
  telemetry->histogram("nhi_seconds", "time").observe(0.2);
  telemetry->gauge("nhi_agents", "agents").set(7);
  EXPECT_THAT(telemetry->metrics(), HasSubstr("nhi_calls_total{method=\"get\"} 2"));
  counter.add(1);
  EXPECT_THAT(telemetry->metrics(), HasSubstr("nhi_calls_total{method=\"get\"} 3"));
  EXPECT_THAT(telemetry->metrics(), HasSubstr("nhi_agents 7"));
}

}  // namespace
}  // namespace creto

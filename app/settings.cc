#include "settings.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "creto/common/json.h"

namespace creto::app {

void Settings::declare(ConfigSchema& schema) {
  constexpr ConfigSchema::Range port = {.min = 0, .max = 65535};
  schema.add("org", org, "the organization");
  schema.add("address", address, "where everything listens");
  schema.add("names", names,
             "DNS names and IP addresses by which others reach this server: its certificate is for them, and the first "
             "stands in invitations");
  schema.add("server", server, "host:port of the server's gRPC, for commands of a home that has no server of its own");
  schema.add("grpc.port", grpc_port, "0 takes any free port", port);
  schema.add("rest.port", rest_port, "0 takes any free port", port);
  schema.add("metrics.port", metrics_port, "Prometheus text at /metrics", port);
  schema.add("health.port", health_port, "/health and /ready", port);
  schema.add("tls", tls, "false only on a loopback address");
  schema.add("log.level", log_level, "debug, info, warn or error");
  schema.add_secret("database", database, "empty: SQLite in the home; else postgresql://…");
  schema.add("services", services, "the products to run here; empty: all");
  schema.add_table("integrations", integrations, "product that runs elsewhere, or audit = host:port of its gRPC");

  schema.add(
      "authz.fresh_for", authz_fresh_for,
      "with PostgreSQL: so long after it last answered, checks deny, as others may have changed policies; 0s: never");
  schema.add("authz.decision_log.enabled", decision_log, "every decision is kept, for `creto authz replay`");
  schema.add("authz.decision_log.age", decision_log_age, "then a segment of the decision log is removed");
  schema.add("authz.decision_log.bytes_max", decision_log_bytes_max,
             "of the decision log; its oldest segment is removed first", {.min = 0, .max = 1ll << 50});
  schema.add("authz.decision_log.segment_bytes", decision_log_segment_bytes, "then a new segment begins",
             {.min = 64 << 10, .max = 1ll << 30});
  schema.add("authz.decision_log.segment_age", decision_log_segment_age,
             "likewise; only then is the segment's hash in the audit log");
  schema.add("authz.decision_log.request_bytes_max", decision_log_request_bytes_max,
             "a longer request is logged without its context, and cannot be replayed", {.min = 4096, .max = 256 << 10});

  schema.add(
      "storage.public_url", storage_public_url,
      "where clients reach REST (\"https://creto.example\"): presigned URLs begin with it; empty: its own address");

  schema.add("inference.url", inference_url, "an OpenAI-compatible endpoint, up to and with /v1");
  schema.add("inference.model", inference_model, "the model where a request names none");
  schema.add("inference.embedding_model", inference_embedding_model, "empty: memory uses the built-in local one");
  schema.add("inference.embedding_dimension", inference_embedding_dimension, "of the embedding model's vectors",
             {.min = 1, .max = 65536});
  schema.add("inference.key_secret", inference_key_secret, "path/NAME of the API key in the vault");
  schema.add("inference.local", inference_local, "the endpoint is on this machine");
  schema.add("inference.injection", injection, "block, flag or off");

  schema.add("runtime.class", sandbox_runtime, "runsc (gVisor) or runc");
  schema.add("runtime.pool_size", pool_size, "sandboxes kept warm", {.min = 0, .max = 256});
  schema.add("runtime.pool_image", pool_image, "the image of the warm sandboxes; empty: none are kept");
  schema.add("runtime.image_directory", image_directory, "one OCI layout per image name; empty: `images` in the home");
  schema.add("runtime.output_age", output_age, "then the output of an ended sandbox is removed");
  schema.add("runtime.output_bytes_max", output_bytes_max,
             "of the output of all ended sandboxes; the oldest is removed first", {.min = 0, .max = 1ll << 50});
  schema.add("runtime.keep_sandboxes", keep_sandboxes,
             "running sandboxes live on when the server stops, and its next start takes them over; false ends them");
  schema.add("runtime.actions", actions_file, "file of the declared actions");
  schema.add_table("runtime.variables", action_variables, "NAME = value for ${NAME} in the actions file");
  schema.add_table("egress.hosts", egress_hosts, "name = address:port that the egress proxy uses for it");
  schema.add("oversight.webhook.url", webhook_url, "where approvers are notified");
  schema.add("oversight.webhook.secret", webhook_secret, "path/NAME of the signing secret in the vault");
  schema.add("metering.currency", metering_currency,
             "of budgets, cost thresholds and sums of costs; what a use cost in another one is recorded, not counted");
  schema.add("metering.idempotency_window", idempotency_window,
             "how long a key is known after its event arrived, 1 minute to 366 days");
  schema.add("metering.event_age_max", event_age_max, "older events are refused; at least 1 hour");
  schema.add("metering.event_ahead_max", event_ahead_max, "likewise events from the future; at most 1 day");
  schema.add("metering.retention", usage_retention,
             "how long usage events are held after they arrived, at least 32 days and the idempotency window, and as "
             "long as an invoice may ask for them; 0s: for ever");
  schema.add("metering.hold_max", hold_max, "the longest reservation, 1 minute to 366 days");
  schema.add("metering.detect_anomalies", detect_anomalies, "learns each agent's rhythm of spending");
  schema.add("metering.anomaly_confidence", anomaly_confidence,
             "how sure it must be that an hour's cost is unusual for people to be told; 0.5 up to 1");
  schema.add("metering.invoice_webhook.url", invoice_webhook_url, "where finished invoices are sent");
  schema.add("metering.invoice_webhook.secret", invoice_webhook_secret, "path/NAME of its signing secret in the vault");
  schema.add("metering.issuer.name", issuer_name, "who bills, on every invoice: the legal name");
  schema.add("metering.issuer.address", issuer_address, "by line");
  schema.add("metering.issuer.tax_id", issuer_tax_id, "as VAT DE 123 456 789");
  schema.add("metering.issuer.email", issuer_email, "for questions");
  schema.add("metering.issuer.payment", issuer_payment, "how to pay, by line: bank, account, terms");
  schema.add("metering.invoice_fonts", invoice_fonts,
             "directory of DejaVuSans.ttf and DejaVuSans-Bold.ttf, for texts beyond Latin-1 on PDFs");
}

Result<Settings> Settings::load(const Home& home) {
  Settings settings;
  ConfigSchema schema;
  settings.declare(schema);
  std::error_code ignored;
  std::vector<std::string> files;
  if (std::filesystem::exists(home.config(), ignored)) files.push_back(home.config().string());
  CRETO_TRY(schema.load(files, process_environment()));

  const bool loopback = settings.address == "127.0.0.1" || settings.address == "::1" || settings.address == "localhost";
  if (!settings.tls && !loopback)
    return Error(Product::platform, ErrorKind::invalid_input,
                 fmt::format("tls: may be false only on loopback, not on `{}`", settings.address));
  return settings;
}

Result<std::string> Settings::show(const Home& home) {
  Settings settings;
  ConfigSchema schema;
  settings.declare(schema);
  std::error_code ignored;
  std::vector<std::string> files;
  if (std::filesystem::exists(home.config(), ignored)) files.push_back(home.config().string());
  CRETO_TRY(schema.load(files, process_environment()));
  return schema.show();
}

}  // namespace creto::app

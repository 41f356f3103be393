#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "creto/common/time.h"
#include "creto/io/config.h"
#include "home.h"

namespace creto::app {

/// Every setting of `creto serve` and of the CLI that talks to it (C5): defaults < config.toml < CRETO_* environment.
struct Settings {
  std::string org = "default";
  std::string address = "127.0.0.1";  ///< where gRPC, REST, health and metrics listen
  std::vector<std::string> names;     ///< by which others reach this server, besides the loopback ones
  std::string server;                 ///< of a home without a server of its own: where its commands go
  std::int64_t grpc_port = 8080;      ///< 0: any free port; see ports.json in the home
  std::int64_t rest_port = 8081;
  std::int64_t metrics_port = 9090;
  std::int64_t health_port = 9091;
  bool tls = true;  ///< plain text is for loopback alone
  std::string log_level = "info";
  std::string database;               ///< empty: SQLite in the home; else a PostgreSQL conninfo, "postgresql://…"
  std::vector<std::string> services;  ///< empty: all
  /// Product that runs elsewhere, and `audit` = host:port of its gRPC, in a process with the same keys, authority and
  /// database.
  std::map<std::string, std::string> integrations;

  Nanos authz_fresh_for = std::chrono::seconds(30);
  bool decision_log = true;
  Nanos decision_log_age = std::chrono::days(30);
  std::int64_t decision_log_bytes_max = 1ll << 30;
  std::int64_t decision_log_segment_bytes = 64ll << 20;
  Nanos decision_log_segment_age = std::chrono::hours(1);
  std::int64_t decision_log_request_bytes_max = 64 << 10;

  std::string storage_public_url;  ///< empty: the REST address, or only a path where its port is any free one

  std::string inference_url;  ///< "http://127.0.0.1:11434/v1"
  std::string inference_model;
  std::string inference_embedding_model;
  std::int64_t inference_embedding_dimension = 1536;
  std::string inference_key_secret;  ///< "path/NAME" of a secret in the vault; empty: none is sent
  bool inference_local = false;
  std::string injection = "block";  ///< block, flag or off

  std::string sandbox_runtime = "runsc";
  std::int64_t pool_size = 1;
  std::string pool_image;
  std::string image_directory;                ///< one OCI layout per image name; empty: `images` in the home
  Nanos output_age = std::chrono::days(7);    ///< of what ended sandboxes wrote
  std::int64_t output_bytes_max = 1ll << 30;  ///< of all of that together
  bool keep_sandboxes = true;
  std::string actions_file;
  std::map<std::string, std::string> action_variables;  ///< for ${NAME} in the actions file
  std::map<std::string, std::string>
      egress_hosts;  ///< "rates.example" = "127.0.0.1:9999": names the proxy resolves itself
  std::string webhook_url;
  std::string webhook_secret;  ///< "path/NAME" of a secret in the vault
  std::string invoice_webhook_url;
  std::string invoice_webhook_secret;
  std::string metering_currency = "USD";
  std::string issuer_name, issuer_tax_id, issuer_email;
  std::vector<std::string> issuer_address, issuer_payment;
  Nanos idempotency_window = std::chrono::days(7);
  Nanos event_age_max = std::chrono::days(366);
  Nanos usage_retention{};
  Nanos event_ahead_max = std::chrono::hours(1);
  Nanos hold_max = std::chrono::days(7);
  bool detect_anomalies = true;
  double anomaly_confidence = 0.97;
  std::string invoice_fonts = "/usr/share/fonts/truetype/dejavu";

  friend bool operator==(const Settings&, const Settings&) = default;

  static Result<Settings> load(const Home& home);
  /// As TOML, each with its help and where it came from.
  static Result<std::string> show(const Home& home);

 private:
  void declare(ConfigSchema& schema);
};

}  // namespace creto::app

#include <fmt/format.h>

#include "creto/crypto/hash.h"
#include "creto/io/http_client.h"
#include "creto/oversight/oversight.h"

namespace creto::oversight {
namespace {

class WebhookNotifier final : public Notifier {
 public:
  WebhookNotifier(std::string url, Secret secret, const Clock& clock)
      : url_(std::move(url)), secret_(std::move(secret)), clock_(clock), client_(http::Client::create(clock)) {}

  Result<> notify(const Context& ctx, std::string_view id, std::string_view body) override {
    const auto seconds = std::chrono::floor<std::chrono::seconds>(clock_.now()).time_since_epoch().count();
    const std::string signed_content = fmt::format("{}.{}.{}", id, seconds, body);
    const Hash256 mac = crypto::hmac_sha256(secret_.reveal(), as_bytes(signed_content));

    http::ClientRequest request;
    request.method = "POST";
    request.url = url_;
    request.headers = {{"Content-Type", "application/json"},
                       {"webhook-id", std::string(id)},
                       {"webhook-timestamp", std::to_string(seconds)},
                       {"webhook-signature", "v1," + base64(mac)}};
    request.body = std::string(body);
    request.timeout = std::chrono::seconds(15);
    request.body_bytes_max = 64 << 10;
    const http::Response response = CRETO_TRY(client_->send(ctx, request));
    if (response.status >= 200 && response.status < 300) return {};
    // These are about this very notification: it will not be taken later, and keeps others waiting.
    const bool refused =
        response.status == 400 || response.status == 410 || response.status == 413 || response.status == 422;
    return Error(Product::oversight, refused ? ErrorKind::conflict : ErrorKind::unavailable,
                 fmt::format("webhook: answered {}", response.status));
  }

 private:
  const std::string url_;
  const Secret secret_;
  const Clock& clock_;
  const std::shared_ptr<http::Client> client_;
};

}  // namespace

std::unique_ptr<Notifier> create_webhook_notifier(std::string url, Secret secret, const Clock& clock) {
  return std::make_unique<WebhookNotifier>(std::move(url), std::move(secret), clock);
}

}  // namespace creto::oversight

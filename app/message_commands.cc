#include "message_commands.h"

#include <fmt/format.h>

#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "creto/common/bytes.h"
#include "creto/io/files.h"
#include "creto/io/rpc_channel.h"
#include "creto/io/sql.h"
#include "creto/messaging/endpoint.h"
#include "creto/messaging/messaging_rpc.h"
#include "creto/nhi/nhi_rpc.h"
#include "creto/vault/root_key.h"
#include "settings.h"

namespace creto::app {
namespace {

constexpr std::size_t body_bytes_max = 1 << 20;
constexpr std::size_t inbox_messages_max = 1000;
constexpr int topic_attempts_max = 3;

/// What the user gave; lives as long as the commands that refer to it.
struct Given {
  std::string to;
  std::string topic;
  std::string file = "-";
  std::string priority = "normal";
  std::string ttl = "24h";
  std::string wait = "0s";
  std::string message;
  std::string failed;
};

/// The carrier, as this home's human sees it. Needs no private key.
struct Post {
  std::shared_ptr<rpc::Channel> channel;
  std::unique_ptr<messaging::Messaging> messaging;
  std::unique_ptr<nhi::Nhi> nhi;
  Context ctx;
};

Result<Post> open_post(const Home& home, const cli::CallOptions& options) {
  const Settings settings = CRETO_TRY(Settings::load(home));
  Post post;
  post.channel = CRETO_TRY(cli::channel_to_server(home, options));
  post.messaging = messaging::create_messaging_client(post.channel);
  post.nhi = nhi::create_nhi_client(post.channel);
  Identity human = CRETO_TRY(human_of(home));
  post.ctx = Context::of(human, {human});
  post.ctx.org = settings.org;
  post.ctx.deadline = system_clock().monotonic() + options.timeout;
  post.ctx.idempotency_key =
      options.idempotency_key.empty() ? EventId::fresh(system_clock().now()).to_string() : options.idempotency_key;
  return post;
}

/// Where this home's human seals and opens. Private prekeys and sessions are kept in `messages.db`, each sealed under
/// `messages.key`, which opens with the same passphrase as his keys.
struct Desk {
  std::unique_ptr<sql::Database> database;
  std::unique_ptr<crypto::KeySealer> sealer;
  std::unique_ptr<messaging::EndpointStore> store;
  std::unique_ptr<messaging::EndpointKeys> keys;
  std::unique_ptr<messaging::Endpoint> endpoint;
};

Result<Desk> open_desk(const Home& home, Post& post) {
  const Identity& human = *post.ctx.caller;
  const Secret passphrase = CRETO_TRY(read_passphrase("passphrase of " + human.text(), false));
  const Bytes sealed = CRETO_TRY(io::real_files().read(home.human_keys(), 1 << 20));
  HumanKeys own = CRETO_TRY(HumanKeys::open(sealed, passphrase));
  const bool there = CRETO_TRY(io::real_files().exists(home.human_messages_key()));
  if (!there) CRETO_TRY(vault::create_root_key(home.human_messages_key(), passphrase));
  Desk desk;
  desk.sealer = CRETO_TRY(vault::open_root_key(home.human_messages_key(), passphrase));
  desk.database = CRETO_TRY(sql::open_sqlite(home.human_messages()));
  desk.store = CRETO_TRY(messaging::create_endpoint_store(*desk.database, *desk.sealer, post.ctx.org, human));
  const nhi::PublicKeys registered = CRETO_TRY(post.nhi->get_public_keys(post.ctx, human));
  CRETO_TRY(own.find(registered.key_id));
  std::optional<crypto::SigningKey> signing;
  std::optional<crypto::KemPrivateKey> kem;
  std::map<std::string, crypto::KemPrivateKey, std::less<>> earlier;
  for (HumanKeySet& set : own.sets) {
    if (set.id() == registered.key_id) {
      signing = std::move(set.signing);
      kem = std::move(set.kem);
    } else {
      earlier.emplace(set.id(), std::move(set.kem));
    }
  }
  desk.keys =
      messaging::keys_held_here(human, *std::move(signing), *std::move(kem), registered.key_id, std::move(earlier));
  desk.endpoint = messaging::create_endpoint(*desk.store, *desk.keys, *post.nhi, system_clock());
  // So that others can begin sessions with him, whose messages nobody can read who gets his keys later.
  CRETO_TRY(desk.endpoint->publish_keys(post.ctx));
  return desk;
}

Result<Secret> body_of(const std::string& file) {
  if (file != "-") return Secret(CRETO_TRY(io::real_files().read(file, body_bytes_max)));
  std::string typed(body_bytes_max + 1, '\0');
  std::cin.read(typed.data(), static_cast<std::streamsize>(typed.size()));
  const auto size = static_cast<std::size_t>(std::cin.gcount());
  Secret body = Secret::copy_of(as_bytes(std::string_view(typed).substr(0, size)));
  wipe(typed.data(), typed.size());
  if (size > body_bytes_max)
    return Error(Product::platform, ErrorKind::too_large,
                 fmt::format("message: has more than {} bytes; what is larger belongs into storage", body_bytes_max));
  return body;
}

Result<contracts::SealedMessage> seal_for(Post& post, Desk& desk, const Identity& recipient,
                                          const messaging::Draft& draft) {
  // A session has two ends; with himself he would be both.
  if (recipient != *post.ctx.caller) {
    auto in_session = desk.endpoint->seal_in_session(post.ctx, recipient, draft);
    if (in_session || in_session.error().kind() != ErrorKind::not_found) return in_session;
  }
  return desk.endpoint->seal(post.ctx, recipient, draft);
}

/// Who subscribes between sealing and sending makes the service refuse: then it is sealed anew, for him too.
Result<MessageId> send_to_topic(Post& post, Desk& desk, const std::string& topic, const messaging::Draft& draft) {
  for (int attempt = 1;; ++attempt) {
    const std::vector<Identity> subscribers = CRETO_TRY(post.messaging->subscribers(post.ctx, topic));
    const auto sealed = CRETO_TRY(desk.endpoint->seal_for_topic(post.ctx, topic, subscribers, draft));
    auto sent = post.messaging->send(post.ctx, sealed);
    const bool again = !sent && sent.error().kind() == ErrorKind::conflict && sent.error().retryable();
    if (!again || attempt == topic_attempts_max) return sent;
  }
}

Result<Output> send(const Given& given, const cli::CallOptions& options) {
  if (given.to.empty() == given.topic.empty())
    return Error(Product::platform, ErrorKind::invalid_input, "TO, --topic: one of them must be given, and not both");
  const Home home = CRETO_TRY(Home::locate());
  const Nanos ttl = CRETO_TRY(parse_duration(given.ttl));
  const auto priority = CRETO_TRY(contracts::message_priority_from_string(given.priority));
  const Secret body = CRETO_TRY(body_of(given.file));
  const messaging::Draft draft{.body = body.reveal(), .priority = priority, .ttl = ttl};
  Post post = CRETO_TRY(open_post(home, options));
  Desk desk = CRETO_TRY(open_desk(home, post));
  const auto id = CRETO_TRY([&]() -> Result<MessageId> {
    if (!given.topic.empty()) return send_to_topic(post, desk, given.topic, draft);
    const nhi::Agent recipient = CRETO_TRY(post.nhi->find_agent(post.ctx, given.to));
    const auto sealed = CRETO_TRY(seal_for(post, desk, recipient.identity, draft));
    return post.messaging->send(post.ctx, sealed);
  }());
  return Output{id.to_string() + "\n", Json{{"message_id", id.to_string()}}.dump(2), 0};
}

Result<std::vector<contracts::ReceivedMessage>> inbox(Post& post, const std::string& wait) {
  const Nanos patience = CRETO_TRY(parse_duration(wait));
  return post.messaging->receive(post.ctx, {.messages_max = inbox_messages_max, .wait = patience});
}

Result<Output> list(const Given& given, const cli::CallOptions& options) {
  const Home home = CRETO_TRY(Home::locate());
  Post post = CRETO_TRY(open_post(home, options));
  const auto waiting = CRETO_TRY(inbox(post, given.wait));
  Json messages = Json::array();
  for (const contracts::ReceivedMessage& one : waiting) {
    const contracts::SealedMessage& message = one.message;
    messages.push_back({{"message_id", message.message_id.to_string()},
                        {"from", message.sender.text()},
                        {"topic", message.topic},
                        {"priority", std::string(contracts::to_string(message.priority))},
                        {"sent_at", to_rfc3339(message.sent_at)},
                        {"expires_at", to_rfc3339(message.sent_at + message.ttl)},
                        {"envelope_bytes", message.envelope.size()}});
  }
  const Json answer{{"messages", std::move(messages)}};
  std::string text =
      waiting.empty() ? "nothing\n" : cli::render(answer, {"message_id", "from", "topic", "priority", "sent_at"});
  return Output{std::move(text), answer.dump(2), 0};
}

Result<Output> read(const Given& given, const cli::CallOptions& options) {
  const Home home = CRETO_TRY(Home::locate());
  const MessageId id = CRETO_TRY(MessageId::parse(given.message));
  Post post = CRETO_TRY(open_post(home, options));
  const auto waiting = CRETO_TRY(inbox(post, "0s"));
  const auto found = std::ranges::find(waiting, id, [](const auto& one) { return one.message.message_id; });
  if (found == waiting.end())
    return Error(
        Product::platform, ErrorKind::not_found,
        fmt::format("message `{}` does not wait for you: acknowledged, expired, or never yours", given.message));
  Desk desk = CRETO_TRY(open_desk(home, post));
  const messaging::OpenedMessage opened = CRETO_TRY(desk.endpoint->open(post.ctx, found->message));
  const std::string_view body = opened.body.reveal_text();
  const bool text = is_valid_utf8(body);
  const bool session = opened.protocol == messaging::Protocol::session;
  const Json json{{"message_id", opened.id.to_string()},
                  {"from", opened.sender.text()},
                  {"topic", opened.topic},
                  {"priority", std::string(contracts::to_string(opened.priority))},
                  {"sent_at", to_rfc3339(opened.sent_at)},
                  {"protocol", session ? "session" : "envelope"},
                  {"verified", true},
                  {"body", text ? std::string(body) : base64(opened.body.reveal())},
                  {"encoding", text ? "text" : "base64"}};
  return Output{std::string(body), json.dump(2), 0};
}

Result<Output> acknowledge(const Given& given, const cli::CallOptions& options) {
  const Home home = CRETO_TRY(Home::locate());
  const MessageId id = CRETO_TRY(MessageId::parse(given.message));
  Post post = CRETO_TRY(open_post(home, options));
  Desk desk = CRETO_TRY(open_desk(home, post));
  const bool failed = !given.failed.empty();
  const auto receipt = failed ? messaging::DeliveryState::failed : messaging::DeliveryState::read;
  // The queue first: what is still in it must open again.
  CRETO_TRY(post.messaging->acknowledge(post.ctx, id, receipt, given.failed, std::nullopt));
  CRETO_TRY(desk.endpoint->acknowledge(post.ctx, id));
  const std::string state(messaging::to_string(receipt));
  return Output{state + "\n", Json{{"message_id", id.to_string()}, {"state", state}}.dump(2), 0};
}

Result<Output> new_session(const Given& given, const cli::CallOptions& options) {
  const Home home = CRETO_TRY(Home::locate());
  Post post = CRETO_TRY(open_post(home, options));
  const nhi::Agent peer = CRETO_TRY(post.nhi->find_agent(post.ctx, given.to));
  Desk desk = CRETO_TRY(open_desk(home, post));
  CRETO_TRY(desk.endpoint->end_sessions(post.ctx, peer.identity));
  return Output{fmt::format("the next message to {} begins a new session\n", peer.identity.text()),
                Json{{"peer", peer.identity.text()}}.dump(2), 0};
}

}  // namespace

void add_message_commands(const MakeCommand& command, std::function<Result<cli::CallOptions>()> options) {
  const auto given = std::make_shared<Given>();
  const auto with_options = [&](std::string_view path, std::string_view help,
                                Result<Output> (*action)(const Given&, const cli::CallOptions&)) {
    return command(path, help, [given, options, action]() -> Result<Output> {
      const cli::CallOptions call = CRETO_TRY(options());
      return action(*given, call);
    });
  };
  CLI::App* sending =
      with_options("messages send", "an end-to-end encrypted message, sealed here with your keys", send);
  sending->add_option("TO", given->to, "identity or name");
  sending->add_option("--topic", given->topic, "to all its subscribers");
  sending->add_option("--from", given->file, "file with the message, or - for standard input")->capture_default_str();
  sending->add_option("--priority", given->priority, "low, normal, high or urgent")->capture_default_str();
  sending->add_option("--ttl", given->ttl, "1s to 30d; then it is not delivered any more")->capture_default_str();
  CLI::App* listing = with_options("messages list", "what waits for you: urgent before low, then oldest first", list);
  listing->add_option("--wait", given->wait, "for the first one, at most 30s")->capture_default_str();
  CLI::App* reading = with_options("messages read",
                                   "decrypt a message; it waits on until acknowledged, and opens the same again", read);
  reading->add_option("ID", given->message)->required();
  CLI::App* acknowledging = with_options(
      "messages ack", "you have read a message: its sender gets the receipt, and it waits no longer", acknowledge);
  acknowledging->add_option("ID", given->message)->required();
  acknowledging->add_option("--failed", given->failed, "it is of no use: the reason its sender gets");
  with_options("messages new-session",
               "forget the sessions with somebody: where your home, or his, went back to an older copy", new_session)
      ->add_option("PEER", given->to, "identity or name")
      ->required();
}

}  // namespace creto::app

#include "store.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "creto/common/assert.h"
#include "creto/common/json.h"
#include "creto/common/names.h"

namespace creto::runtime {
namespace {

constexpr sql::Migration migrations[] = {
    {1, "sandboxes and operations", R"(
CREATE TABLE runtime_sandboxes (
  org TEXT NOT NULL,
  id TEXT NOT NULL,
  agent TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('starting', 'running', 'terminated')),
  doc TEXT NOT NULL,
  PRIMARY KEY (org, id));
CREATE INDEX runtime_sandboxes_state ON runtime_sandboxes (state);
CREATE INDEX runtime_sandboxes_agent ON runtime_sandboxes (org, agent, id);
CREATE TABLE runtime_operations (
  org TEXT NOT NULL,
  id TEXT NOT NULL,
  agent TEXT NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('action', 'inference')),
  op_key TEXT,
  done BIGINT NOT NULL CHECK (done IN (0, 1)),
  created_at BIGINT NOT NULL,
  doc TEXT NOT NULL,
  PRIMARY KEY (org, id));
CREATE UNIQUE INDEX runtime_operations_key ON runtime_operations (org, agent, kind, op_key);
CREATE INDEX runtime_operations_open ON runtime_operations (kind, done))"},
    {2, "messages that wait for approval", R"(
CREATE TABLE runtime_waiting_messages (
  org TEXT NOT NULL,
  agent TEXT NOT NULL,
  content TEXT NOT NULL,
  message_id TEXT NOT NULL,
  recipient TEXT NOT NULL,
  topic TEXT NOT NULL,
  priority TEXT NOT NULL,
  sent_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL,
  envelope BYTEA NOT NULL,
  PRIMARY KEY (org, agent, content));
CREATE INDEX runtime_waiting_messages_end ON runtime_waiting_messages (expires_at))"},
};

constexpr auto states = std::to_array<Named<SandboxState>>({{SandboxState::starting, "starting"},
                                                            {SandboxState::running, "running"},
                                                            {SandboxState::terminated, "terminated"}});
constexpr auto reasons =
    std::to_array<Named<TerminationReason>>({{TerminationReason::completed, "completed"},
                                             {TerminationReason::failed, "failed"},
                                             {TerminationReason::timeout, "timeout"},
                                             {TerminationReason::manual, "manual"},
                                             {TerminationReason::resource_limit, "resource_limit"}});
constexpr auto verdicts = std::to_array<Named<EgressVerdict>>(
    {{EgressVerdict::allow, "allow"}, {EgressVerdict::deny, "deny"}, {EgressVerdict::require_authz, "require_authz"}});

Error damaged(std::string_view what) {
  return Error(Product::runtime, ErrorKind::internal, fmt::format("a stored {} cannot be read", what));
}

std::string number(std::int64_t value) { return std::to_string(value); }
std::int64_t to_number(const Json& json, const char* key) {
  return json.contains(key) ? std::strtoll(json[key].get_ref<const std::string&>().c_str(), nullptr, 10) : 0;
}

std::string encode(const SandboxRecord& record) {
  const auto& s = record.sandbox;
  Json chain = Json::array();
  for (const auto& link : s.delegation_chain) chain.push_back(link.text());
  Json egress = Json::array();
  for (const auto& rule : record.egress) egress.push_back({rule.host, rule.port, to_string(rule.verdict)});
  Json doc = {
      {"agent", s.agent.text()},
      {"chain", std::move(chain)},
      {"detail", s.detail},
      {"image", s.image},
      {"image_digest", s.image_digest},
      {"runtime_class", s.runtime_class},
      {"isolation", s.isolation},
      {"command", s.command},
      {"cpu_millicores", s.limits.cpu_millicores},
      {"memory_bytes", number(static_cast<std::int64_t>(s.limits.memory_bytes))},
      {"pids", s.limits.pids},
      {"time_ns", number(s.limits.time.count())},
      {"warm", s.warm},
      {"created_ns", number(unix_ns(s.created_at))},
      {"environment", record.environment},
      {"working_directory", record.working_directory},
      {"egress", std::move(egress)},
      {"pid", record.process.pid},
      {"start_time", number(static_cast<std::int64_t>(record.process.start_time))},
      {"network_slot", record.network_slot},
      {"secret_delegation", record.secret_delegation},
      {"attestation", s.attestation.document},
      {"attestation_algorithm", s.attestation.signature.algorithm},
      {"attestation_signature", base64(s.attestation.signature.value)},
  };
  if (record.creator) doc["creator"] = record.creator->text();
  if (s.parent) doc["parent"] = s.parent->to_string();
  if (s.reason) doc["reason"] = to_string(*s.reason);
  if (s.exit_code) doc["exit_code"] = *s.exit_code;
  if (s.ready_at) doc["ready_ns"] = number(unix_ns(*s.ready_at));
  if (s.terminated_at) doc["terminated_ns"] = number(unix_ns(*s.terminated_at));
  if (const auto& ending = record.ending) {
    doc["ending"] = {{"reason", to_string(ending->reason)},
                     {"detail", ending->detail},
                     {"cpu_ns", number(ending->usage.cpu.count())},
                     {"memory_peak_bytes", number(static_cast<std::int64_t>(ending->usage.memory_peak_bytes))}};
    if (ending->exit_code) doc["ending"]["exit_code"] = *ending->exit_code;
  }
  return doc.dump(-1, ' ', false, Json::error_handler_t::replace);  // what others said may be no text
}

Result<SandboxRecord> decode(const sql::Row& row) {
  try {
    const auto doc = Json::parse(row.text(3));
    auto id = CRETO_TRY(SandboxId::parse(row.text(1)));
    auto agent = CRETO_TRY(Identity::parse(doc.at("agent").get_ref<const std::string&>()));
    SandboxRecord record{row.text(0), Sandbox{id, agent}, {}, {}, {}, {}, 0, {}};
    auto& s = record.sandbox;
    for (const auto& link : doc.at("chain")) {
      auto identity = CRETO_TRY(Identity::parse(link.get_ref<const std::string&>()));
      s.delegation_chain.push_back(std::move(identity));
    }
    const auto state = sandbox_state_from_string(row.text(2));
    if (!state) return damaged("sandbox");
    s.state = *state;
    if (doc.contains("parent")) s.parent = CRETO_TRY(SandboxId::parse(doc["parent"].get_ref<const std::string&>()));
    if (doc.contains("creator"))
      record.creator = CRETO_TRY(Identity::parse(doc["creator"].get_ref<const std::string&>()));
    if (doc.contains("reason"))
      s.reason = CRETO_TRY(termination_reason_from_string(doc["reason"].get_ref<const std::string&>()));
    if (doc.contains("ending")) {
      const auto& stored = doc["ending"];
      const auto reason = termination_reason_from_string(stored.at("reason").get_ref<const std::string&>());
      if (!reason) return damaged("sandbox");
      SandboxEnding ending{*reason, stored.at("detail"), std::nullopt, {}};
      if (stored.contains("exit_code")) ending.exit_code = stored["exit_code"].get<int>();
      ending.usage.cpu = Nanos(to_number(stored, "cpu_ns"));
      ending.usage.memory_peak_bytes = static_cast<std::uint64_t>(to_number(stored, "memory_peak_bytes"));
      record.ending = std::move(ending);
    }
    if (doc.contains("exit_code")) s.exit_code = doc["exit_code"].get<int>();
    s.detail = doc.at("detail");
    s.image = doc.at("image");
    s.image_digest = doc.at("image_digest");
    s.runtime_class = doc.at("runtime_class");
    s.isolation = doc.at("isolation");
    s.command = doc.at("command").get<std::vector<std::string>>();
    s.limits.cpu_millicores = doc.at("cpu_millicores");
    s.limits.memory_bytes = static_cast<std::uint64_t>(to_number(doc, "memory_bytes"));
    s.limits.pids = doc.at("pids");
    s.limits.time = Nanos(to_number(doc, "time_ns"));
    s.warm = doc.at("warm");
    s.created_at = from_unix_ns(to_number(doc, "created_ns"));
    if (doc.contains("ready_ns")) s.ready_at = from_unix_ns(to_number(doc, "ready_ns"));
    if (doc.contains("terminated_ns")) s.terminated_at = from_unix_ns(to_number(doc, "terminated_ns"));
    record.environment = doc.at("environment").get<std::map<std::string, std::string>>();
    record.working_directory = doc.at("working_directory");
    for (const auto& rule : doc.at("egress")) {
      const auto verdict = CRETO_TRY(egress_verdict_from_string(rule.at(2).get_ref<const std::string&>()));
      record.egress.push_back({rule.at(0), rule.at(1), verdict});
    }
    record.process.pid = doc.at("pid");
    record.process.start_time = static_cast<std::uint64_t>(to_number(doc, "start_time"));
    record.network_slot = doc.at("network_slot");
    record.secret_delegation = doc.at("secret_delegation");
    s.attestation.document = doc.at("attestation");
    s.attestation.signature.algorithm = doc.at("attestation_algorithm");
    s.attestation.signature.value =
        CRETO_TRY(from_base64(doc.at("attestation_signature").get_ref<const std::string&>()));
    return record;
  } catch (const Json::exception&) {
    return damaged("sandbox");
  }
}

Result<std::vector<SandboxRecord>> decode_all(const sql::Rows& rows) {
  std::vector<SandboxRecord> records;
  for (const auto row : rows) {
    auto record = CRETO_TRY(decode(row));
    records.push_back(std::move(record));
  }
  return records;
}

std::string encode(const OperationRecord& record) {
  const Json doc = {{"sandbox", record.sandbox.to_string()}, {"name", record.name},     {"arguments", record.arguments},
                    {"reasoning", record.reasoning},         {"status", record.status}, {"result", record.result}};
  return doc.dump(-1, ' ', false, Json::error_handler_t::replace);  // what others said may be no text
}

Result<OperationRecord> decode_operation(const sql::Row& row) {
  try {
    const auto doc = Json::parse(row.text(6));
    auto agent = CRETO_TRY(Identity::parse(row.text(2)));
    auto sandbox = CRETO_TRY(SandboxId::parse(doc.at("sandbox").get_ref<const std::string&>()));
    return OperationRecord{row.text(0),    row.text(1),         agent,
                           sandbox,        row.text(3),         row.optional_text(4).value_or(""),
                           doc.at("name"), doc.at("arguments"), doc.at("reasoning"),
                           row.boolean(5), doc.at("status"),    doc.at("result")};
  } catch (const Json::exception&) {
    return damaged("operation");
  }
}

constexpr std::string_view operation_columns = "SELECT org, id, agent, kind, op_key, done, doc FROM runtime_operations";

}  // namespace

Result<> RuntimeStore::migrate(sql::Database& database) { return sql::migrate(database, "runtime", migrations); }

Result<> RuntimeStore::insert(sql::Tx& tx, const SandboxRecord& record) {
  CRETO_TRY(tx.exec("INSERT INTO runtime_sandboxes (org, id, agent, state, doc) VALUES ($1, $2, $3, $4, $5)",
                    {record.org, record.sandbox.id.to_string(), record.sandbox.agent.text(),
                     to_string(record.sandbox.state), encode(record)}));
  return {};
}

Result<> RuntimeStore::update(sql::Tx& tx, const SandboxRecord& record) {
  const auto changed = CRETO_TRY(
      tx.exec("UPDATE runtime_sandboxes SET state = $3, doc = $4 WHERE org = $1 AND id = $2 AND state <> 'terminated'",
              {record.org, record.sandbox.id.to_string(), to_string(record.sandbox.state), encode(record)}));
  if (changed == 0) return Error(Product::runtime, ErrorKind::conflict, "the sandbox has terminated");
  return {};
}

Result<std::optional<SandboxRecord>> RuntimeStore::find(sql::Tx& tx, const std::string& org, const SandboxId& id) {
  const auto rows = CRETO_TRY(
      tx.query("SELECT org, id, state, doc FROM runtime_sandboxes WHERE org = $1 AND id = $2", {org, id.to_string()}));
  if (rows.empty()) return std::nullopt;
  auto record = CRETO_TRY(decode(rows.front()));
  return std::optional(std::move(record));
}

Result<std::vector<SandboxRecord>> RuntimeStore::list(sql::Tx& tx, const std::string& org,
                                                      const SandboxFilter& filter) {
  const auto rows = CRETO_TRY(tx.query(
      "SELECT org, id, state, doc FROM runtime_sandboxes WHERE org = $1 AND id > $2 AND ($3 = '' OR agent = $3) AND "
      "($4 = '' OR state = $4) "
      "ORDER BY id LIMIT $5",
      {org, filter.after ? filter.after->to_string() : std::string(),
       filter.agent ? filter.agent->text() : std::string(),
       filter.state ? std::string(to_string(*filter.state)) : std::string(), static_cast<std::int64_t>(filter.limit)}));
  return decode_all(rows);
}

Result<std::vector<SandboxRecord>> RuntimeStore::not_terminated(sql::Tx& tx) {
  const auto rows =
      CRETO_TRY(tx.query("SELECT org, id, state, doc FROM runtime_sandboxes WHERE state <> 'terminated'"));
  return decode_all(rows);
}

Result<> RuntimeStore::insert(sql::Tx& tx, const OperationRecord& record, Instant now) {
  sql::Value key;
  if (!record.key.empty()) key = record.key;
  CRETO_TRY(
      tx.exec("INSERT INTO runtime_operations (org, id, agent, kind, op_key, done, created_at, doc) VALUES ($1, $2, "
              "$3, $4, $5, 0, $6, $7)",
              {record.org, record.id, record.agent.text(), record.kind, key, now, encode(record)}));
  return {};
}

Result<> RuntimeStore::update(sql::Tx& tx, const OperationRecord& record) {
  const auto changed =
      CRETO_TRY(tx.exec("UPDATE runtime_operations SET done = $3, doc = $4 WHERE org = $1 AND id = $2 AND done = 0",
                        {record.org, record.id, record.done ? 1 : 0, encode(record)}));
  if (changed == 0) return Error(Product::runtime, ErrorKind::conflict, "the operation is already done");
  return {};
}

Result<> RuntimeStore::remove(sql::Tx& tx, const OperationRecord& record) {
  CRETO_TRY(tx.exec("DELETE FROM runtime_operations WHERE org = $1 AND id = $2 AND done = 0", {record.org, record.id}));
  return {};
}

Result<std::optional<OperationRecord>> RuntimeStore::find_operation(sql::Tx& tx, const std::string& org,
                                                                    const Identity& agent, std::string_view kind,
                                                                    const std::string& key) {
  if (key.empty()) return std::nullopt;
  const auto rows = CRETO_TRY(
      tx.query(std::string(operation_columns) + " WHERE org = $1 AND agent = $2 AND kind = $3 AND op_key = $4",
               {org, agent.text(), kind, key}));
  if (rows.empty()) return std::nullopt;
  auto record = CRETO_TRY(decode_operation(rows.front()));
  return std::optional(std::move(record));
}

Result<std::vector<OperationRecord>> RuntimeStore::unfinished(sql::Tx& tx, std::string_view kind) {
  const auto rows =
      CRETO_TRY(tx.query(std::string(operation_columns) + " WHERE kind = $1 AND done = 0 ORDER BY created_at", {kind}));
  std::vector<OperationRecord> records;
  for (const auto row : rows) {
    auto record = CRETO_TRY(decode_operation(row));
    records.push_back(std::move(record));
  }
  return records;
}

std::string_view to_string(SandboxState state) { return name_of(states, state); }
Result<SandboxState> sandbox_state_from_string(std::string_view text) {
  return value_of(states, text, "state", Product::runtime);
}
std::string_view to_string(TerminationReason reason) { return name_of(reasons, reason); }
Result<TerminationReason> termination_reason_from_string(std::string_view text) {
  return value_of(reasons, text, "reason", Product::runtime);
}
std::string_view to_string(EgressVerdict verdict) { return name_of(verdicts, verdict); }
Result<EgressVerdict> egress_verdict_from_string(std::string_view text) {
  return value_of(verdicts, text, "egress verdict", Product::runtime);
}

Result<> RuntimeStore::insert(sql::Tx& tx, const WaitingMessage& waiting) {
  const auto& message = waiting.message;
  CRETO_TRY(
      tx.exec("INSERT INTO runtime_waiting_messages (org, agent, content, message_id, recipient, topic, priority, "
              "sent_at, expires_at, envelope) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
              {waiting.org, waiting.agent.text(), waiting.content, message.message_id.to_string(),
               message.recipient.text(), message.topic, contracts::to_string(message.priority), message.sent_at,
               message.sent_at + message.ttl, message.envelope}));
  return {};
}

Result<std::optional<contracts::SealedMessage>> RuntimeStore::find_waiting(sql::Tx& tx, const std::string& org,
                                                                           const Identity& agent,
                                                                           const std::string& content, Instant now) {
  const auto rows =
      CRETO_TRY(tx.query("SELECT message_id, recipient, topic, priority, sent_at, expires_at, envelope "
                         "FROM runtime_waiting_messages WHERE org = $1 AND agent = $2 AND content = $3",
                         {org, agent.text(), content}));
  if (rows.empty() || rows.front().instant(5) <= now) return std::optional<contracts::SealedMessage>();
  const auto row = rows.front();
  const auto id = MessageId::parse(row.text(0));
  const auto recipient = Identity::parse(row.text(1));
  const auto priority = contracts::message_priority_from_string(row.text(3));
  if (!id || !recipient || !priority) return damaged("message");
  return std::optional(contracts::SealedMessage{.message_id = *id,
                                                .sender = agent,
                                                .recipient = *recipient,
                                                .topic = row.text(2),
                                                .priority = *priority,
                                                .sent_at = row.instant(4),
                                                .ttl = row.instant(5) - row.instant(4),
                                                .envelope = row.bytes(6)});
}

Result<std::int64_t> RuntimeStore::count_waiting(sql::Tx& tx, const std::string& org, const Identity& agent) {
  const auto rows = CRETO_TRY(
      tx.query("SELECT count(*) FROM runtime_waiting_messages WHERE org = $1 AND agent = $2", {org, agent.text()}));
  return rows.front().integer(0);
}

Result<> RuntimeStore::remove_waiting(sql::Tx& tx, const std::string& org, const Identity& agent,
                                      const std::string& content) {
  CRETO_TRY(tx.exec("DELETE FROM runtime_waiting_messages WHERE org = $1 AND agent = $2 AND content = $3",
                    {org, agent.text(), content}));
  return {};
}

Result<> RuntimeStore::forget_waiting(sql::Tx& tx, Instant now) {
  CRETO_TRY(tx.exec("DELETE FROM runtime_waiting_messages WHERE expires_at <= $1", {now}));
  return {};
}

}  // namespace creto::runtime

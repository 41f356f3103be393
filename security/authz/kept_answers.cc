#include "kept_answers.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "creto/common/bytes.h"
#include "creto/common/json.h"
#include "creto/common/time.h"

namespace creto::authz {
namespace {

Json json_of(const PolicyVersion& version) {
  return Json{{"version", version.version}, {"made_at", unix_ns(version.made_at)}, {"made_by", version.made_by},
              {"what", version.what},       {"policies", version.policies},        {"added", version.added},
              {"changed", version.changed}, {"removed", version.removed},          {"hash", hex(version.hash)}};
}

Result<PolicyVersion> version_of(const Json& json) {
  PolicyVersion version{.version = json.at("version").get<std::int64_t>(),
                        .made_at = from_unix_ns(json.at("made_at").get<std::int64_t>()),
                        .made_by = json.at("made_by").get<std::string>(),
                        .what = json.at("what").get<std::string>(),
                        .policies = json.at("policies").get<std::int64_t>(),
                        .added = json.at("added").get<std::int64_t>(),
                        .changed = json.at("changed").get<std::int64_t>(),
                        .removed = json.at("removed").get<std::int64_t>()};
  const Bytes hash = CRETO_TRY(from_hex(json.at("hash").get<std::string>()));
  if (hash.size() == version.hash.size()) std::copy(hash.begin(), hash.end(), version.hash.begin());
  return version;
}

}  // namespace

std::string encode(const Policy& policy) {
  return Json{{"id", policy.id},
              {"text", policy.text},
              {"version", policy.version},
              {"updated_at", unix_ns(policy.updated_at)},
              {"updated_by", policy.updated_by}}
      .dump();
}

Result<Policy> decode(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text));
  return Policy{.id = json.at("id").get<std::string>(),
                .text = json.at("text").get<std::string>(),
                .version = json.at("version").get<std::int64_t>(),
                .updated_at = from_unix_ns(json.at("updated_at").get<std::int64_t>()),
                .updated_by = json.at("updated_by").get<std::string>()};
}

std::string encode_version(const PolicyVersion& version) { return json_of(version).dump(); }
Result<PolicyVersion> decode_version(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text));
  return version_of(json);
}

std::string encode_applied(const AppliedPolicies& applied) {
  return Json{{"version", json_of(applied.version)},
              {"added", applied.added},
              {"changed", applied.changed},
              {"removed", applied.removed},
              {"warnings", applied.warnings}}
      .dump();
}
Result<AppliedPolicies> decode_applied(std::string_view text) {
  const Json json = CRETO_TRY(parse_json(text, {.bytes_max = 64 << 20}));
  AppliedPolicies applied;
  applied.version = CRETO_TRY(version_of(json.at("version")));
  json.at("added").get_to(applied.added);
  json.at("changed").get_to(applied.changed);
  json.at("removed").get_to(applied.removed);
  json.at("warnings").get_to(applied.warnings);
  return applied;
}

}  // namespace creto::authz

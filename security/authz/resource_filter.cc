#include "resource_filter.h"

#include <fmt/format.h>

#include <algorithm>

#include "cedar/format.h"
#include "cedar/policy_json.h"
#include "cedar/sql_filter.h"
#include "creto/common/json.h"

// Policies are evaluated once with the resource unknown, which tells what holds whatever it is and leaves the rest as
// policies over it; and what is left for each stored entity of the type.
namespace creto::authz {
namespace {

/// As in `check`: a forbid that errs denies.
constexpr cedar::ErringForbid erring = cedar::ErringForbid::denies;

/// Takes what is permitted until there is enough; a page's worth of candidates is looked at at a time.
Result<> list_permitted(const OrgState& state, const cedar::PartialEvaluation& evaluation, cedar::EntityView& entities,
                        const FilterQuestion& question, const std::function<bool()>& expired, ResourceFilter& filter) {
  const std::string& type = evaluation.request.resource.type;
  const auto ids = state.ids.find(type);
  if (ids == state.ids.end()) return {};
  const std::size_t step = std::max<std::size_t>(question.limit, 100);
  std::vector<EntityUid> candidates;
  for (std::optional<std::string> after = question.after; !filter.more; after = std::move(candidates.back().id)) {
    if (expired()) return Error(Product::platform, ErrorKind::timeout, "the caller's deadline passed");
    candidates.clear();
    const auto take = [&](const std::string& id) {
      candidates.push_back({type, id});
      return candidates.size() < step;
    };
    after ? ids->second.each_behind(*after, take) : ids->second.each(take);
    if (candidates.empty()) break;
    auto permitted = CRETO_TRY(cedar::query_resources(evaluation, erring, candidates, entities));
    for (EntityUid& uid : permitted) {
      filter.more = filter.resources.size() == question.limit;
      if (filter.more) break;
      filter.resources.push_back(std::move(uid.id));
    }
  }
  return {};
}

/// What is left of the policies, each under its id.
Result<> write_residuals(const cedar::PartialEvaluation& evaluation, ResourceFilter& filter) {
  cedar::PolicySetDecl residuals;
  for (const cedar::PartialPolicy& policy : evaluation.policies) {
    if (!policy.residual) continue;
    residuals.policies.emplace(policy.policy->id, *policy.residual);
    cedar::PolicyAst named = *policy.residual;
    named.annotations.insert_or_assign("id", policy.policy->id);
    filter.residual += cedar::to_text(named) + "\n";
  }
  const Json json = CRETO_TRY(cedar::to_json(residuals));
  filter.residual_json = json.dump();
  return {};
}

Result<cedar::SqlMapping> mapping_of(const OrgState& state, const std::string& columns) {
  auto mapping = cedar::parse_sql_mapping(columns);
  if (!mapping) return Error(Product::platform, ErrorKind::invalid_input, "columns: " + mapping.error().message());
  if (state.schema) cedar::exclude_ancestors(*mapping, state.schema->schema);
  return mapping;
}

}  // namespace

Result<ResourceFilter> filter_resources(const OrgState& state, cedar::EntityView& entities,
                                        const FilterQuestion& question, cedar::Request request,
                                        const std::function<bool()>& expired) {
  ResourceFilter filter;
  filter.snapshot = state.version;
  const auto evaluation = CRETO_TRY(cedar::evaluate_partially(state.deciding(),
                                                              {.principal = {request.principal},
                                                               .action = {request.action},
                                                               .resource = {std::nullopt, request.resource.type},
                                                               .context = request.context},
                                                              entities));
  switch (evaluation.decision(erring)) {
    case cedar::PartialDecision::allow:
      filter.kind = ResourceFilter::Kind::all;
      break;
    case cedar::PartialDecision::deny:
      filter.kind = ResourceFilter::Kind::none;
      break;
    case cedar::PartialDecision::undecided:
      filter.kind = ResourceFilter::Kind::some;
      CRETO_TRY(write_residuals(evaluation, filter));
      break;
  }
  if (!question.columns.empty()) {
    const cedar::SqlMapping mapping = CRETO_TRY(mapping_of(state, question.columns));
    const auto dialect = question.sqlite ? cedar::SqlDialect::sqlite : cedar::SqlDialect::postgres;
    auto sql = CRETO_TRY(cedar::to_sql(evaluation, mapping, entities, {.dialect = dialect, .erring = erring}));
    filter.where = std::move(sql.where);
    filter.parameters = std::move(sql.parameters);
  }
  if (question.limit > 0 && filter.kind != ResourceFilter::Kind::none) {
    CRETO_TRY(list_permitted(state, evaluation, entities, question, expired, filter));
  }
  return filter;
}

}  // namespace creto::authz

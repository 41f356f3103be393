#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cedar/policy_set.h"
#include "cedar/schema.h"
#include "creto/common/result.h"

/// Runs Cedar's own conformance data against this engine.
namespace creto::authz {

struct Tally {
  std::size_t passed = 0;
  std::size_t failed = 0;

  void count(bool good) { ++(good ? passed : failed); }
  Tally& operator+=(const Tally& other) {
    passed += other.passed;
    failed += other.failed;
    return *this;
  }
};

/// What one group of tests came to.
struct ConformanceTally {
  Tally requests;        ///< decision, reasons and errors, with the context and the request accepted by the schema
  Tally verdicts;        ///< whether the policies pass the strict validator
  Tally permissive;      ///< and the permissive one (where the extra verdicts are at hand)
  Tally entities;        ///< whether the entities conform to the schema
  Tally request_checks;  ///< whether the request conforms to it
  Tally schemas;         ///< the two syntaxes of the schema say the same (likewise)
  Tally engine;          ///< the compiled policies answer as the interpreter does

  bool all_passed() const {
    return requests.failed + verdicts.failed + permissive.failed + entities.failed + request_checks.failed +
               schemas.failed + engine.failed ==
           0;
  }
};

struct ConformanceReport {
  ConformanceTally own;               ///< tests with a policy of their own
  ConformanceTally trivial;           ///< tests with the policy `permit(principal, action, resource) when { true }`
  std::vector<std::string> failures;  ///< the first 100

  bool all_passed() const { return own.all_passed() && trivial.all_passed(); }
};

/// A tree in the format of Cedar's integration tests: `corpus-tests/*.json` and `tests/**/*.json`. `extra` is a tree
/// with `validation/*.validation.json` and `json-schemas/*.cedarschema.json` for the same tests.
/// Policies and schema in the JSON syntax where the test says so (`policyFormat`, `schemaFormat`: "json").
/// Errors: not_found where there is no test. What of a test fails is in the report, also a file that is none.
Result<ConformanceReport> run_corpus(const std::filesystem::path& root,
                                     const std::optional<std::filesystem::path>& extra = {});

/// One of the workloads of the Cedar paper.
struct Workload {
  std::string name;  ///< "gdrive-n50-s0"
  cedar::PolicySet policies;
  cedar::Schema schema;
  std::vector<Entity> entities;
  std::vector<cedar::Request> requests;
  std::string decisions;  ///< '1' or '0' for each request
};

/// A tree with `APP.cedar`, `APP.cedarschema.json` and `data/APP-*.{entities.json,requests.json,decisions}`.
/// Errors: not_found where there is none; a file that is none of these.
Result<std::vector<Workload>> read_workloads(const std::filesystem::path& root);

/// Such a tree; only `own` of the report is filled.
Result<ConformanceReport> run_workloads(const std::filesystem::path& root);

}  // namespace creto::authz

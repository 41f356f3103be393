#pragma once

#include <functional>
#include <string_view>

#include "creto/metering/usage.h"
#include "ledger/column_store.h"
#include "ledger/subjects.h"

namespace creto::metering {

struct UsageQueryLimits {
  std::size_t groups_max = 1'000'000;
  std::size_t threads = 2;
};

/// Adds up the events in `columns` exactly, without those that others take out: an answer equals what a walk over the
/// log gives. Calls `go_on` now and
/// then, from several threads, and stops with its error. Requires: check_usage_query. Errors: resource_exhausted over
/// `groups_max` groups; those of reading columns.
///
/// A segment at a time, each by one thread: filters make a list of its rows, keys are small numbers of the segment's
/// own dictionaries, sums lie in an array over their combinations (a hash table where that would be too large). Only
/// then names meet those of other segments.
Result<UsageReport> query_usage(const ColumnStore::All& columns, const Subjects& subjects,
                                const Corrections& corrections, std::string_view org, const Currency& accounting,
                                const UsageQuery& query, const std::function<Result<>()>& go_on,
                                UsageQueryLimits limits = {});

}  // namespace creto::metering

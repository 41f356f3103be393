#include <algorithm>
#include <cstdlib>

#include <nlohmann/json.hpp>

#include "cli/csv.h"
#include "creto/common/bytes.h"

/// No line is more cells than it has separators, and what is split is a report of as many columns.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace creto;
  const std::string_view line = as_text({data, size});
  const auto cells = app::cli::split_csv(line);
  if (!cells) return 0;
  if (cells->size() > static_cast<std::size_t>(std::count(line.begin(), line.end(), ',')) + 1) std::abort();
  if (!app::cli::report_of_csv(*cells, *cells)) std::abort();
  return 0;
}

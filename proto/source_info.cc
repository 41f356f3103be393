#include "creto/proto/source_info.h"

extern "C" {
extern const char creto_described_files_begin[];
extern const char creto_described_files_end[];
}

namespace creto::proto {

std::string_view described_files() { return {creto_described_files_begin, creto_described_files_end}; }

}  // namespace creto::proto

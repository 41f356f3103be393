// Any file as a journal: what is replayed is there again after more was appended, and nothing else comes back.
#include <cstddef>
#include <cstdint>

#include "creto/common/assert.h"
#include "creto/io/files.h"
#include "creto/testing/fault_files.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace creto;
  const std::filesystem::path path = "/journal";
  testing::FaultFiles files;
  Bytes content = to_bytes("CRETOJ1\n");
  content.insert(content.end(), data, data + size);
  CRETO_ASSERT(io::write_durably(files, path, content));
  std::vector<Bytes> records;
  const auto keep = [&](BytesView record) -> Result<> {
    records.push_back(to_bytes(record));
    return {};
  };
  {
    const auto journal = io::Journal::open(files, path, keep);
    if (!journal) return 0;
    CRETO_ASSERT((*journal)->append(as_bytes("CRJ1")));
    CRETO_ASSERT((*journal)->sync());
  }
  auto expected = std::exchange(records, {});
  expected.push_back(to_bytes("CRJ1"));
  CRETO_ASSERT(io::Journal::open(files, path, keep).has_value());
  CRETO_ASSERT(records == expected);
  return 0;
}

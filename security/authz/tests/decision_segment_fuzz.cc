#include "decisions/decision_segment.h"

/// Whatever is read as a block gives decisions whose parts are there, or an error.
extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace creto::authz;
  const creto::BytesView input(data, size);
  // Half of the inputs get a header, which is hard to guess.
  SegmentReader reader;
  SegmentWriter writer({}, 1, {});
  const creto::Bytes header = writer.take().front();
  const auto use = [&](const SegmentReader::Decided& decided) -> creto::Result<> {
    SegmentReader::Request request;
    if (reader.request(decided.request, request)) (void)request.chain->principal.to_string();
    (void)reader.states().at(decided.state).org;
    if (decided.set > 0) (void)reader.sets().at(decided.set - 1);
    for (const std::uint32_t policy : decided.policies) (void)reader.policies().at(policy).text;
    return {};
  };
  if (size % 2 == 0) (void)reader.read(header, use);
  (void)reader.read(input.first(size / 2), use);
  (void)reader.read(input.subspan(size / 2), use);
  return 0;
}

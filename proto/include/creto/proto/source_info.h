#pragma once

#include <string_view>

namespace creto::proto {

/// A serialized google.protobuf.FileDescriptorSet of every .proto file here and all that they import, with comments,
/// which the descriptors in generated code lack. Each file comes after those it imports.
std::string_view described_files();

}  // namespace creto::proto

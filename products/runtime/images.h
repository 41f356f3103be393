#pragma once

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "creto/runtime/runtime.h"

namespace creto::runtime {

/// Images as OCI layouts in a directory, one per name, and their unpacked root file systems by digest. Thread-safe.
class ImageStore {
 public:
  ImageStore(std::string image_directory, std::string rootfs_directory)
      : images_(std::move(image_directory)), rootfs_(std::move(rootfs_directory)) {}

  struct Image {
    std::string name;
    std::string digest;  ///< of the manifest: "sha256:…"
    std::string rootfs;  ///< unpacked, read-only by convention
  };

  /// Unpacks where needed (umoci). Errors: not_found; invalid_input for a bad name or layout; unavailable.
  Result<Image> get(const std::string& name);
  Result<std::vector<ImageInfo>> list();

 private:
  struct Manifest {
    std::string digest, tag;
  };
  Result<Manifest> manifest_of(const std::string& name);
  /// What a process that died while it unpacked has left behind.
  void remove_abandoned();

  const std::string images_, rootfs_;
  std::mutex unpacking_;
};

}  // namespace creto::runtime

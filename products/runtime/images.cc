#include "images.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "creto/common/clock.h"
#include "creto/common/id.h"
#include "creto/common/json.h"
#include "driver/process.h"

namespace creto::runtime {
namespace {

constexpr auto unpack_timeout = std::chrono::minutes(5);

bool is_image_name(std::string_view name) {
  return !name.empty() && name.size() <= 128 && name.front() != '.' && name.front() != '-' &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
         });
}

/// What sandboxes mount over must exist: the root is read-only, and some runtimes would write it into the image.
Result<> add_mount_points(const std::string& root) {
  for (const char* name : {"proc", "sys", "dev", "run", "tmp", "etc", "home", "home/agent"}) {
    const auto path = fmt::format("{}/{}", root, name);
    if (::mkdir(path.c_str(), 0755) != 0 && errno != EEXIST)
      return system_error(fmt::format("cannot create `{}`", path));
  }
  if (::chmod((root + "/tmp").c_str(), 01777) != 0) return system_error("chmod");
  if (::chown((root + "/home/agent").c_str(), 1000, 1000) != 0) return system_error("chown");
  if (::chmod((root + "/home/agent").c_str(), 0700) != 0) return system_error("chmod");
  for (const char* name : {"etc/resolv.conf", "etc/hosts"}) {
    const auto path = fmt::format("{}/{}", root, name);
    ::unlink(path.c_str());  // often a link to elsewhere
    CRETO_TRY(write_text_file(path, ""));
  }
  return {};
}

}  // namespace

Result<ImageStore::Manifest> ImageStore::manifest_of(const std::string& name) {
  if (!is_image_name(name))
    return Error(Product::runtime, ErrorKind::invalid_input, "image: must be a name of [a-z0-9._-]{1,128}");
  auto text = read_text_file(fmt::format("{}/{}/index.json", images_, name));
  if (!text) return Error(Product::runtime, ErrorKind::not_found, fmt::format("there is no image `{}`", name));
  auto index = CRETO_TRY(parse_json(*text));
  const auto broken = [&] {
    return Error(Product::runtime, ErrorKind::invalid_input,
                 fmt::format("the OCI layout of image `{}` is broken", name));
  };
  const auto manifests = index.find("manifests");
  if (manifests == index.end() || !manifests->is_array() || manifests->empty()) return broken();
  const auto& first = (*manifests)[0];
  Manifest manifest;
  if (!first.is_object() || !first.contains("digest") || !first["digest"].is_string()) return broken();
  manifest.digest = first["digest"];
  if (!manifest.digest.starts_with("sha256:") || manifest.digest.size() != 71 ||
      manifest.digest.find_first_not_of("0123456789abcdef", 7) != std::string::npos)
    return broken();
  if (first.contains("annotations")) {
    const auto& annotations = first["annotations"];
    const Json tag =
        annotations.is_object() ? annotations.value("org.opencontainers.image.ref.name", Json("")) : Json();
    if (!tag.is_string()) return broken();
    manifest.tag = tag;
  }
  return manifest;
}

void ImageStore::remove_abandoned() {
  std::error_code ignored;
  const auto long_ago = std::filesystem::file_time_type::clock::now() - 2 * unpack_timeout;
  for (const auto& entry : std::filesystem::directory_iterator(rootfs_, ignored))
    if (entry.path().extension() == ".new" && entry.last_write_time(ignored) < long_ago)
      std::filesystem::remove_all(entry.path(), ignored);
}

Result<ImageStore::Image> ImageStore::get(const std::string& name) {
  auto manifest = CRETO_TRY(manifest_of(name));
  const auto directory = fmt::format("{}/{}", rootfs_, manifest.digest.substr(7));
  Image image{name, manifest.digest, directory + "/rootfs"};
  const std::lock_guard lock(unpacking_);
  if (std::filesystem::exists(image.rootfs)) return image;
  CRETO_TRY(make_directory(rootfs_, 0755));
  remove_abandoned();
  // A name of its own: after a crash the program that an earlier process started may still be at work.
  const auto fresh = fmt::format("{}.{}.new", directory, EventId::fresh(system_clock().now()).to_string());
  CRETO_TRY(
      run_checked({.argv = {"umoci", "unpack", "--image", fmt::format("{}/{}:{}", images_, name, manifest.tag), fresh},
                   .timeout = unpack_timeout}));
  CRETO_TRY(add_mount_points(fresh + "/rootfs"));
  if (::rename(fresh.c_str(), directory.c_str()) != 0) return system_error("cannot put the image in place");
  return image;
}

Result<std::vector<ImageInfo>> ImageStore::list() {
  std::vector<ImageInfo> found;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(images_, ignored)) {
    const auto name = entry.path().filename().string();
    if (auto manifest = manifest_of(name)) found.push_back({name, manifest->digest});
  }
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return found;
}

}  // namespace creto::runtime

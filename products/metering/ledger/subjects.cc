#include "subjects.h"

#include <algorithm>
#include <functional>
#include <mutex>

#include "creto/common/assert.h"
#include "creto/common/identity.h"

namespace creto::metering {
namespace {

constexpr std::size_t piece = 1 << 16;

std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  __extension__ typedef unsigned __int128 Wide;
  const Wide product = static_cast<Wide>(a ^ 0x9E3779B97F4A7C15ull) * (b ^ 0xD6E8FEB86659FD93ull);
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}
std::uint32_t narrow(std::uint64_t hash) { return static_cast<std::uint32_t>(hash ^ hash >> 32); }
std::uint32_t hash_of(std::string_view org, std::string_view name) {
  return narrow(mix(std::hash<std::string_view>()(org), std::hash<std::string_view>()(name)));
}
std::uint32_t hash_of(const Attribution& attribution) {
  std::uint64_t hash = mix(attribution.agent, attribution.subscription);
  for (const SubjectNumber ancestor : attribution.ancestors) hash = mix(hash, ancestor);
  return narrow(hash);
}

Error damaged() {
  return Error(Product::metering, ErrorKind::hash_mismatch, "usage log: its definitions do not follow each other");
}

}  // namespace

SubjectNumber Subjects::find_unlocked(std::string_view org, std::string_view name, std::uint32_t hash) const {
  return subject_table_.find(hash, [&](std::uint32_t number) {
    const Subject& subject = subjects_[number - 1];
    return subject.name == name && subject.org == org;
  });
}

std::string_view Subjects::keep(std::string_view text) {
  if (texts_.empty() || texts_.back().capacity() - texts_.back().size() < text.size()) {
    texts_.emplace_back().reserve(std::max(piece, text.size()));
  }
  std::string& end = texts_.back();
  const std::size_t at = end.size();
  end += text;  // within its capacity, so nothing moves
  return std::string_view(end).substr(at);
}

SubjectNumber Subjects::add(std::string_view org, std::string_view name, std::uint32_t hash) {
  auto known = std::ranges::find(orgs_, org);
  if (known == orgs_.end()) {
    orgs_.emplace_back(org);
    known = orgs_.end() - 1;
  }
  subjects_.push_back({*known, keep(name)});
  const auto number = static_cast<SubjectNumber>(subjects_.size());
  subject_table_.insert(hash, number);
  return number;
}

AttributionNumber Subjects::add(const Attribution& attribution, std::uint32_t hash) {
  attributions_.push_back(attribution);
  const std::string_view org = subjects_[attribution.agent - 1].org;
  const auto known = std::ranges::find_if(orgs_, [&](const std::string& one) { return one.data() == org.data(); });
  attribution_orgs_.push_back(static_cast<std::uint32_t>(known - orgs_.begin()));
  const auto number = static_cast<AttributionNumber>(attributions_.size());
  attribution_table_.insert(hash, number);
  return number;
}

SubjectNumber Subjects::find(std::string_view org, std::string_view name) const {
  const std::shared_lock lock(mutex_);
  return find_unlocked(org, name, hash_of(org, name));
}

SubjectNumber Subjects::number(std::string_view org, std::string_view name) {
  const std::uint32_t hash = hash_of(org, name);
  {
    const std::shared_lock lock(mutex_);
    if (const SubjectNumber known = find_unlocked(org, name, hash)) return known;
  }
  const std::unique_lock lock(mutex_);
  const SubjectNumber known = find_unlocked(org, name, hash);
  return known != 0 ? known : add(org, name, hash);
}

Subjects::Subject Subjects::subject(SubjectNumber number) const {
  const std::shared_lock lock(mutex_);
  CRETO_ASSERT(number > 0 && number <= subjects_.size());
  return subjects_[number - 1];
}

AttributionNumber Subjects::number(const Attribution& attribution) {
  const std::uint32_t hash = hash_of(attribution);
  const auto same = [&](std::uint32_t number) { return attributions_[number - 1] == attribution; };
  {
    const std::shared_lock lock(mutex_);
    if (const AttributionNumber known = attribution_table_.find(hash, same)) return known;
  }
  const std::unique_lock lock(mutex_);
  const AttributionNumber known = attribution_table_.find(hash, same);
  return known != 0 ? known : add(attribution, hash);
}

const Attribution& Subjects::attribution(AttributionNumber number) const {
  const std::shared_lock lock(mutex_);
  CRETO_ASSERT(number > 0 && number <= attributions_.size());
  return attributions_[number - 1];
}

std::string_view Subjects::org_of(AttributionNumber number) const {
  const std::shared_lock lock(mutex_);
  CRETO_ASSERT(number > 0 && number <= attribution_orgs_.size());
  return orgs_[attribution_orgs_[number - 1]];
}

Subjects::Mark Subjects::mark() const {
  const std::shared_lock lock(mutex_);
  return {static_cast<SubjectNumber>(subjects_.size()), static_cast<AttributionNumber>(attributions_.size())};
}

void Subjects::write(const Mark& from, const Mark& until, Bytes& out) const {
  const std::shared_lock lock(mutex_);
  layout::put(out, from.subjects);
  layout::put(out, until.subjects - from.subjects);
  for (SubjectNumber i = from.subjects; i < until.subjects; ++i) {
    layout::put_sized(out, subjects_[i].org);
    layout::put_sized(out, subjects_[i].name);
  }
  layout::put(out, from.attributions);
  layout::put(out, until.attributions - from.attributions);
  for (AttributionNumber i = from.attributions; i < until.attributions; ++i) {
    const Attribution& attribution = attributions_[i];
    layout::put(out, attribution.agent);
    layout::put(out, attribution.subscription);
    layout::put(out, static_cast<std::uint32_t>(attribution.ancestors.size()));
    for (const SubjectNumber ancestor : attribution.ancestors) layout::put(out, ancestor);
  }
}

Subjects::Mark Subjects::skip(layout::Reader& reader) {
  Mark until;
  until.subjects = reader.get<SubjectNumber>();
  for (std::size_t left = reader.count(8); left > 0; --left, ++until.subjects) {
    reader.sized();
    reader.sized();
  }
  until.attributions = reader.get<AttributionNumber>();
  for (std::size_t left = reader.count(12); left > 0; --left, ++until.attributions) {
    reader.bytes(2 * sizeof(SubjectNumber));
    reader.bytes(reader.count(sizeof(SubjectNumber)) * sizeof(SubjectNumber));
  }
  return until;
}

Result<> Subjects::read(layout::Reader& reader) {
  const std::unique_lock lock(mutex_);
  std::size_t next = reader.get<SubjectNumber>();
  if (next > subjects_.size()) return damaged();
  for (std::size_t left = reader.count(8); left > 0; --left, ++next) {
    const std::string_view org = reader.text();
    const std::string_view name = reader.text();
    if (!reader.ok()) return damaged();
    if (next == subjects_.size()) {
      add(org, name, hash_of(org, name));
    } else if (subjects_[next].name != name || subjects_[next].org != org) {
      return damaged();
    }
  }
  next = reader.get<AttributionNumber>();
  if (next > attributions_.size()) return damaged();
  const auto known = [this](SubjectNumber number) { return number > 0 && number <= subjects_.size(); };
  for (std::size_t left = reader.count(12); left > 0; --left, ++next) {
    Attribution attribution;
    attribution.agent = reader.get<SubjectNumber>();
    attribution.subscription = reader.get<SubjectNumber>();
    attribution.ancestors.resize(reader.count(sizeof(SubjectNumber)));
    for (SubjectNumber& ancestor : attribution.ancestors) ancestor = reader.get<SubjectNumber>();
    const bool good = attribution.ancestors.size() <= delegation_chain_max_depth && known(attribution.agent) &&
                      (attribution.subscription == 0 || known(attribution.subscription)) &&
                      std::ranges::all_of(attribution.ancestors, known);
    if (!reader.ok() || !good) return damaged();
    if (next == attributions_.size()) {
      add(attribution, hash_of(attribution));
    } else if (attributions_[next] != attribution) {
      return damaged();
    }
  }
  return reader.ok() ? Result<>() : damaged();
}

}  // namespace creto::metering

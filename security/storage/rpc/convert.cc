#include "rpc/convert.h"

#include <algorithm>

namespace creto::storage {
namespace {

Error invalid(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

Result<Hash256> hash_of(const std::string& bytes) {
  Hash256 hash{};
  if (bytes.size() != hash.size()) return invalid("a BLAKE3 hash must have 32 bytes");
  std::ranges::copy(as_bytes(bytes), hash.begin());
  return hash;
}

}  // namespace

v1::Classification to_proto(Classification from) { return static_cast<v1::Classification>(static_cast<int>(from) + 1); }

Result<Classification> from_proto(v1::Classification from) {
  if (from < v1::CLASSIFICATION_AGENT_DATA || from > v1::CLASSIFICATION_COMPLIANCE) {
    return invalid("`classification` is not a classification");
  }
  return static_cast<Classification>(from - 1);
}

void to_proto(const StorageRef& from, v1::StorageRef& to) {
  to.set_bucket(from.bucket);
  to.set_key(from.key);
  to.set_version_id(from.version);
}

StorageRef from_proto(const v1::StorageRef& from) { return {from.bucket(), from.key(), from.version_id()}; }

void to_proto(const ObjectMetadata& from, v1::ObjectMetadata& to) {
  to_proto(from.ref, *to.mutable_reference());
  const std::string hash(as_text(from.content_hash));
  to.mutable_reference()->set_content_hash(hash);
  to.set_content_hash(hash);
  to.set_owner(from.owner.text());
  to.set_classification(to_proto(from.classification));
  to.set_size_bytes(from.size_bytes);
  proto::set_time(to.mutable_created_at(), from.created_at);
  if (from.expires_at) proto::set_time(to.mutable_expires_at(), *from.expires_at);
  if (from.retained_until) proto::set_time(to.mutable_retained_until(), *from.retained_until);
  to.mutable_custom_metadata()->insert(from.metadata.begin(), from.metadata.end());
  to.set_content_type(from.content_type);
}

Result<ObjectMetadata> from_proto(const v1::ObjectMetadata& from) {
  auto owner = CRETO_TRY(Identity::parse(from.owner()));
  const auto classification = CRETO_TRY(from_proto(from.classification()));
  const auto hash = CRETO_TRY(hash_of(from.content_hash()));
  const auto created_at = CRETO_TRY(proto::from_time(from.created_at(), "created_at"));
  std::optional<Instant> expires_at;
  if (from.has_expires_at()) expires_at = CRETO_TRY(proto::from_time(from.expires_at(), "expires_at"));
  std::optional<Instant> retained_until;
  if (from.has_retained_until()) retained_until = CRETO_TRY(proto::from_time(from.retained_until(), "retained_until"));
  return ObjectMetadata{from_proto(from.reference()),
                        std::move(owner),
                        classification,
                        from.content_type(),
                        {from.custom_metadata().begin(), from.custom_metadata().end()},
                        from.size_bytes(),
                        hash,
                        created_at,
                        expires_at,
                        retained_until};
}

Result<Identity> owner_of(const Context& ctx, const std::string& text) {
  if (!text.empty()) return Identity::parse(text);
  if (!ctx.caller) return Error(Product::platform, ErrorKind::unauthenticated, "no caller");
  return *ctx.caller;
}

void to_proto(const NewObject& from, v1::ObjectSpec& to) {
  to.set_bucket(from.bucket);
  to.set_key(from.key);
  to.set_owner(from.owner.text());
  to.set_classification(to_proto(from.classification));
  to.set_content_type(from.content_type);
  to.mutable_metadata()->insert(from.metadata.begin(), from.metadata.end());
  if (from.ttl) proto::set_duration(to.mutable_ttl(), *from.ttl);
  if (from.expected_hash) to.set_expected_hash(std::string(as_text(*from.expected_hash)));
}

Result<NewObject> from_proto(const Context& ctx, const v1::ObjectSpec& from) {
  auto owner = CRETO_TRY(owner_of(ctx, from.owner()));
  NewObject object{from.bucket().empty() ? "default" : from.bucket(),
                   from.key(),
                   std::move(owner),
                   Classification::agent_data,
                   from.content_type().empty() ? "application/octet-stream" : from.content_type(),
                   {from.metadata().begin(), from.metadata().end()},
                   {},
                   {}};
  if (from.classification() != v1::CLASSIFICATION_UNSPECIFIED)
    object.classification = CRETO_TRY(from_proto(from.classification()));
  if (from.has_ttl()) object.ttl = CRETO_TRY(proto::from_duration(from.ttl(), "ttl"));
  if (!from.expected_hash().empty()) object.expected_hash = CRETO_TRY(hash_of(from.expected_hash()));
  return object;
}

void to_proto(const ListQuery& from, v1::ListRequest& to) {
  to.set_owner(from.owner.text());
  if (from.classification) to.set_classification(to_proto(*from.classification));
  to.set_bucket(from.bucket);
  to.set_key_prefix(from.key_prefix);
  to.set_cursor(from.cursor);
  to.set_limit(static_cast<std::uint32_t>(std::min<std::size_t>(from.limit, 10'000)));
}

Result<ListQuery> from_proto(const Context& ctx, const v1::ListRequest& from) {
  auto owner = CRETO_TRY(owner_of(ctx, from.owner()));
  ListQuery query{
      std::move(owner), {}, from.bucket(), from.key_prefix(), from.cursor(), from.limit() == 0 ? 100 : from.limit()};
  if (from.classification() != v1::CLASSIFICATION_UNSPECIFIED)
    query.classification = CRETO_TRY(from_proto(from.classification()));
  return query;
}

void to_proto(const ListPage& from, v1::ListResponse& to) {
  for (const auto& object : from.objects) to_proto(object, *to.add_objects());
  to.set_next_cursor(from.next_cursor);
}

Result<ListPage> from_proto(const v1::ListResponse& from) {
  ListPage page{{}, from.next_cursor()};
  for (const auto& one : from.objects()) {
    auto object = CRETO_TRY(from_proto(one));
    page.objects.push_back(std::move(object));
  }
  return page;
}

}  // namespace creto::storage

#include <fmt/format.h>

#include <cmath>

#include "creto/inference/inference.h"
#include "creto/memory/memory.h"
#include "vectors.h"

namespace creto::memory {
namespace {

class HashEmbedder final : public Embedder {
 public:
  const std::string& model() const override {
    static const std::string name = "creto-hash-384";
    return name;
  }
  std::size_t dimension() const override { return hash_dimension; }
  // Two texts that share a third of their words are near here; a model of meaning would say more.
  float default_threshold() const override { return 0.25F; }
  Result<std::vector<std::vector<float>>> embed(const Context&, const std::vector<std::string>& texts) override {
    std::vector<std::vector<float>> vectors;
    vectors.reserve(texts.size());
    for (const auto& text : texts) vectors.push_back(hash_embedding(text));
    return vectors;
  }
};

class ProviderEmbedder final : public Embedder {
 public:
  ProviderEmbedder(inference::Provider& provider, std::string model, std::size_t dimension, float threshold)
      : provider_(provider), model_(std::move(model)), dimension_(dimension), threshold_(threshold) {}

  const std::string& model() const override { return model_; }
  std::size_t dimension() const override { return dimension_; }
  float default_threshold() const override { return threshold_; }
  Result<std::vector<std::vector<float>>> embed(const Context& ctx, const std::vector<std::string>& texts) override {
    auto made = provider_.embed(ctx, model_, texts);
    if (!made) {
      const auto kind = made.error().retryable() ? ErrorKind::unavailable : ErrorKind::internal;
      return Error(Product::platform, kind, "embedding failed").with_cause(std::move(made).error());
    }
    for (auto& vector : made->vectors) {
      if (vector.size() != dimension_) {
        return Error(
            Product::platform, ErrorKind::internal,
            fmt::format("embedding failed: `{}` gives {} dimensions, not {}", model_, vector.size(), dimension_));
      }
      normalize(vector);
    }
    return std::move(made->vectors);
  }

 private:
  inference::Provider& provider_;
  const std::string model_;
  const std::size_t dimension_;
  const float threshold_;
};

}  // namespace

std::unique_ptr<Embedder> create_hash_embedder() { return std::make_unique<HashEmbedder>(); }

std::unique_ptr<Embedder> create_provider_embedder(inference::Provider& provider, std::string model,
                                                   std::size_t dimension, float default_threshold) {
  return std::make_unique<ProviderEmbedder>(provider, std::move(model), dimension, default_threshold);
}

}  // namespace creto::memory

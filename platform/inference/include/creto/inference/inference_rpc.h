#pragma once

#include <memory>

#include "creto/inference/inference.h"

namespace creto::rpc {
class Channel;
class Dispatcher;
}  // namespace creto::rpc

namespace creto::inference {

/// Registers creto.inference.v1.InferenceService. Both must outlive the serving.
void register_inference(rpc::Dispatcher& dispatcher, Inference& inference);

/// The same interface over the wire.
std::unique_ptr<Inference> create_inference_client(std::shared_ptr<rpc::Channel> channel);

}  // namespace creto::inference

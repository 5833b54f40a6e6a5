// SparseLinear in TensorRT.
#pragma once
#include "launchers.h"
#include "products_plugin.h"

namespace clada::trt {

class SparseLinearPlugin final : public ProductsPlugin {
 public:
  using Op = ops::SparseLinear;
  explicit SparseLinearPlugin(Attributes attributes) : ProductsPlugin(kSignature<Op>, std::move(attributes)) {}

 private:
  std::unique_ptr<Plugin> copy() const override { return std::make_unique<SparseLinearPlugin>(*this); }

  size_t workspace_bytes(const Sizes& sizes, Element element) const override {
    return most_workspace(cuda::sparse_linear_workspace, sized_call(sizes, element));
  }

  void launch(const Sizes& sizes, Element element, const void* const* inputs, void* const* outputs, void* workspace,
              cudaStream_t stream) const override {
    SparseLinearCall call = sized_call(sizes, element);
    call.x = inputs[Op::In::x];
    call.w = inputs[Op::In::w];
    call.threshold = static_cast<const float*>(inputs[Op::In::threshold]);
    call.scale = static_cast<const float*>(inputs[Op::In::scale]);
    call.y = outputs[Op::Out::y];
    call.kept = static_cast<int32_t*>(outputs[Op::Out::kept]);
    launch_call(cuda::sparse_linear, call, workspace, stream);
  }

  static SparseLinearCall sized_call(const Sizes& sizes, Element element) {
    SparseLinearCall call{};
    call.batch = sizes.at("B");
    call.sequence = sizes.at("S");
    call.width = sizes.at("D");
    call.outputs = sizes.at("N");
    call.element = call.weight_element = element;
    return call;
  }
};

}  // namespace clada::trt

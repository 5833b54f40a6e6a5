// LoadSignal in TensorRT.
#pragma once
#include "launchers.h"
#include "plugin.h"

namespace clada::trt {

class LoadSignalPlugin final : public Plugin {
 public:
  using Op = ops::LoadSignal;
  explicit LoadSignalPlugin(Attributes attributes) : Plugin(kSignature<Op>, std::move(attributes)) {}

 private:
  std::unique_ptr<Plugin> copy() const override { return std::make_unique<LoadSignalPlugin>(*this); }

  size_t workspace_bytes(const Sizes& sizes, Element element) const override {
    return cuda::load_signal_workspace(sized_call(sizes, element));
  }

  void launch(const Sizes& sizes, Element element, const void* const* inputs, void* const* outputs, void* workspace,
              cudaStream_t stream) const override {
    const auto knots = [&](size_t i) { return static_cast<const float*>(inputs[i]); };
    const auto output = [&](size_t i) { return static_cast<float*>(outputs[i]); };
    LoadSignalCall call = sized_call(sizes, element);
    call.logits = inputs[Op::In::logits];
    call.token = static_cast<const int64_t*>(inputs[Op::In::token]);
    call.surprisal_knots = knots(Op::In::surprisal_knots);
    call.entropy_knots = knots(Op::In::entropy_knots);
    call.scale_knots = knots(Op::In::scale_knots);
    call.scale = output(Op::Out::scale);
    call.load = output(Op::Out::load);
    call.surprisal = output(Op::Out::surprisal);
    call.entropy = output(Op::Out::entropy);
    check_launch(cuda::load_signal(call, workspace, stream));
  }

  LoadSignalCall sized_call(const Sizes& sizes, Element element) const {
    LoadSignalCall call{};
    call.batch = sizes.at("B");
    call.vocabulary = sizes.at("V");
    call.knots = sizes.at("K");
    call.scale_knots_count = sizes.at("M");
    call.surprisal_weight = attributes_.number(Op::Attr::surprisal_weight);
    call.element = element;
    return call;
  }
};

}  // namespace clada::trt

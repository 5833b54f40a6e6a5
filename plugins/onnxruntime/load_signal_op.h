// LoadSignal as a custom op.
#pragma once
#include "kernel_base.h"
#include "shapes.h"

namespace clada {

class LoadSignalKernel {
  using In = ops::LoadSignal::In;
  using Out = ops::LoadSignal::Out;

 public:
  LoadSignalKernel(const Ort::ConstKernelInfo& info, Element element, const Settings& settings)
      : element_(element),
        kernels_(*settings.kernels),
        surprisal_weight_(info.GetAttribute<float>("surprisal_weight")) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* context) {
    return as_status([&] { compute(context); });
  }

 private:
  void compute(OrtKernelContext* context) {
    Ort::KernelContext ort(context);
    const Sizes sizes = check_shapes(ops::LoadSignal::name, In::specs, In::count, ort);
    const auto knots = [&](size_t i) { return ort.GetInput(i).GetTensorData<float>(); };
    const auto output = [&](size_t i) {
      return ort.GetOutput(i, output_shape(Out::specs[i], sizes)).GetTensorMutableData<float>();
    };
    const int64_t* token = ort.GetInput(In::token).GetTensorData<int64_t>();
    const LoadSignalCall call{sizes.at("B"),
                              sizes.at("V"),
                              sizes.at("K"),
                              sizes.at("M"),
                              surprisal_weight_,
                              element_,
                              ort.GetInput(In::logits).GetTensorRawData(),
                              token,
                              knots(In::surprisal_knots),
                              knots(In::entropy_knots),
                              knots(In::scale_knots),
                              output(Out::scale),
                              output(Out::load),
                              output(Out::surprisal),
                              output(Out::entropy)};
    const int64_t outside = kernels_.load_signal(call);
    if (outside >= 0) {
      throw Ort::Exception("LoadSignal: token " + std::to_string(token[outside]) + " of row " +
                               std::to_string(outside) + " is not in the vocabulary of " +
                               std::to_string(sizes.at("V")),
                           ORT_INVALID_ARGUMENT);
    }
  }

  Element element_;
  const Kernels& kernels_;
  float surprisal_weight_;
};

using LoadSignalOp = OpBase<ops::LoadSignal, LoadSignalKernel>;

}  // namespace clada

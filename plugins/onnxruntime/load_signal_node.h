// Nodes of LoadSignal, read into calls of a kernel on any device.
#pragma once
#include "calls.h"
#include "ort.h"
#include "shapes.h"

namespace clada {

inline float surprisal_weight_of(const Ort::ConstKernelInfo& info) {
  return info.GetAttribute<float>("surprisal_weight");
}

// The call that a node asks for, its outputs allocated; throws Ort::Exception where the sizes of its inputs do not fit.
inline LoadSignalCall load_signal_call(const Ort::KernelContext& context, Element element, float surprisal_weight) {
  using In = ops::LoadSignal::In;
  using Out = ops::LoadSignal::Out;
  const Sizes sizes = check_shapes(ops::LoadSignal::name, In::specs, In::count, context);
  const auto knots = [&](size_t i) { return context.GetInput(i).GetTensorData<float>(); };
  const auto output = [&](size_t i) {
    return context.GetOutput(i, output_shape(Out::specs[i], sizes)).GetTensorMutableData<float>();
  };
  return {sizes.at("B"),
          sizes.at("V"),
          sizes.at("K"),
          sizes.at("M"),
          surprisal_weight,
          element,
          context.GetInput(In::logits).GetTensorRawData(),
          context.GetInput(In::token).GetTensorData<int64_t>(),
          knots(In::surprisal_knots),
          knots(In::entropy_knots),
          knots(In::scale_knots),
          output(Out::scale),
          output(Out::load),
          output(Out::surprisal),
          output(Out::entropy)};
}

}  // namespace clada

// Nodes of SparseLinear, read into calls of a kernel on any device.
#pragma once
#include <limits>
#include <string>

#include "calls.h"
#include "ort.h"
#include "shapes.h"

namespace clada {

// The call that a node asks for, its outputs allocated; throws Ort::Exception where the sizes of its inputs do not fit.
inline SparseLinearCall linear_call(const Ort::KernelContext& context, Element element) {
  using In = ops::SparseLinear::In;
  using Out = ops::SparseLinear::Out;
  const Sizes sizes = check_shapes(ops::SparseLinear::name, In::specs, In::count, context);
  if (sizes.at("D") > std::numeric_limits<int32_t>::max()) {
    throw Ort::Exception(
        std::string(ops::SparseLinear::name) + ": " + std::to_string(sizes.at("D")) + " inputs are too many to count",
        ORT_INVALID_ARGUMENT);
  }
  const auto output = [&](size_t i) {
    return context.GetOutput(i, output_shape(Out::specs[i], sizes)).GetTensorMutableRawData();
  };
  return {sizes.at("B"),
          sizes.at("S"),
          sizes.at("D"),
          sizes.at("N"),
          element,
          element,
          context.GetInput(In::x).GetTensorRawData(),
          context.GetInput(In::w).GetTensorRawData(),
          context.GetInput(In::threshold).GetTensorData<float>(),
          context.GetInput(In::scale).GetTensorData<float>(),
          output(Out::y),
          static_cast<int32_t*>(output(Out::kept))};
}

}  // namespace clada

// Nodes of SparseLinear, read into calls of a kernel on any device.
#pragma once
#include <limits>
#include <string>

#include "calls.h"
#include "ort.h"
#include "shapes.h"

namespace clada {

// The call of a node of SparseLinear or its quantised variant, its outputs allocated; `sizes` are those of its inputs,
// and N. Throws Ort::Exception where there are more inputs than can be counted.
template <class Table>
SparseLinearCall sized_linear_call(const Ort::KernelContext& context, Element element, const Sizes& sizes) {
  using In = typename Table::In;
  using Out = typename Table::Out;
  if (sizes.at("D") > std::numeric_limits<int32_t>::max()) {
    throw Ort::Exception(
        std::string(Table::name) + ": " + std::to_string(sizes.at("D")) + " inputs are too many to count",
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
          {},
          context.GetInput(In::x).GetTensorRawData(),
          context.GetInput(In::w).GetTensorRawData(),
          nullptr,
          context.GetInput(In::threshold).template GetTensorData<float>(),
          context.GetInput(In::scale).template GetTensorData<float>(),
          output(Out::y),
          static_cast<int32_t*>(output(Out::kept))};
}

// The call that a node of SparseLinear asks for; throws Ort::Exception where the sizes of its inputs do not fit.
inline SparseLinearCall linear_call(const Ort::KernelContext& context, Element element) {
  using Table = ops::SparseLinear;
  const Sizes sizes = check_shapes(Table::name, Table::In::specs, Table::In::count, context);
  return sized_linear_call<Table>(context, element, sizes);
}

}  // namespace clada

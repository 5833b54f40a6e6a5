// Nodes of SparseLinear and its quantized variant, read into calls of a kernel on any device.
#pragma once
#include <limits>
#include <string>

#include "calls.h"
#include "op_inputs.h"
#include "ort.h"
#include "quantization_attributes.h"
#include "quantization_sizes.h"
#include "shapes.h"

namespace clada {

// How a node's weights are quantized; throws Ort::Exception where there are no kernels for it.
template <class Table>
Quantization linear_quantization(const Ort::ConstKernelInfo& info) {
  if constexpr (is_quantized<Table>) return quantization_attributes<Table>(info);
  return {};
}

// The sizes of a node's inputs, and N; throws Ort::Exception where they do not fit, or there are more inputs than can
// be counted.
template <class Table>
Sizes linear_sizes(const Ort::KernelContext& context, Quantization quantization) {
  using In = typename Table::In;
  Sizes sizes = check_shapes(Table::name, In::specs, In::count, context);
  const auto refuse = [](const std::string& why) {
    throw Ort::Exception(Table::name + (": " + why), ORT_INVALID_ARGUMENT);
  };
  if constexpr (is_quantized<Table>) {
    sizes["N"] = row_weights(quantization, sizes.at("P"));
    const std::string misfit = size_misfit(quantization, sizes.at("N"), sizes.at("P"), sizes.at("G"), "N");
    if (!misfit.empty()) refuse(misfit);
  }
  if (sizes.at("D") > std::numeric_limits<int32_t>::max()) {
    refuse(std::to_string(sizes.at("D")) + " inputs are too many to count");
  }
  return sizes;
}

// The call that a node asks for, its outputs allocated; throws Ort::Exception where the sizes of its inputs do not fit.
template <class Table>
SparseLinearCall linear_call(const Ort::KernelContext& context, Element element, Quantization quantization) {
  using In = typename Table::In;
  using Out = typename Table::Out;
  const Sizes sizes = linear_sizes<Table>(context, quantization);
  const auto output = [&](size_t i) {
    return context.GetOutput(i, output_shape(Out::specs[i], sizes)).GetTensorMutableRawData();
  };
  SparseLinearCall call{sizes.at("B"),
                        sizes.at("S"),
                        sizes.at("D"),
                        sizes.at("N"),
                        element,
                        element,
                        quantization,
                        context.GetInput(In::x).GetTensorRawData(),
                        context.GetInput(In::w).GetTensorRawData(),
                        nullptr,
                        context.GetInput(In::threshold).template GetTensorData<float>(),
                        context.GetInput(In::scale).template GetTensorData<float>(),
                        output(Out::y),
                        static_cast<int32_t*>(output(Out::kept))};
  if constexpr (is_quantized<Table>) call.s = input_data(context.GetInput(In::s).GetTensorRawData());
  return call;
}

}  // namespace clada

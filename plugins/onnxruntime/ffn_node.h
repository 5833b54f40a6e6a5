// Nodes of the feed-forward ops, read into calls of a kernel on any device.
#pragma once
#include <limits>
#include <string>

#include "activation_attribute.h"
#include "calls.h"
#include "ffn_inputs.h"
#include "ort.h"
#include "quantization_attributes.h"
#include "quantization_sizes.h"
#include "shapes.h"

namespace clada {

// Attributes of a node.
struct FfnAttributes {
  Activation activation;
  Quantization quantization;
};

// Throws Ort::Exception where an attribute has a value that is not known.
template <class Table>
FfnAttributes ffn_attributes(const Ort::ConstKernelInfo& info) {
  FfnAttributes attributes{activation_of(info, Table::name), {}};
  if constexpr (is_quantized<Table>) {
    attributes.quantization = quantization_attributes<Table>(info);
  }
  return attributes;
}

// The call that a node asks for, its outputs allocated; throws Ort::Exception where the sizes of its inputs do not fit.
template <class Table>
SparseFfnCall ffn_call(const Ort::KernelContext& context, Element element, const FfnAttributes& attributes) {
  using In = typename Table::In;
  using Out = typename Table::Out;
  using At = FfnInputs<Table>;
  const Sizes sizes = check_shapes(Table::name, In::specs, In::count, context);
  if constexpr (is_quantized<Table>) {
    const std::string misfit = size_misfit(attributes.quantization, sizes.at("D"), sizes.at("P"), sizes.at("N"));
    if (!misfit.empty()) throw Ort::Exception(std::string(Table::name) + ": " + misfit, ORT_INVALID_ARGUMENT);
  }
  if (sizes.at("F") > std::numeric_limits<int32_t>::max()) {
    throw Ort::Exception(
        std::string(Table::name) + ": " + std::to_string(sizes.at("F")) + " neurons are too many to count",
        ORT_INVALID_ARGUMENT);
  }
  const auto input = [&](size_t i) -> const void* {
    return i == kNone ? nullptr : input_data(context.GetInput(i).GetTensorRawData());
  };
  const auto output = [&](size_t i) {
    return context.GetOutput(i, output_shape(Out::specs[i], sizes)).GetTensorMutableRawData();
  };
  return {sizes.at("B"),
          sizes.at("S"),
          sizes.at("D"),
          sizes.at("F"),
          attributes.activation,
          element,
          element,
          attributes.quantization,
          input(In::x),
          input(At::w_in),
          input(At::w_up),
          input(At::w_out),
          input(At::s_in),
          input(At::s_up),
          input(At::s_out),
          input(At::b_in),
          input(At::b_out),
          static_cast<const float*>(input(In::threshold)),
          static_cast<const float*>(input(In::scale)),
          static_cast<const uint8_t*>(input(In::pool)),
          output(Out::y),
          static_cast<int32_t*>(output(Out::active)),
          static_cast<float*>(output(Out::score))};
}

}  // namespace clada

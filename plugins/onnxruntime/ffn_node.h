// Nodes of SparseGatedFFN and SparseFFN, read into calls of a kernel on any device.
#pragma once
#include <algorithm>
#include <iterator>
#include <string>

#include "calls.h"
#include "ffn_inputs.h"
#include "ort.h"
#include "shapes.h"

namespace clada {

// A node's activation; throws Ort::Exception where it is not known.
inline Activation activation_of(const Ort::ConstKernelInfo& info, const char* op) {
  const std::string name = info.GetAttribute<std::string>("activation");
  const auto known = std::find(std::begin(kActivations), std::end(kActivations), name);
  if (known == std::end(kActivations)) {
    throw Ort::Exception(std::string(op) + ": activation '" + name + "' is not known", ORT_INVALID_ARGUMENT);
  }
  return static_cast<Activation>(known - std::begin(kActivations));
}

// The call that a node asks for, its outputs allocated; throws Ort::Exception where the sizes of its inputs do not fit.
template <class Table>
SparseFfnCall ffn_call(const Ort::KernelContext& context, Element element, Activation activation) {
  using In = typename Table::In;
  using Out = typename Table::Out;
  using At = FfnInputs<Table>;
  const Sizes sizes = check_shapes(Table::name, In::specs, In::count, context);
  const auto input = [&](size_t i) -> const void* {
    return i == kNone ? nullptr : context.GetInput(i).GetTensorRawData();
  };
  const auto output = [&](size_t i) {
    return context.GetOutput(i, output_shape(Out::specs[i], sizes)).GetTensorMutableRawData();
  };
  return {sizes.at("B"),
          sizes.at("S"),
          sizes.at("D"),
          sizes.at("F"),
          activation,
          element,
          element,
          input(In::x),
          input(At::w_in),
          input(At::w_up),
          input(At::w_out),
          input(At::b_in),
          input(At::b_out),
          static_cast<const float*>(input(In::threshold)),
          static_cast<const float*>(input(In::scale)),
          static_cast<const bool*>(input(In::pool)),
          output(Out::y),
          static_cast<int32_t*>(output(Out::active)),
          static_cast<float*>(output(Out::score))};
}

}  // namespace clada

// SparseGatedFFN and SparseFFN as custom ops.
#pragma once
#include <algorithm>
#include <iterator>

#include "compact_weights.h"
#include "kernel_base.h"
#include "shapes.h"

namespace clada {

// Where an op's inputs are that the two ops name differently; kNone for what an op lacks.
constexpr size_t kNone = SIZE_MAX;
template <class Table>
struct FfnInputs;
template <>
struct FfnInputs<ops::SparseGatedFFN> {
  using In = ops::SparseGatedFFN::In;
  static constexpr size_t w_in = In::w_gate, w_up = In::w_up, w_out = In::w_down, b_in = kNone, b_out = kNone;
};
template <>
struct FfnInputs<ops::SparseFFN> {
  using In = ops::SparseFFN::In;
  static constexpr size_t w_in = In::w_in, w_up = kNone, w_out = In::w_out, b_in = In::b_in, b_out = In::b_out;
};

template <class Table>
class FfnKernel {
  using In = typename Table::In;
  using Out = typename Table::Out;
  using At = FfnInputs<Table>;

 public:
  FfnKernel(const Ort::ConstKernelInfo& info, Element element, const Settings& settings)
      : element_(element), kernels_(*settings.kernels) {
    const std::string name = info.GetAttribute<std::string>("activation");
    const auto known = std::find(std::begin(kActivations), std::end(kActivations), name);
    if (known == std::end(kActivations)) {
      throw Ort::Exception(std::string(Table::name) + ": activation '" + name + "' is not known", ORT_INVALID_ARGUMENT);
    }
    activation_ = static_cast<Activation>(known - std::begin(kActivations));
    if (settings.weights == "bfloat16") {
      if (element != Element::kFloat32) {
        throw Ort::Exception("clada.weights=bfloat16 is for float32 models, and this one is not", ORT_INVALID_ARGUMENT);
      }
      for (const size_t input : {At::w_in, At::w_up, At::w_out}) {
        if (input != kNone) compact_[input] = compact_input(info, input, In::specs[input].name, kernels_);
      }
    }
  }

  OrtStatusPtr ComputeV2(OrtKernelContext* context) {
    return as_status([&] { compute(context); });
  }

 private:
  void compute(OrtKernelContext* context) {
    Ort::KernelContext ort(context);
    const Sizes sizes = check_shapes(Table::name, In::specs, In::count, ort);
    const auto input = [&](size_t i) -> const void* {
      return i == kNone ? nullptr : ort.GetInput(i).GetTensorRawData();
    };
    const auto weight = [&](size_t i) -> const void* {
      return i != kNone && compact_[i] ? compact_[i].get() : input(i);
    };
    const auto output = [&](size_t i) {
      return ort.GetOutput(i, output_shape(Out::specs[i], sizes)).GetTensorMutableRawData();
    };
    const SparseFfnCall ffn{sizes.at("B"),
                            sizes.at("S"),
                            sizes.at("D"),
                            sizes.at("F"),
                            activation_,
                            element_,
                            compact_[At::w_in] ? Element::kBFloat16 : element_,
                            input(In::x),
                            weight(At::w_in),
                            weight(At::w_up),
                            weight(At::w_out),
                            input(At::b_in),
                            input(At::b_out),
                            static_cast<const float*>(input(In::threshold)),
                            static_cast<const float*>(input(In::scale)),
                            static_cast<const bool*>(input(In::pool)),
                            output(Out::y),
                            static_cast<int32_t*>(output(Out::active)),
                            static_cast<float*>(output(Out::score))};
    const Scratch workspace(context, kernels_.sparse_ffn_workspace(ffn));
    kernels_.sparse_ffn(ffn, workspace.data, thread_pool(context));
  }

  Element element_;
  const Kernels& kernels_;
  Activation activation_;
  CompactWeights compact_[In::count];
};

template <class Table>
using FfnOp = OpBase<Table, FfnKernel<Table>>;

}  // namespace clada

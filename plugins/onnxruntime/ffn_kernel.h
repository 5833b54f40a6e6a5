// The feed-forward ops on the CPU.
#pragma once
#include "compact_weights.h"
#include "ffn_node.h"
#include "op_base.h"
#include "settings.h"
#include "threads.h"

namespace clada {

template <class Table>
class FfnKernel {
  using In = typename Table::In;
  using At = FfnInputs<Table>;

 public:
  using Settings = clada::Settings;
  static constexpr const char* kProvider = nullptr;  // the CPU's

  FfnKernel(const Ort::ConstKernelInfo& info, Element element, const Settings& settings)
      : element_(element), kernels_(*settings.kernels), attributes_(ffn_attributes<Table>(info)) {
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
    SparseFfnCall call = ffn_call<Table>(Ort::KernelContext(context), element_, attributes_);
    if (compact_[At::w_in]) {
      call.weight_element = Element::kBFloat16;
      call.w_in = compact_[At::w_in].get();
      if constexpr (At::w_up != kNone) call.w_up = compact_[At::w_up].get();
      call.w_out = compact_[At::w_out].get();
    }
    const Scratch workspace(context, kernels_.sparse_ffn_workspace(call));
    kernels_.sparse_ffn(call, workspace.data, thread_pool(context));
  }

  Element element_;
  const Kernels& kernels_;
  FfnAttributes attributes_;
  CompactWeights compact_[In::count];
};

}  // namespace clada

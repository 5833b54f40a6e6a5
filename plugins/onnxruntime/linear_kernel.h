// SparseLinear on the CPU.
#pragma once
#include "held_weights.h"
#include "linear_node.h"
#include "op_base.h"
#include "settings.h"
#include "threads.h"

namespace clada {

class LinearKernel {
  using In = ops::SparseLinear::In;

 public:
  using Settings = clada::Settings;
  static constexpr const char* kProvider = nullptr;  // the CPU's
  static constexpr bool kNarrowWeights = true;

  LinearKernel(const Ort::ConstKernelInfo& info, Element element, const Settings& settings)
      : element_(element), kernels_(*settings.kernels), narrow_(is_bfloat16(info, In::w)) {
    if (holds_bfloat16(settings, element) && !narrow_) {
      compact_ = compact_input(info, In::w, In::specs[In::w].name, kernels_);
    }
  }

  OrtStatusPtr ComputeV2(OrtKernelContext* context) {
    return as_status([&] { compute(context); });
  }

 private:
  void compute(OrtKernelContext* context) {
    SparseLinearCall call = linear_call<ops::SparseLinear>(Ort::KernelContext(context), element_, {});
    if (narrow_ || compact_) call.weight_element = Element::kBFloat16;
    if (compact_) call.w = compact_.get();
    const Scratch workspace(context, kernels_.sparse_linear_workspace(call));
    kernels_.sparse_linear(call, workspace.data, thread_pool(context));
  }

  Element element_;
  const Kernels& kernels_;
  bool narrow_;          // whether weights are bfloat16, whatever x is
  HeldWeights compact_;  // where weights of another type are held as bfloat16
};

}  // namespace clada

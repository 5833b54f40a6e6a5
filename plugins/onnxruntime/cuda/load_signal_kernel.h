// LoadSignal on CUDA. A token outside the vocabulary gives NaN: who feeds tokens checks them.
#pragma once
#include "launch.h"
#include "launchers.h"
#include "load_signal_node.h"
#include "op_base.h"

namespace clada::cuda {

class LoadSignalKernel {
 public:
  using Settings = NoSettings;
  static constexpr const char* kProvider = kCudaProvider;

  LoadSignalKernel(const Ort::ConstKernelInfo& info, Element element, const Settings&)
      : element_(element), surprisal_weight_(surprisal_weight_of(info)) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* context) {
    return as_status([&] {
      const LoadSignalCall call = load_signal_call(Ort::KernelContext(context), element_, surprisal_weight_);
      const Launch launch(context, load_signal_workspace(call));
      check(ops::LoadSignal::name, load_signal(call, launch.workspace, launch.stream));
    });
  }

 private:
  Element element_;
  float surprisal_weight_;
};

}  // namespace clada::cuda

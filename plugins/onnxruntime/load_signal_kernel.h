// LoadSignal on the CPU.
#pragma once
#include "load_signal_node.h"
#include "op_base.h"
#include "settings.h"

namespace clada {

class LoadSignalKernel {
 public:
  using Settings = clada::Settings;
  static constexpr const char* kProvider = nullptr;  // the CPU's

  LoadSignalKernel(const Ort::ConstKernelInfo& info, Element element, const Settings& settings)
      : element_(element), kernels_(*settings.kernels), surprisal_weight_(surprisal_weight_of(info)) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* context) {
    return as_status([&] { compute(context); });
  }

 private:
  void compute(OrtKernelContext* context) {
    const LoadSignalCall call = load_signal_call(Ort::KernelContext(context), element_, surprisal_weight_);
    const int64_t outside = kernels_.load_signal(call);
    if (outside >= 0) {
      throw Ort::Exception("LoadSignal: token " + std::to_string(call.token[outside]) + " of row " +
                               std::to_string(outside) + " is not in the vocabulary of " +
                               std::to_string(call.vocabulary),
                           ORT_INVALID_ARGUMENT);
    }
  }

  Element element_;
  const Kernels& kernels_;
  float surprisal_weight_;
};

}  // namespace clada

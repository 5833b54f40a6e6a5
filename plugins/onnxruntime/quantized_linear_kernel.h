// The quantized SparseLinear on the CPU.
#pragma once
#include "linear_node.h"
#include "op_base.h"
#include "quantized_weights.h"
#include "settings.h"
#include "threads.h"

namespace clada {

class QuantizedLinearKernel {
  using Table = ops::QuantizedSparseLinear;
  using In = Table::In;

 public:
  using Settings = clada::Settings;
  static constexpr const char* kProvider = nullptr;  // the CPU's

  QuantizedLinearKernel(const Ort::ConstKernelInfo& info, Element element, const Settings& settings)
      : element_(element),
        kernels_(settings.kernels->quantized),
        quantization_(linear_quantization<Table>(info)),
        exact_(!settings.exact.empty()) {
    check_quantized(settings);
    const QuantizedMatrix w{In::w, In::s, In::specs[In::w].name, In::specs[In::s].name};
    packed_ = pack_linear_input(info, Table::name, w, quantization_, kernels_);
  }

  OrtStatusPtr ComputeV2(OrtKernelContext* context) {
    return as_status([&] { compute(context); });
  }

 private:
  void compute(OrtKernelContext* context) {
    SparseLinearCall call = linear_call<Table>(Ort::KernelContext(context), element_, quantization_);
    call.byte_factors = !exact_;
    const Scratch workspace(context, kernels_.linear_workspace(call));
    kernels_.linear(call, packed_.get(), workspace.data, thread_pool(context));
  }

  Element element_;
  const QuantizedKernels& kernels_;
  Quantization quantization_;
  bool exact_;
  HeldWeights packed_;
};

}  // namespace clada

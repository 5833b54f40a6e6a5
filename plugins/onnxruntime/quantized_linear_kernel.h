// The quantised SparseLinear on the CPU.
#pragma once
#include "linear_node.h"
#include "op_base.h"
#include "quantization_attributes.h"
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
      : element_(element), kernels_(settings.kernels->quantized), quantization_(quantization_attributes<Table>(info)) {
    check_quantized(settings);
    const QuantizedMatrix w{In::w, In::s, In::specs[In::w].name, In::specs[In::s].name};
    packed_ = pack_linear_input(info, Table::name, w, quantization_, kernels_);
  }

  OrtStatusPtr ComputeV2(OrtKernelContext* context) {
    return as_status([&] { compute(context); });
  }

 private:
  void compute(OrtKernelContext* context) {
    const Ort::KernelContext node(context);
    Sizes sizes = check_shapes(Table::name, In::specs, In::count, node);
    // That bytes and scales of a row fit each other was checked when they were packed.
    sizes["N"] = sizes.at("P") * 8 / quantization_.bits;
    SparseLinearCall call = sized_linear_call<Table>(node, element_, sizes);
    call.quantization = quantization_;
    const Scratch workspace(context, kernels_.linear_workspace(call));
    kernels_.linear(call, packed_.get(), workspace.data, thread_pool(context));
  }

  Element element_;
  const QuantizedKernels& kernels_;
  Quantization quantization_;
  HeldWeights packed_;
};

}  // namespace clada

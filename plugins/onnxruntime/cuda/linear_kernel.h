// SparseLinear and its quantized variant on CUDA.
#pragma once
#include "launch.h"
#include "launchers.h"
#include "linear_node.h"
#include "op_base.h"
#include "products.h"
#include "scales.h"

namespace clada::cuda {

template <class Table>
class LinearKernel {
  using In = typename Table::In;

 public:
  using Settings = NoSettings;
  static constexpr const char* kProvider = kCudaProvider;
  static constexpr bool kNarrowWeights = false;

  LinearKernel(const Ort::ConstKernelInfo& info, Element element, const Settings&)
      : element_(element), quantization_(linear_quantization<Table>(info)) {
    if constexpr (is_quantized<Table>) check_scales(info, Table::name, In::s, In::specs[In::s].name);
  }

  OrtStatusPtr ComputeV2(OrtKernelContext* context) {
    return as_status([&] {
      const SparseLinearCall call = linear_call<Table>(Ort::KernelContext(context), element_, quantization_);
      const Launch launch(context, sparse_linear_workspace(call));
      launch_with_products(Table::name, sparse_linear, call, launch);
    });
  }

 private:
  Element element_;
  Quantization quantization_;
};

}  // namespace clada::cuda

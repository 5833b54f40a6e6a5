// SparseLinear on CUDA.
#pragma once
#include "launch.h"
#include "launchers.h"
#include "linear_node.h"
#include "op_base.h"
#include "products.h"

namespace clada::cuda {

class LinearKernel {
 public:
  using Settings = NoSettings;
  static constexpr const char* kProvider = kCudaProvider;

  LinearKernel(const Ort::ConstKernelInfo&, Element element, const Settings&) : element_(element) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* context) {
    return as_status([&] {
      const SparseLinearCall call = linear_call(Ort::KernelContext(context), element_);
      const Launch launch(context, sparse_linear_workspace(call));
      launch_with_products(ops::SparseLinear::name, sparse_linear, call, launch);
    });
  }

 private:
  Element element_;
};

}  // namespace clada::cuda

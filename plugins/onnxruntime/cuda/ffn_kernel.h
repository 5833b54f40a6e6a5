// The feed-forward ops on CUDA.
#pragma once
#include "ffn_node.h"
#include "launch.h"
#include "launchers.h"
#include "op_base.h"
#include "products.h"
#include "scales.h"

namespace clada::cuda {

template <class Table>
class FfnKernel {
  using At = FfnInputs<Table>;

 public:
  using Settings = NoSettings;
  static constexpr const char* kProvider = kCudaProvider;

  FfnKernel(const Ort::ConstKernelInfo& info, Element element, const Settings&)
      : element_(element), attributes_(ffn_attributes<Table>(info)) {
    for (const size_t scales : {At::s_in, At::s_up, At::s_out}) {
      if (scales != kNone) check_scales(info, Table::name, scales, Table::In::specs[scales].name);
    }
  }

  OrtStatusPtr ComputeV2(OrtKernelContext* context) {
    return as_status([&] {
      const SparseFfnCall call = ffn_call<Table>(Ort::KernelContext(context), element_, attributes_);
      const Launch launch(context, sparse_ffn_workspace(call));
      launch_with_products(Table::name, sparse_ffn, call, launch);
    });
  }

 private:
  Element element_;
  FfnAttributes attributes_;
};

}  // namespace clada::cuda

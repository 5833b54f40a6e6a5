// SparseGatedFFN and SparseFFN on CUDA.
#pragma once
#include "ffn_node.h"
#include "launch.h"
#include "launchers.h"
#include "op_base.h"

namespace clada::cuda {

template <class Table>
class FfnKernel {
 public:
  using Settings = NoSettings;
  static constexpr const char* kProvider = kCudaProvider;

  FfnKernel(const Ort::ConstKernelInfo& info, Element element, const Settings&)
      : element_(element), activation_(activation_of(info, Table::name)) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* context) {
    return as_status([&] {
      const SparseFfnCall call = ffn_call<Table>(Ort::KernelContext(context), element_, activation_);
      const Launch launch(context, sparse_ffn_workspace(call));
      check(Table::name, sparse_ffn(call, launch.workspace, nullptr, launch.stream));
    });
  }

 private:
  Element element_;
  Activation activation_;
};

}  // namespace clada::cuda

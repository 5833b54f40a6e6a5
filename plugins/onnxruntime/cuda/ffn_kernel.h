// The feed-forward ops on CUDA.
#pragma once
#include <map>
#include <mutex>

#include "cublas_products.h"
#include "ffn_node.h"
#include "launch.h"
#include "launchers.h"
#include "op_base.h"

namespace clada::cuda {

// cuBLAS on the current device, made when a call of many tokens first needs it and never freed: one for all nodes,
// since each takes memory of its own. Throws std::runtime_error where there is none.
inline CublasProducts& cublas() {
  static std::mutex mutex;
  static auto& devices = *new std::map<int, CublasProducts>();
  int device = 0;
  check("cuBLAS", cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  return devices[device];
}

template <class Table>
class FfnKernel {
 public:
  using Settings = NoSettings;
  static constexpr const char* kProvider = kCudaProvider;

  FfnKernel(const Ort::ConstKernelInfo& info, Element element, const Settings&)
      : element_(element), attributes_(ffn_attributes<Table>(info)) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* context) {
    return as_status([&] {
      const SparseFfnCall call = ffn_call<Table>(Ort::KernelContext(context), element_, attributes_);
      const Launch launch(context, sparse_ffn_workspace(call));
      if (call.batch * call.sequence <= kRowwiseTokens) {
        check(Table::name, sparse_ffn(call, launch.workspace, nullptr, launch.stream));
        return;
      }
      const Products products = cublas().products();
      check(Table::name, sparse_ffn(call, launch.workspace, &products, launch.stream), cublas().error());
    });
  }

 private:
  Element element_;
  FfnAttributes attributes_;
};

}  // namespace clada::cuda

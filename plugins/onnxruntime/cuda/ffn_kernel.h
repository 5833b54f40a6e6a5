// The feed-forward ops on CUDA.
#pragma once
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "cublas_products.h"
#include "ffn_node.h"
#include "launch.h"
#include "launchers.h"
#include "op_base.h"
#include "quantization_scales.h"

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

// Throws Ort::Exception where a scale of a constant input cannot be used; they lie on the device, so they are copied.
inline void check_scales(const Ort::ConstKernelInfo& info, const char* op, size_t index, const char* name) {
  int is_constant = 0;
  const Ort::ConstValue value = info.GetTensorConstantInput(index, &is_constant);
  if (!is_constant) return;
  const std::vector<int64_t> shape = value.GetTensorTypeAndShapeInfo().GetShape();
  if (shape.size() != 2) return;  // which each call refuses
  std::vector<uint16_t> scales(static_cast<size_t>(shape[0] * shape[1]));
  check(op, cudaMemcpy(scales.data(), value.GetTensorRawData(), scales.size() * sizeof(uint16_t), cudaMemcpyDefault));
  const std::string fault = scale_fault(scales.data(), scales.size(), static_cast<size_t>(shape[1]));
  if (!fault.empty()) throw Ort::Exception(op + (": " + (name + (" " + fault))), ORT_INVALID_ARGUMENT);
}

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

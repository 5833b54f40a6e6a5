// The feed-forward ops on CUDA.
#pragma once
#include <string>
#include <vector>

#include "ffn_node.h"
#include "launch.h"
#include "launchers.h"
#include "op_base.h"
#include "products.h"
#include "quantization_scales.h"

namespace clada::cuda {

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
      launch_with_products(Table::name, sparse_ffn, call, launch);
    });
  }

 private:
  Element element_;
  FfnAttributes attributes_;
};

}  // namespace clada::cuda

// The scales of quantized weights, checked when a model is loaded.
#pragma once
#include <string>
#include <vector>

#include "launch.h"
#include "ort.h"
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

}  // namespace clada::cuda

// TensorRT's types and formats against the op table's.
#pragma once
#include <NvInferRuntime.h>

#include <string>

#include "calls.h"
#include "signature.h"

namespace clada::trt {

// The floating-point type of an op; throws std::invalid_argument for any other type.
Element element_of(nvinfer1::DataType type);

// The type of a tensor of the op table where T is of type `t`.
nvinfer1::DataType data_type(const TensorSpec& spec, nvinfer1::DataType t);

// The type that T stands for, from the types of the inputs; throws std::invalid_argument where one does not fit.
nvinfer1::DataType check_types(const Signature& signature, const nvinfer1::DataType* inputs, size_t count);

// Whether the tensor at `position` of inputs and outputs together may have the type and format it has, given those
// before it.
bool is_supported(const Signature& signature, size_t position, const nvinfer1::DynamicPluginTensorDesc* tensors);

}  // namespace clada::trt

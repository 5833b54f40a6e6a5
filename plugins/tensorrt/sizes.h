// The sizes of an op's axes, from the shapes of its inputs.
#pragma once
#include <NvInferRuntime.h>

#include <map>
#include <string_view>
#include <vector>

#include "signature.h"

namespace clada::trt {

// The size of every axis by its name in the op table; -1 where it is not known yet.
using Sizes = std::map<std::string_view, int64_t>;

// Throws std::invalid_argument where the inputs' shapes fit neither the op table nor each other. Sizes below 0 are not
// known and fit anything.
Sizes check_sizes(const Signature& signature, const std::vector<nvinfer1::Dims>& inputs);

// The largest size of every axis, from the upper bounds of the inputs' shapes, which TensorRT need not have made equal
// where the sizes are.
Sizes largest_sizes(const Signature& signature, const std::vector<nvinfer1::Dims>& inputs);

// The same as TensorRT's expressions, each from the first input that has the axis.
using Expressions = std::map<std::string_view, const nvinfer1::IDimensionExpr*>;
Expressions expressions_of(const Signature& signature, const nvinfer1::DimsExprs* inputs);

// Gives each output the expressions of its axes.
void set_output_shapes(const Signature& signature, const Expressions& expressions, nvinfer1::DimsExprs* outputs);

}  // namespace clada::trt

#include "sizes.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "text.h"

namespace clada::trt {

using nvinfer1::Dims;
using nvinfer1::DimsExprs;

static std::string listed(const Dims& shape) {
  std::string text;
  for (int32_t i = 0; i < shape.nbDims; ++i) text += (i ? ", " : "") + std::to_string(shape.d[i]);
  return "[" + text + "]";
}

static std::string expected(const TensorSpec& spec, const Sizes& sizes) {
  std::string text;
  for (const std::string_view axis : split(spec.axes)) {
    const auto known = sizes.find(axis);
    text += (text.empty() ? "" : ", ") + std::string(axis);
    if (known != sizes.end() && known->second >= 0) text += "=" + std::to_string(known->second);
  }
  return "[" + text + "]";
}

static bool fits(int64_t size, int64_t& known) {
  if (known < 0) known = size;
  return size < 0 || size == known;
}

static void check_count(const Signature& signature, size_t count) {
  if (count == signature.inputs.size()) return;
  throw std::invalid_argument("it takes " + std::to_string(signature.inputs.size()) + " inputs, got " +
                              std::to_string(count));
}

Sizes check_sizes(const Signature& signature, const std::vector<Dims>& inputs) {
  check_count(signature, inputs.size());
  Sizes sizes;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const std::vector<std::string_view> axes = split(signature.inputs[i].axes);
    const Sizes before = sizes;
    bool fit = inputs[i].nbDims == static_cast<int32_t>(axes.size());
    for (size_t k = 0; fit && k < axes.size(); ++k)
      fit = fits(inputs[i].d[k], sizes.try_emplace(axes[k], -1).first->second);
    if (!fit) {
      throw std::invalid_argument(std::string(signature.inputs[i].name) + " has shape " + listed(inputs[i]) +
                                  ", expected " + expected(signature.inputs[i], before));
    }
    for (size_t k = 0; k < axes.size(); ++k) {
      const int64_t size = inputs[i].d[k], least = signature.inputs[i].least;
      if (size >= least || size < 0) continue;
      throw std::invalid_argument(std::string(signature.inputs[i].name) + " has shape " + listed(inputs[i]) +
                                  ", needs " + std::to_string(least) + " values or more");
    }
  }
  return sizes;
}

Sizes largest_sizes(const Signature& signature, const std::vector<Dims>& inputs) {
  check_count(signature, inputs.size());
  Sizes sizes;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const std::vector<std::string_view> axes = split(signature.inputs[i].axes);
    for (size_t k = 0; k < axes.size() && static_cast<int32_t>(k) < inputs[i].nbDims; ++k) {
      int64_t& size = sizes.try_emplace(axes[k], 0).first->second;
      size = std::max(size, inputs[i].d[k]);
    }
  }
  return sizes;
}

Expressions expressions_of(const Signature& signature, const DimsExprs* inputs) {
  Expressions expressions;
  for (size_t i = 0; i < signature.inputs.size(); ++i) {
    const std::vector<std::string_view> axes = split(signature.inputs[i].axes);
    for (size_t k = 0; k < axes.size(); ++k) expressions.emplace(axes[k], inputs[i].d[k]);
  }
  return expressions;
}

void set_output_shapes(const Signature& signature, const Expressions& expressions, DimsExprs* outputs) {
  for (size_t i = 0; i < signature.outputs.size(); ++i) {
    const std::vector<std::string_view> axes = split(signature.outputs[i].axes);
    outputs[i].nbDims = static_cast<int32_t>(axes.size());
    for (size_t k = 0; k < axes.size(); ++k) outputs[i].d[k] = expressions.at(axes[k]);
  }
}

}  // namespace clada::trt

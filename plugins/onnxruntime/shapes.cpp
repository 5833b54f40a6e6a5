#include "shapes.h"

#include <algorithm>
#include <string>

namespace clada {

// At every call of every node: no streams, which take as long as a small layer.
std::vector<std::string_view> axes_of(const TensorSpec& spec) {
  std::vector<std::string_view> axes;
  for (std::string_view rest = spec.axes; !rest.empty();) {
    const size_t end = std::min(rest.find(','), rest.size());
    axes.push_back(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return axes;
}

static std::string listed(const std::vector<int64_t>& shape) {
  std::string text;
  for (int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

static std::string expected(const std::vector<std::string_view>& axes, const Sizes& sizes) {
  std::string text;
  for (const std::string_view axis : axes) {
    const auto known = sizes.find(axis);
    text += (text.empty() ? "" : ", ") + std::string(axis) +
            (known == sizes.end() ? "" : "=" + std::to_string(known->second));
  }
  return "[" + text + "]";
}

Sizes check_shapes(const char* op, const TensorSpec* specs, size_t count, const Ort::KernelContext& context) {
  Sizes sizes;
  for (size_t i = 0; i < count; ++i) {
    const Ort::ConstValue input = context.GetInput(i);
    if (!input) throw Ort::Exception(std::string(op) + ": " + specs[i].name + " is missing", ORT_INVALID_ARGUMENT);
    const std::vector<int64_t> shape = input.GetTensorTypeAndShapeInfo().GetShape();
    const std::vector<std::string_view> axes = axes_of(specs[i]);
    const Sizes known = sizes;
    bool fits = shape.size() == axes.size();
    for (size_t k = 0; fits && k < axes.size(); ++k) fits = sizes.emplace(axes[k], shape[k]).first->second == shape[k];
    if (!fits) {
      throw Ort::Exception(std::string(op) + ": " + specs[i].name + " has shape " + listed(shape) + ", expected " +
                               expected(axes, known),
                           ORT_INVALID_ARGUMENT);
    }
    if (!shape.empty() && *std::min_element(shape.begin(), shape.end()) < specs[i].least) {
      throw Ort::Exception(std::string(op) + ": " + specs[i].name + " has shape " + listed(shape) + ", needs " +
                               std::to_string(specs[i].least) + " values or more",
                           ORT_INVALID_ARGUMENT);
    }
  }
  return sizes;
}

std::vector<int64_t> output_shape(const TensorSpec& spec, const Sizes& sizes) {
  std::vector<int64_t> shape;
  for (const std::string_view axis : axes_of(spec)) shape.push_back(sizes.at(axis));
  return shape;
}

}  // namespace clada

#include "shapes.h"

#include <sstream>

namespace clada {

std::vector<std::string> axes_of(const TensorSpec& spec) {
  std::vector<std::string> axes;
  std::istringstream text(spec.axes);
  for (std::string axis; std::getline(text, axis, ',');) axes.push_back(axis);
  return axes;
}

static std::string listed(const std::vector<int64_t>& shape) {
  std::string text;
  for (int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

static std::string expected(const std::vector<std::string>& axes, const Sizes& sizes) {
  std::string text;
  for (const std::string& axis : axes) {
    const auto known = sizes.find(axis);
    text += (text.empty() ? "" : ", ") + axis + (known == sizes.end() ? "" : "=" + std::to_string(known->second));
  }
  return "[" + text + "]";
}

Sizes check_shapes(const char* op, const TensorSpec* specs, size_t count, const Ort::KernelContext& context) {
  Sizes sizes;
  for (size_t i = 0; i < count; ++i) {
    const std::vector<int64_t> shape = context.GetInput(i).GetTensorTypeAndShapeInfo().GetShape();
    const std::vector<std::string> axes = axes_of(specs[i]);
    const Sizes known = sizes;
    bool fits = shape.size() == axes.size();
    for (size_t k = 0; fits && k < axes.size(); ++k) fits = sizes.emplace(axes[k], shape[k]).first->second == shape[k];
    if (!fits) {
      throw Ort::Exception(std::string(op) + ": " + specs[i].name + " has shape " + listed(shape) + ", expected " +
                               expected(axes, known),
                           ORT_INVALID_ARGUMENT);
    }
  }
  return sizes;
}

std::vector<int64_t> output_shape(const TensorSpec& spec, const Sizes& sizes) {
  std::vector<int64_t> shape;
  for (const std::string& axis : axes_of(spec)) shape.push_back(sizes.at(axis));
  return shape;
}

}  // namespace clada

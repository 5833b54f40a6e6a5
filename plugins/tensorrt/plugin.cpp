#include "plugin.h"

#include <stdexcept>
#include <string>

#include "log.h"

namespace clada::trt {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IPluginV3;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginTensorDesc;

// TensorRT does not say how it aligns a workspace; the kernels want this.
static constexpr size_t kAlignment = 256;

static void* aligned(void* workspace) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(workspace);
  return reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
}

static Dims constants_of(const DimsExprs& expressions) {
  Dims dims{expressions.nbDims, {}};
  for (int32_t i = 0; i < dims.nbDims; ++i) {
    dims.d[i] = expressions.d[i]->isConstant() ? expressions.d[i]->getConstantValue() : -1;
  }
  return dims;
}

// The shapes of tensors that `shape` takes from each.
template <class Tensor, class F>
static std::vector<Dims> shapes_of(const Tensor* tensors, int32_t count, F shape) {
  std::vector<Dims> shapes;
  for (int32_t i = 0; i < count; ++i) shapes.push_back(shape(tensors[i]));
  return shapes;
}

static void check_output_count(const Signature& signature, int32_t count) {
  if (count == static_cast<int32_t>(signature.outputs.size())) return;
  throw std::invalid_argument("it gives " + std::to_string(signature.outputs.size()) + " outputs, not " +
                              std::to_string(count));
}

static DataType check_types(const Signature& signature, const PluginTensorDesc* inputs, int32_t count) {
  std::vector<DataType> types;
  for (int32_t i = 0; i < count; ++i) types.push_back(inputs[i].type);
  return check_types(signature, types.data(), types.size());
}

const char* plugin_version() {
  static const std::string version = std::to_string(kVersion);
  return version.c_str();
}

void check_launch(cudaError_t error, const std::string& why) {
  if (error == cudaSuccess) return;
  const char* advice = error == cudaErrorNoKernelImageForDevice
                           ? "; build the plugins for its architecture (CLADA_CUDA_ARCHITECTURES)"
                           : "";
  throw std::runtime_error("the kernels could not be launched: " +
                           (why.empty() ? cudaGetErrorString(error) + std::string(advice) : why));
}

Plugin::Plugin(const Signature& signature, Attributes attributes)
    : signature_(signature), attributes_(std::move(attributes)) {}

Sizes Plugin::checked_sizes(const std::vector<Dims>& inputs) const {
  Sizes sizes = check_sizes(signature_, inputs);
  add_sizes(sizes);
  check(sizes);
  return sizes;
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
  if (type == PluginCapabilityType::kCORE) return static_cast<nvinfer1::IPluginV3OneCore*>(this);
  if (type == PluginCapabilityType::kBUILD) return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
  if (type == PluginCapabilityType::kRUNTIME) return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  return nullptr;
}

IPluginV3* Plugin::clone() noexcept {
  return guarded<IPluginV3*>(signature_.op, nullptr, [&] { return copy().release(); });
}

IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext* context) noexcept {
  return guarded<IPluginV3*>(signature_.op, nullptr, [&] {
    std::unique_ptr<Plugin> attached = copy();
    attached->context_ = context;
    return attached.release();
  });
}

int32_t Plugin::getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* inputs,
                                   int32_t input_count) const noexcept {
  return status_of(signature_.op, [&] {
    check_output_count(signature_, output_count);
    const DataType t = trt::check_types(signature_, inputs, static_cast<size_t>(input_count));
    for (size_t i = 0; i < signature_.outputs.size(); ++i) outputs[i] = data_type(signature_.outputs[i], t);
  });
}

int32_t Plugin::getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*, int32_t,
                                DimsExprs* outputs, int32_t output_count, nvinfer1::IExprBuilder& builder) noexcept {
  return status_of(signature_.op, [&] {
    check_output_count(signature_, output_count);
    checked_sizes(shapes_of(inputs, input_count, constants_of));
    Expressions expressions = expressions_of(signature_, inputs);
    add_expressions(expressions, builder);
    set_output_shapes(signature_, expressions, outputs);
  });
}

bool Plugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t input_count,
                                       int32_t output_count) noexcept {
  return guarded(signature_.op, false, [&] {
    return input_count == static_cast<int32_t>(signature_.inputs.size()) && output_count == getNbOutputs() &&
           position >= 0 && position < input_count + output_count &&
           is_supported(signature_, static_cast<size_t>(position), tensors);
  });
}

int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                const DynamicPluginTensorDesc*, int32_t) noexcept {
  return status_of(signature_.op, [&] {
    checked_sizes(shapes_of(inputs, input_count, [](const auto& input) { return input.desc.dims; }));
  });
}

size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                const DynamicPluginTensorDesc*, int32_t) const noexcept {
  return guarded(signature_.op, size_t{0}, [&] {
    const auto shapes = shapes_of(inputs, input_count, [](const auto& input) { return input.max; });
    Sizes sizes = largest_sizes(signature_, shapes);
    add_sizes(sizes);
    std::vector<PluginTensorDesc> descs;
    for (int32_t i = 0; i < input_count; ++i) descs.push_back(inputs[i].desc);
    const Element element = element_of(check_types(signature_, descs.data(), input_count));
    return workspace_bytes(sizes, element) + kAlignment - 1;
  });
}

int32_t Plugin::onShapeChange(const PluginTensorDesc* inputs, int32_t input_count, const PluginTensorDesc*,
                              int32_t) noexcept {
  return status_of(signature_.op, [&] {
    check_types(signature_, inputs, input_count);
    const auto shapes = shapes_of(inputs, input_count, [](const auto& input) { return input.dims; });
    prepare(checked_sizes(shapes), context_);
  });
}

int32_t Plugin::enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc*, const void* const* inputs,
                        void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  return status_of(signature_.op, [&] {
    const int32_t count = static_cast<int32_t>(signature_.inputs.size());
    const Element element = element_of(check_types(signature_, input_descs, count));
    const Sizes sizes = checked_sizes(shapes_of(input_descs, count, [](const auto& input) { return input.dims; }));
    launch(sizes, element, inputs, outputs, aligned(workspace), stream);
  });
}

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
  return guarded<const nvinfer1::PluginFieldCollection*>(signature_.op, nullptr, [&] {
    fields_ = attributes_.fields();
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    return &collection_;
  });
}

}  // namespace clada::trt

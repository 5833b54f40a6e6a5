// Calls a library of plugins as TensorRT does, for callers without TensorRT: through ctypes, in TensorRT's own structs.
//
// A plugin is an IPluginV3*. Results are what the plugin's methods return.
#include <NvInferRuntime.h>
#include <NvInferVersion.h>
#include <dlfcn.h>

#include <deque>
#include <string>

using namespace nvinfer1;

namespace {

constexpr int32_t kMostTensors = 16;  // inputs, or outputs, of an op

std::string logged;

int32_t release = NV_TENSORRT_MAJOR;
bool logger_known = false;

class Logger final : public ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    logged += (severity == Severity::kERROR ? "error: " : "other: ") + std::string(message) + "\n";
  }
} logger;

struct LoggerFinder final : ILoggerFinder {
  ILogger* findLogger() override { return &logger; }
} finder;

// A size that is known, or, below 0, the name of one that is not.
struct Expression final : IDimensionExpr {
  struct Value final : apiv::VDimensionExpr {
    int64_t value;
    bool isConstant() const noexcept override { return value >= 0; }
    int64_t getConstantValue() const noexcept override { return value; }
    bool isSizeTensor() const noexcept override { return false; }
  } size;

  explicit Expression(int64_t value) {
    size.value = value;
    mImpl = &size;
  }
};

// Computes as TensorRT does: what is not known times anything is not known.
struct Builder final : IExprBuilder {
  struct Value final : apiv::VExprBuilder {
    std::deque<Expression> made;
    const IDimensionExpr* constant(int64_t value) noexcept override { return &made.emplace_back(value); }
    const IDimensionExpr* operation(DimensionOperation operation, const IDimensionExpr& first,
                                    const IDimensionExpr& second) noexcept override {
      if (operation != DimensionOperation::kPROD) return nullptr;
      return constant(first.getConstantValue() * second.getConstantValue());
    }
    const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) noexcept override {
      return nullptr;
    }
  } expressions;

  Builder() { mImpl = &expressions; }
};

template <class Capability>
Capability& capability(IPluginV3* plugin, PluginCapabilityType type) {
  return *static_cast<Capability*>(plugin->getCapabilityInterface(type));
}

IPluginV3OneBuild& build(IPluginV3* plugin) {
  return capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}

IPluginV3OneRuntime& runtime(IPluginV3* plugin) {
  return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

}  // namespace

extern "C" {

// The library, or null; the reason is in probe_log().
void* probe_open(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) logged += dlerror();
  return library;
}

// Functions that a library calls in the TensorRT that loaded it.
int32_t getInferLibMajorVersion() noexcept { return release; }
ILogger* getLogger() noexcept { return logger_known ? &logger : nullptr; }

// Whether the library gets a finder of the logger whose lines probe_log() returns, whether it could ask for the logger,
// and the major release that calls it, more or less than that of the headers.
void probe_set_logger(void* library, bool finder_given, bool known, int32_t later) {
  logger_known = known;
  release = NV_TENSORRT_MAJOR + later;
  reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(finder_given ? &finder : nullptr);
}

// Lines logged since the last call of this; valid until the next.
const char* probe_log() {
  static std::string taken;
  taken = std::move(logged);
  logged.clear();
  return taken.c_str();
}

int32_t probe_data_type(const char* name) {
  const std::string dtype = name;
  return static_cast<int32_t>(dtype == "float32"    ? DataType::kFLOAT
                              : dtype == "float16"  ? DataType::kHALF
                              : dtype == "bfloat16" ? DataType::kBF16
                              : dtype == "int32"    ? DataType::kINT32
                              : dtype == "int64"    ? DataType::kINT64
                              : dtype == "bool"     ? DataType::kBOOL
                                                    : DataType::kINT8);
}

int32_t probe_format(bool linear) {
  return static_cast<int32_t>(linear ? TensorFormat::kLINEAR : TensorFormat::kCHW32);
}

// The size of a struct that the caller lays out by itself.
size_t probe_tensor_size() { return sizeof(DynamicPluginTensorDesc); }

IPluginCreatorV3One* probe_creator(void* library, int32_t index) {
  int32_t count = 0;
  const auto creators =
      reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"))(count);
  return index < count ? static_cast<IPluginCreatorV3One*>(creators[index]) : nullptr;
}

// The creator that a TensorRT's registry has of an op, or null.
IPluginCreatorInterface* probe_registered(IPluginRegistry* registry, const char* name, const char* version,
                                          const char* plugin_namespace) {
  return registry->getCreator(name, version, plugin_namespace);
}

const char* probe_creator_name(IPluginCreatorV3One* creator) { return creator->getPluginName(); }
const char* probe_creator_version(IPluginCreatorV3One* creator) { return creator->getPluginVersion(); }
const char* probe_creator_namespace(IPluginCreatorV3One* creator) { return creator->getPluginNamespace(); }
const PluginFieldCollection* probe_creator_fields(IPluginCreatorV3One* creator) { return creator->getFieldNames(); }

IPluginV3* probe_create(IPluginCreatorV3One* creator, const char* node, const PluginField* fields, int32_t count,
                        bool from_engine) {
  const PluginFieldCollection collection{count, fields};
  return creator->createPlugin(node, &collection, from_engine ? TensorRTPhase::kRUNTIME : TensorRTPhase::kBUILD);
}

void probe_destroy(IPluginV3* plugin) { delete plugin; }
IPluginV3* probe_clone(IPluginV3* plugin) { return plugin->clone(); }
// For a context that a plugin may tell from others, and no more.
IPluginV3* probe_attach(IPluginV3* plugin, IPluginResourceContext* context) {
  return runtime(plugin).attachToContext(context);
}

const char* probe_plugin_name(IPluginV3* plugin) {
  return capability<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE).getPluginName();
}

const PluginFieldCollection* probe_serialized(IPluginV3* plugin) { return runtime(plugin).getFieldsToSerialize(); }

int32_t probe_output_types(IPluginV3* plugin, const int32_t* inputs, int32_t input_count, int32_t* outputs) {
  DataType types[kMostTensors];
  for (int32_t i = 0; i < input_count; ++i) types[i] = static_cast<DataType>(inputs[i]);
  DataType given[kMostTensors];
  const int32_t count = build(plugin).getNbOutputs();
  const int32_t status = build(plugin).getOutputDataTypes(given, count, types, input_count);
  for (int32_t i = 0; status == 0 && i < count; ++i) outputs[i] = static_cast<int32_t>(given[i]);
  return status;
}

int32_t probe_output_shapes(IPluginV3* plugin, const Dims* inputs, int32_t input_count, Dims* outputs) {
  std::deque<Expression> expressions;
  DimsExprs shapes[kMostTensors], given[kMostTensors];
  for (int32_t i = 0; i < input_count; ++i) {
    shapes[i].nbDims = inputs[i].nbDims;
    for (int32_t k = 0; k < inputs[i].nbDims; ++k) shapes[i].d[k] = &expressions.emplace_back(inputs[i].d[k]);
  }
  Builder builder;
  const int32_t count = build(plugin).getNbOutputs();
  const int32_t status = build(plugin).getOutputShapes(shapes, input_count, nullptr, 0, given, count, builder);
  for (int32_t i = 0; status == 0 && i < count; ++i) {
    outputs[i].nbDims = given[i].nbDims;
    for (int32_t k = 0; k < given[i].nbDims; ++k) outputs[i].d[k] = given[i].d[k]->getConstantValue();
  }
  return status;
}

bool probe_supports(IPluginV3* plugin, int32_t position, const DynamicPluginTensorDesc* tensors, int32_t input_count) {
  return build(plugin).supportsFormatCombination(position, tensors, input_count, build(plugin).getNbOutputs());
}

int32_t probe_configure(IPluginV3* plugin, const DynamicPluginTensorDesc* tensors, int32_t input_count) {
  return build(plugin).configurePlugin(tensors, input_count, tensors + input_count, build(plugin).getNbOutputs());
}

size_t probe_workspace(IPluginV3* plugin, const DynamicPluginTensorDesc* tensors, int32_t input_count) {
  return build(plugin).getWorkspaceSize(tensors, input_count, tensors + input_count, build(plugin).getNbOutputs());
}

int32_t probe_shape_change(IPluginV3* plugin, const PluginTensorDesc* tensors, int32_t input_count) {
  return runtime(plugin).onShapeChange(tensors, input_count, tensors + input_count, build(plugin).getNbOutputs());
}

int32_t probe_enqueue(IPluginV3* plugin, const PluginTensorDesc* tensors, int32_t input_count,
                      const void* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) {
  return runtime(plugin).enqueue(tensors, tensors + input_count, inputs, outputs, workspace, stream);
}

}  // extern "C"

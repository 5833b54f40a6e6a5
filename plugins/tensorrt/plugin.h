// Common base of the plugins: shapes, types, fields and errors, all from the op's signature.
#pragma once
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <vector>

#include "attributes.h"
#include "sizes.h"
#include "types.h"

namespace clada::trt {

// The version of the ops as TensorRT has it.
const char* plugin_version();

// Throws std::runtime_error for an error of CUDA, which `why` may explain.
void check_launch(cudaError_t error, const std::string& why = "");

// One node. TensorRT calls the methods below from C++ that knows no exceptions: each logs what went wrong in one line
// and returns a code.
class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuild,
               public nvinfer1::IPluginV3OneRuntime {
 public:
  Plugin(const Signature& signature, Attributes attributes);

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  const char* getPluginName() const noexcept override { return signature_.op; }
  const char* getPluginVersion() const noexcept override { return plugin_version(); }
  const char* getPluginNamespace() const noexcept override { return kDomain; }

  int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(signature_.outputs.size()); }
  int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t output_count, const nvinfer1::DataType* inputs,
                             int32_t input_count) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count, const nvinfer1::DimsExprs*, int32_t,
                          nvinfer1::DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder&) noexcept override;
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 int32_t input_count, int32_t output_count) noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::DynamicPluginTensorDesc*, int32_t) noexcept override;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::DynamicPluginTensorDesc*, int32_t) const noexcept override;

  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count,
                        const nvinfer1::PluginTensorDesc*, int32_t) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descs, const nvinfer1::PluginTensorDesc*,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 protected:
  // The fields to serialize point into the object that they are of.
  Plugin(const Plugin& other)
      : signature_(other.signature_), attributes_(other.attributes_), context_(other.context_) {}

  // Specific to one op: a copy, and its kernel.
  virtual std::unique_ptr<Plugin> copy() const = 0;
  // Adds the sizes of axes that no input has; below 0 where those that they follow from are.
  virtual void add_sizes(Sizes&) const {}
  virtual void add_expressions(Expressions&, nvinfer1::IExprBuilder&) const {}
  // Throws std::invalid_argument where sizes that are known do not fit the attributes; those below 0 are not known.
  virtual void check(const Sizes&) const {}
  // Makes ready to compute at these sizes in a context; called before `launch`, never while a graph is captured.
  virtual void prepare(const Sizes&, const void* /* context */) {}
  // Bytes that `launch` needs, aligned to 256, at any sizes up to these.
  virtual size_t workspace_bytes(const Sizes&, Element) const = 0;
  // Throws std::runtime_error where it cannot.
  virtual void launch(const Sizes&, Element, const void* const* inputs, void* const* outputs, void* workspace,
                      cudaStream_t) const = 0;

  const Signature& signature_;
  const Attributes attributes_;

 private:
  // The sizes of the axes; throws std::invalid_argument where the inputs' shapes do not fit.
  Sizes checked_sizes(const std::vector<nvinfer1::Dims>& inputs) const;

  const void* context_ = nullptr;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace clada::trt

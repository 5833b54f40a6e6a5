// Makes plugins of one op from the fields of a node or of a serialized engine.
#pragma once
#include <NvInferRuntime.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "log.h"
#include "plugin.h"

namespace clada::trt {

template <class OpPlugin>
class Creator final : public nvinfer1::IPluginCreatorV3One {
  static constexpr const Signature& kOp = kSignature<typename OpPlugin::Op>;

 public:
  const char* getPluginName() const noexcept override { return kOp.op; }
  const char* getPluginVersion() const noexcept override { return plugin_version(); }
  const char* getPluginNamespace() const noexcept override { return kDomain; }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }

  nvinfer1::IPluginV3* createPlugin(const char* node, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase) noexcept override {
    return guarded<nvinfer1::IPluginV3*>(kOp.op, nullptr, [&]() -> nvinfer1::IPluginV3* {
      try {
        return new OpPlugin(Attributes(kOp, fields));
      } catch (const std::invalid_argument& error) {
        throw std::invalid_argument("node '" + std::string(node ? node : "") + "': " + error.what());
      }
    });
  }

 private:
  std::vector<nvinfer1::PluginField> fields_ = announced_fields(kOp);
  nvinfer1::PluginFieldCollection collection_{static_cast<int32_t>(fields_.size()), fields_.data()};
};

}  // namespace clada::trt

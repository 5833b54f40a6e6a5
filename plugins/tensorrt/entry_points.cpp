// Entry points that TensorRT looks up in a library of plugins, and those for clada; all that entry_points.map exports.
#include "creator.h"
#include "load_signal_plugin.h"
#include "sparse_ffn_plugin.h"
#include "sparse_linear_plugin.h"

extern "C" {

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  clada::trt::set_tensorrt(__builtin_return_address(0));
  clada::trt::set_logger_finder(finder);
}

nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  using namespace clada;
  trt::set_tensorrt(__builtin_return_address(0));
  static trt::Creator<trt::SparseFfnPlugin<ops::SparseGatedFFN>> gated;
  static trt::Creator<trt::SparseFfnPlugin<ops::SparseFFN>> plain;
  static trt::Creator<trt::SparseFfnPlugin<ops::QuantizedSparseGatedFFN>> quantized_gated;
  static trt::Creator<trt::SparseFfnPlugin<ops::QuantizedSparseFFN>> quantized_plain;
  static trt::Creator<trt::SparseLinearPlugin<ops::SparseLinear>> linear;
  static trt::Creator<trt::SparseLinearPlugin<ops::QuantizedSparseLinear>> quantized_linear;
  static trt::Creator<trt::LoadSignalPlugin> signal;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {
      &gated, &plain, &quantized_gated, &quantized_plain, &linear, &quantized_linear, &signal};
  count = sizeof creators / sizeof *creators;
  return creators;
}

// The release of clada that the library is a part of.
const char* clada_version() { return CLADA_VERSION; }

}  // extern "C"

// Common base of the custom ops, on any device: types and arity from the op table, errors as statuses.
#pragma once
#include <exception>
#include <string>
#include <utility>

#include "calls.h"
#include "op_table.h"
#include "ort.h"

namespace clada {

// Types by name, as a session asks for them.
constexpr std::pair<Element, const char*> kElements[] = {
    {Element::kFloat32, "float32"}, {Element::kFloat16, "float16"}, {Element::kBFloat16, "bfloat16"}};

constexpr ONNXTensorElementDataType onnx_type(Element element) {
  return element == Element::kFloat32   ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
         : element == Element::kFloat16 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16
                                        : ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
}

// The type of a tensor of the op table; T is the type of the kernel.
inline ONNXTensorElementDataType onnx_type(const TensorSpec& spec, Element element) {
  const std::string dtype = spec.dtype;
  if (dtype == "T") return onnx_type(element);
  if (dtype == "float32") return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  if (dtype == "float16") return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
  if (dtype == "int8") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
  if (dtype == "int32") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
  if (dtype == "int64") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  if (dtype == "bool") return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

// Runs f, and turns what it throws into a status.
template <class F>
OrtStatusPtr as_status(F f) {
  try {
    f();
    return nullptr;
  } catch (const Ort::Exception& error) {
    return Ort::Status(error.what(), error.GetOrtErrorCode()).release();
  } catch (const std::exception& error) {
    return Ort::Status(error.what(), ORT_RUNTIME_EXCEPTION).release();
  }
}

// A custom op of one element type, and of one of its weights where they may be narrower. Table is the op's entry in the
// op table. Kernel says where it runs (kProvider), what it is made with besides the node (Settings), and computes.
template <class Table, class Kernel>
struct OpBase : Ort::CustomOpBase<OpBase<Table, Kernel>, Kernel, true> {
  using Settings = typename Kernel::Settings;
  Element element, weight_element;
  Settings settings;

  OpBase(Element given_element, Element given_weight_element, const Settings& given_settings)
      : element(given_element), weight_element(given_weight_element), settings(given_settings) {
    this->version = kApiVersion;
  }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    return as_status([&] {
      const Ort::ConstKernelInfo node(info);
      // ONNX Runtime gives a node of any later version to these kernels too.
      const std::string version = node.GetAttribute<std::string>("plugin_version");
      if (version != std::to_string(kVersion)) {
        throw Ort::Exception(std::string(Table::name) + " has version " + version + ", and the native kernels know " +
                                 std::to_string(kVersion) + "; use a matching release of clada",
                             ORT_NOT_IMPLEMENTED);
      }
      *kernel = new Kernel(node, element, settings);
    });
  }
  const char* GetName() const { return Table::name; }
  const char* GetExecutionProviderType() const { return Kernel::kProvider; }
  size_t GetInputTypeCount() const { return Table::In::count; }
  ONNXTensorElementDataType GetInputType(size_t i) const {
    const TensorSpec& spec = Table::In::specs[i];
    return onnx_type(spec, spec.narrow ? weight_element : element);
  }
  size_t GetOutputTypeCount() const { return Table::Out::count; }
  ONNXTensorElementDataType GetOutputType(size_t i) const { return onnx_type(Table::Out::specs[i], element); }
};

}  // namespace clada

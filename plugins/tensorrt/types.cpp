#include "types.h"

#include <stdexcept>

namespace clada::trt {

using nvinfer1::DataType;

static bool is_element(DataType type) {
  return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

static bool is_generic(const TensorSpec& spec) { return std::string_view(spec.dtype) == "T"; }

static std::string name_of(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
      return "float32";
    case DataType::kHALF:
      return "float16";
    case DataType::kBF16:
      return "bfloat16";
    case DataType::kINT8:
      return "int8";
    case DataType::kINT32:
      return "int32";
    case DataType::kINT64:
      return "int64";
    case DataType::kBOOL:
      return "bool";
    default:
      return "of TensorRT's data type " + std::to_string(static_cast<int>(type));
  }
}

Element element_of(DataType type) {
  if (type == DataType::kFLOAT) return Element::kFloat32;
  if (type == DataType::kHALF) return Element::kFloat16;
  if (type == DataType::kBF16) return Element::kBFloat16;
  throw std::invalid_argument("there is no kernel for " + name_of(type));
}

DataType data_type(const TensorSpec& spec, DataType t) {
  const std::string_view dtype = spec.dtype;
  if (dtype == "T") return t;
  for (const DataType type :
       {DataType::kFLOAT, DataType::kHALF, DataType::kINT8, DataType::kINT32, DataType::kINT64, DataType::kBOOL}) {
    if (dtype == name_of(type)) return type;
  }
  throw std::logic_error("the op table has the type " + std::string(dtype) + ", which TensorRT lacks");
}

static size_t first_generic(const Signature& signature) {
  size_t first = 0;
  while (!is_generic(signature.inputs[first])) ++first;
  return first;
}

DataType check_types(const Signature& signature, const DataType* inputs, size_t count) {
  if (count != signature.inputs.size()) {
    throw std::invalid_argument("it takes " + std::to_string(signature.inputs.size()) + " inputs, got " +
                                std::to_string(count));
  }
  const size_t first = first_generic(signature);
  if (!is_element(inputs[first])) {
    throw std::invalid_argument(std::string(signature.inputs[first].name) + " is " + name_of(inputs[first]) +
                                ", expected float32, float16 or bfloat16");
  }
  for (size_t i = 0; i < count; ++i) {
    const DataType wanted = data_type(signature.inputs[i], inputs[first]);
    if (inputs[i] != wanted) {
      throw std::invalid_argument(std::string(signature.inputs[i].name) + " is " + name_of(inputs[i]) + ", expected " +
                                  name_of(wanted));
    }
  }
  return inputs[first];
}

bool is_supported(const Signature& signature, size_t position, const nvinfer1::DynamicPluginTensorDesc* tensors) {
  const size_t inputs = signature.inputs.size();
  const TensorSpec& spec = position < inputs ? signature.inputs[position] : signature.outputs[position - inputs];
  const nvinfer1::PluginTensorDesc& tensor = tensors[position].desc;
  if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
  const size_t first = first_generic(signature);
  // Tensors after `position` may not be read: up to the first T, any floating-point type will do for T.
  if (is_generic(spec) && position <= first) return is_element(tensor.type);
  return tensor.type == data_type(spec, tensors[is_generic(spec) ? first : position].desc.type);
}

}  // namespace clada::trt

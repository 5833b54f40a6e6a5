// Attributes of a node with quantized weights, on any device.
#pragma once
#include <string>

#include "calls.h"
#include "ort.h"

namespace clada {

// An attribute that is a whole number; throws Ort::Exception where it is not one of the attribute's choices.
template <class Table>
int32_t int_attribute(const Ort::ConstKernelInfo& info, size_t index) {
  const AttributeSpec& spec = Table::Attr::specs[index];
  const std::string value = std::to_string(info.GetAttribute<int64_t>(spec.name));
  if (("," + std::string(spec.choices) + ",").find("," + value + ",") == std::string::npos) {
    throw Ort::Exception(std::string(Table::name) + ": " + spec.name + " is " + value + "; it may be " + spec.choices,
                         ORT_INVALID_ARGUMENT);
  }
  return std::stoi(value);
}

// Throws Ort::Exception where there are no kernels for it.
template <class Table>
Quantization quantization_attributes(const Ort::ConstKernelInfo& info) {
  return {int_attribute<Table>(info, Table::Attr::bits), int_attribute<Table>(info, Table::Attr::block_size)};
}

}  // namespace clada

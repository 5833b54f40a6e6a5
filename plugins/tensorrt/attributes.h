// An op's attributes: read from the fields that TensorRT's parser or a serialized engine gives, and written as such.
#pragma once
#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "signature.h"

namespace clada::trt {

class Attributes {
 public:
  // Every attribute of the signature must be there, of its type and among its choices, and nothing else but the two
  // by which TensorRT's parser finds a plugin. Throws std::invalid_argument.
  Attributes(const Signature& signature, const nvinfer1::PluginFieldCollection* fields);

  // By position in the signature.
  const std::string& text(size_t i) const { return values_[i].text; }
  float number(size_t i) const { return values_[i].number; }
  int32_t integer(size_t i) const { return values_[i].integer; }

  // As fields that hold pointers into this object.
  std::vector<nvinfer1::PluginField> fields() const;

 private:
  struct Value {
    const AttributeSpec* spec;
    std::string text;
    float number;
    int32_t integer;
  };
  std::vector<Value> values_;
};

// The fields that a creator announces: names and types, without values.
std::vector<nvinfer1::PluginField> announced_fields(const Signature& signature);

// An activation by its name, one of kActivations.
Activation activation_named(const std::string& name);

}  // namespace clada::trt

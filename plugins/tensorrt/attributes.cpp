#include "attributes.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <stdexcept>

#include "text.h"

namespace clada::trt {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

// Which plugin a node asks for; a creator was found by them, so they need not be read.
static constexpr std::string_view kOfTheParser[] = {"plugin_namespace", "plugin_version"};

static PluginFieldType field_type(const AttributeSpec& spec) {
  return std::string_view(spec.type) == "float" ? PluginFieldType::kFLOAT32 : PluginFieldType::kCHAR;
}

static std::string announced(const AttributeSpec& spec) {
  const std::vector<std::string_view> choices = split(spec.choices);
  return choices.empty() ? spec.type : "one of " + join(choices);
}

static std::string quoted(const std::string& name) { return "field '" + name + "'"; }

// Text of a field, which may or may not end with zeros.
static std::string text_of(const PluginField& field) {
  std::string text(static_cast<const char*>(field.data), static_cast<size_t>(field.length));
  text.erase(std::find(text.begin(), text.end(), '\0'), text.end());
  return text;
}

static const PluginField& find_field(const AttributeSpec& spec, const Specs<PluginField>& fields) {
  const auto* found = std::find_if(fields.begin(), fields.end(), [&](const PluginField& field) {
    return field.name && std::string_view(field.name) == spec.name;
  });
  if (found == fields.end()) {
    throw std::invalid_argument(quoted(spec.name) + " is missing; it must be " + announced(spec));
  }
  return *found;
}

static void check_names(const Signature& signature, const Specs<PluginField>& fields) {
  std::vector<std::string_view> known;
  for (const AttributeSpec& spec : signature.attributes) known.emplace_back(spec.name);
  for (const PluginField& field : fields) {
    const std::string_view name = field.name ? field.name : "";
    const auto is_name = [&](std::string_view other) { return other == name; };
    if (std::any_of(known.begin(), known.end(), is_name)) continue;
    if (std::any_of(std::begin(kOfTheParser), std::end(kOfTheParser), is_name)) continue;
    throw std::invalid_argument(quoted(std::string(name)) + " is not known; the fields are " + join(known));
  }
}

Attributes::Attributes(const Signature& signature, const PluginFieldCollection* collection) {
  const Specs<PluginField> fields{collection ? collection->fields : nullptr,
                                  collection ? static_cast<size_t>(collection->nbFields) : 0};
  check_names(signature, fields);
  for (const AttributeSpec& spec : signature.attributes) {
    const PluginField& field = find_field(spec, fields);
    const bool is_number = field_type(spec) == PluginFieldType::kFLOAT32;
    if (field.type != field_type(spec) || !field.data || field.length < 0 || (is_number && field.length != 1)) {
      throw std::invalid_argument(quoted(spec.name) + " has type " + std::to_string(static_cast<int>(field.type)) +
                                  " and length " + std::to_string(field.length) + "; it must be " +
                                  (is_number ? "one FLOAT32" : "CHAR"));
    }
    Value value{&spec, "", 0};
    if (is_number) {
      value.number = *static_cast<const float*>(field.data);
      if (!std::isfinite(value.number)) {
        throw std::invalid_argument(quoted(spec.name) + " is " + std::to_string(value.number) + "; it must be finite");
      }
    } else {
      value.text = text_of(field);
      const std::vector<std::string_view> choices = split(spec.choices);
      if (!choices.empty() && std::find(choices.begin(), choices.end(), value.text) == choices.end()) {
        throw std::invalid_argument(quoted(spec.name) + " is '" + value.text + "'; it must be " + announced(spec));
      }
    }
    values_.push_back(std::move(value));
  }
}

std::vector<PluginField> Attributes::fields() const {
  std::vector<PluginField> fields;
  for (const Value& value : values_) {
    const PluginFieldType type = field_type(*value.spec);
    if (type == PluginFieldType::kFLOAT32) {
      fields.emplace_back(value.spec->name, &value.number, type, 1);
    } else {
      fields.emplace_back(value.spec->name, value.text.data(), type, static_cast<int32_t>(value.text.size()));
    }
  }
  return fields;
}

std::vector<PluginField> announced_fields(const Signature& signature) {
  std::vector<PluginField> fields;
  for (const AttributeSpec& spec : signature.attributes) fields.emplace_back(spec.name, nullptr, field_type(spec), 1);
  return fields;
}

Activation activation_named(const std::string& name) {
  const auto* known = std::find(std::begin(kActivations), std::end(kActivations), name);
  if (known == std::end(kActivations)) throw std::invalid_argument("activation '" + name + "' is not known");
  return static_cast<Activation>(known - std::begin(kActivations));
}

}  // namespace clada::trt

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
  const std::string_view type = spec.type;
  return type == "float" ? PluginFieldType::kFLOAT32 : type == "int" ? PluginFieldType::kINT32 : PluginFieldType::kCHAR;
}

static const char* name_of(PluginFieldType type) {
  return type == PluginFieldType::kFLOAT32 ? "one FLOAT32" : type == PluginFieldType::kINT32 ? "one INT32" : "CHAR";
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
    throw std::invalid_argument(quoted(std::string(name)) + " is not known; " +
                                (known.empty() ? "there are none" : "the fields are " + join(known)));
  }
}

static void check_type(const AttributeSpec& spec, const PluginField& field) {
  const PluginFieldType wanted = field_type(spec);
  const bool is_one = wanted == PluginFieldType::kCHAR || field.length == 1;
  if (field.type == wanted && field.data && field.length >= 0 && is_one) return;
  throw std::invalid_argument(quoted(spec.name) + " has type " + std::to_string(static_cast<int>(field.type)) +
                              " and length " + std::to_string(field.length) + "; it must be " + name_of(wanted));
}

static void check_choice(const AttributeSpec& spec, const std::string& value, const std::string& shown) {
  const std::vector<std::string_view> choices = split(spec.choices);
  if (choices.empty() || std::find(choices.begin(), choices.end(), value) != choices.end()) return;
  throw std::invalid_argument(quoted(spec.name) + " is " + shown + "; it must be " + announced(spec));
}

Attributes::Attributes(const Signature& signature, const PluginFieldCollection* collection) {
  const Specs<PluginField> fields{collection ? collection->fields : nullptr,
                                  collection ? static_cast<size_t>(collection->nbFields) : 0};
  check_names(signature, fields);
  for (const AttributeSpec& spec : signature.attributes) {
    const PluginField& field = find_field(spec, fields);
    check_type(spec, field);
    Value value{&spec, "", 0, 0};
    if (field.type == PluginFieldType::kFLOAT32) {
      value.number = *static_cast<const float*>(field.data);
      if (!std::isfinite(value.number)) {
        throw std::invalid_argument(quoted(spec.name) + " is " + std::to_string(value.number) + "; it must be finite");
      }
    } else if (field.type == PluginFieldType::kINT32) {
      value.integer = *static_cast<const int32_t*>(field.data);
      const std::string digits = std::to_string(value.integer);
      check_choice(spec, digits, digits);
    } else {
      value.text = text_of(field);
      check_choice(spec, value.text, "'" + value.text + "'");
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
    } else if (type == PluginFieldType::kINT32) {
      fields.emplace_back(value.spec->name, &value.integer, type, 1);
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

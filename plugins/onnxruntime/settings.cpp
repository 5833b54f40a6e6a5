#include "settings.h"

#include "op_base.h"

namespace clada {

Settings read_settings(Ort::UnownedSessionOptions& options) {
  Settings settings{options.GetConfigEntryOrDefault("clada.weights", ""),
                    options.GetConfigEntryOrDefault("clada.instructions", ""),
                    options.GetConfigEntryOrDefault("clada.element", ""),
                    options.GetConfigEntryOrDefault("clada.exact", ""), nullptr};
  if (!settings.weights.empty() && settings.weights != "bfloat16") {
    throw Ort::Exception("clada.weights is '" + settings.weights + "'; it may be empty or bfloat16",
                         ORT_INVALID_ARGUMENT);
  }
  bool known = settings.element.empty();
  for (const auto& [element, name] : kElements) known = known || settings.element == name;
  if (!known) {
    throw Ort::Exception("clada.element is '" + settings.element + "'; it may be empty, float32, float16 or bfloat16",
                         ORT_INVALID_ARGUMENT);
  }
  if (!settings.exact.empty() && settings.exact != "1") {
    throw Ort::Exception("clada.exact is '" + settings.exact + "'; it may be empty or 1", ORT_INVALID_ARGUMENT);
  }
  settings.kernels = find_kernels(settings.instructions.c_str());
  if (!settings.kernels) {
    throw Ort::Exception("clada.instructions is '" + settings.instructions +
                             "', which is not known or which this processor does not have",
                         ORT_INVALID_ARGUMENT);
  }
  return settings;
}

bool holds_bfloat16(const Settings& settings, Element element) {
  if (settings.weights != "bfloat16") return false;
  if (element != Element::kFloat32) {
    throw Ort::Exception("clada.weights=bfloat16 is for float32 models, and this one is not", ORT_INVALID_ARGUMENT);
  }
  return true;
}

void check_quantized(const Settings& settings) {
  if (settings.weights.empty()) return;
  throw Ort::Exception("clada.weights=" + settings.weights + " is for float32 models, and this one is quantized",
                       ORT_INVALID_ARGUMENT);
}

}  // namespace clada

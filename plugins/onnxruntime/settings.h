// Settings of the kernels, from a session's configuration entries.
#pragma once
#include <string>

#include "kernels.h"
#include "ort.h"

namespace clada {

// "clada.weights": "" for weights as the model has them, or "bfloat16".
// "clada.instructions": "" for the best this processor has, or a name that find_kernels knows.
// "clada.element": "" for kernels of every type, or the name of one. Where there are float32 ones too, ONNX Runtime
// runs a float16 op between two that it converts to float32 on those, with its weights converted as well.
// "clada.exact": "" where products with 4-bit weights may round what these are multiplied with to 8 bits, as ONNX
// Runtime's own do, on processors where that is faster; "1" for 16 bits on all.
struct Settings {
  std::string weights, instructions, element, exact;
  const Kernels* kernels;
};

// Throws Ort::Exception when an entry has a value that is not known or that this processor cannot serve.
Settings read_settings(Ort::UnownedSessionOptions& options);

// Whether a model's weights of a type are to be held as bfloat16; throws Ort::Exception where they cannot be.
bool holds_bfloat16(const Settings& settings, Element element);

// Throws Ort::Exception where weights are to be held as something else and are quantized.
void check_quantized(const Settings& settings);

}  // namespace clada

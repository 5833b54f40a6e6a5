// ONNX Runtime's C++ API without linking to it: the library that loads us hands it over.
#pragma once
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

namespace clada {

// The oldest API that has all we call. ONNX Runtime 1.20, the oldest release clada installs with, speaks it.
constexpr int kApiVersion = 20;

}  // namespace clada

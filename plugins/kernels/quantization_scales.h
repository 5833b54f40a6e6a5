// Whether the scales of quantized weights can be used.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace clada {

// Defect of the first scale that is zero, infinite or NaN; empty for none. `scales` are `count` float16 values in
// rows of `of_row`.
inline std::string scale_fault(const uint16_t* scales, size_t count, size_t of_row) {
  for (size_t i = 0; i < count; ++i) {
    const bool is_zero = (scales[i] & 0x7fff) == 0, is_finite = (scales[i] & 0x7c00) != 0x7c00;
    if (!is_zero && is_finite) continue;
    const char* what = is_zero ? "zero" : (scales[i] & 0x3ff) != 0 ? "NaN" : "infinite";
    return "has a scale that is " + std::string(what) + ", in row " + std::to_string(i / of_row) +
           "; export the model again";
  }
  return "";
}

}  // namespace clada

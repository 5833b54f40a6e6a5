// Whether the sizes of quantized weights fit each other, as in clada/ops/block_quantization.py.
#pragma once
#include <algorithm>
#include <limits>
#include <string>

#include "calls.h"

namespace clada {

// Weights of a row that has so many bytes, or the most that an integer counts.
inline int64_t row_weights(Quantization quantization, int64_t packed) {
  const int64_t of_byte = 8 / quantization.bits;
  return std::min(packed, std::numeric_limits<int64_t>::max() / of_byte) * of_byte;
}

// Why they do not, or nothing; `packed` bytes and `scales` are of a row of `width` weights, which the op calls `axis`.
inline std::string size_misfit(Quantization quantization, int64_t width, int64_t packed, int64_t scales,
                               const char* axis = "D") {
  const std::string bits = std::to_string(quantization.bits), block_size = std::to_string(quantization.block_size),
                    of_width = std::string(axis) + "=" + std::to_string(width);
  if (width % quantization.block_size != 0)
    return "block_size " + block_size + " does not divide the width " + of_width;
  // The other way round: a product might be more than an integer holds.
  if (packed != width / 8 * quantization.bits) {
    return std::to_string(packed) + " bytes a row do not fit " + of_width + " weights of " + bits + " bits";
  }
  if (scales != width / quantization.block_size) {
    return std::to_string(scales) + " scales a row do not fit " + of_width + " in blocks of " + block_size;
  }
  return "";
}

}  // namespace clada

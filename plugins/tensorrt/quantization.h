// Quantization of the weights of a plugin's node.
#pragma once
#include <stdexcept>
#include <string>

#include "attributes.h"
#include "op_inputs.h"
#include "quantization_sizes.h"

namespace clada::trt {

template <class Table>
Quantization quantization_of(const Attributes& attributes) {
  if constexpr (is_quantized<Table>) {
    return {attributes.integer(Table::Attr::bits), attributes.integer(Table::Attr::block_size)};
  }
  return {};
}

// Throws std::invalid_argument where sizes of a row do not fit, once all are known; the op calls its width `axis`.
inline void check_row(Quantization quantization, int64_t width, int64_t packed, int64_t scales, const char* axis) {
  if (width < 0 || packed < 0 || scales < 0) return;
  const std::string misfit = size_misfit(quantization, width, packed, scales, axis);
  if (!misfit.empty()) throw std::invalid_argument(misfit);
}

}  // namespace clada::trt

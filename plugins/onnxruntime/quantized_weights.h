// Quantized weights of a node, packed when the model is loaded.
#pragma once
#include <vector>

#include "held_weights.h"

namespace clada {

// Where a node has the codes and the scales of a matrix, and what the two are called.
struct QuantizedMatrix {
  size_t codes, scales;
  const char *name, *scales_name;
};

// Packs the matrices of a node of a feed-forward op, one after the other w_in, w_up where there is one, and w_out, and
// releases the original. Throws Ort::Exception when an input is not constant, sizes do not fit, or a scale is zero or
// not finite.
HeldWeights pack_ffn_inputs(const Ort::ConstKernelInfo& info, const char* op,
                            const std::vector<QuantizedMatrix>& matrices, Quantization quantization,
                            const QuantizedKernels& kernels);

// The same of the matrix of SparseLinear.
HeldWeights pack_linear_input(const Ort::ConstKernelInfo& info, const char* op, const QuantizedMatrix& matrix,
                              Quantization quantization, const QuantizedKernels& kernels);

}  // namespace clada

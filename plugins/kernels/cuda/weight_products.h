// Products of many tokens with a matrix of weights. Quantized ones are dequantized to the type of the tokens a piece
// at a time, anew for each product, and then multiplied like others.
#pragma once
#include <cuda_runtime_api.h>

#include "dequantize.h"
#include "launchers.h"

namespace clada::cuda {

// Bytes of the piece that a product needs; none where weights are not quantized.
size_t inward_piece_bytes(const Matrix&);
size_t outward_piece_bytes(const Matrix&);

// Inputs and outputs have no gaps.
struct WeightProducts {
  const Products& products;
  void* piece;
  cudaStream_t stream;

  // out[tokens, rows] = in[tokens, width] . matrix^T
  cudaError_t inward(const Matrix&, int64_t tokens, const void* in, void* out) const;
  // out[tokens, width] = in[tokens, rows] . matrix
  cudaError_t outward(const Matrix&, int64_t tokens, const void* in, void* out) const;

 private:
  // The product; of quantized weights a piece is `each` of its n.
  cudaError_t multiply(const Matrix&, Product, int64_t each) const;
};

}  // namespace clada::cuda

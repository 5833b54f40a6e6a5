// Quantized weights in an element type, for products of matrices.
#pragma once
#include <cuda_runtime_api.h>

#include "rowwise.h"

namespace clada::cuda {

// A matrix [rows, width] of weights, which where they are not quantized are of `element`, as all else of its call.
struct Matrix {
  Weights weights;
  int64_t rows, width;
  Element element;
  Quantization quantization;
};

// Rows [first_row, first_row + rows) and columns [first_column, first_column + columns) of a matrix; columns start and
// end at multiples of kSmallestBlock.
struct Piece {
  int64_t first_row, rows, first_column, columns;
};

// Writes [rows, columns] of a quantized matrix in its call's element type.
cudaError_t dequantize(const Matrix&, const Piece&, void* out, cudaStream_t);

}  // namespace clada::cuda

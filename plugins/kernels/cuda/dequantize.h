// Quantised weights in an element type, for products of matrices.
#pragma once
#include <cuda_runtime_api.h>

#include "rowwise.h"

namespace clada::cuda {

// Rows [first_row, first_row + rows) and columns [first_column, first_column + columns) of a matrix; columns start and
// end at multiples of kSmallestBlock.
struct Piece {
  int64_t first_row, rows, first_column, columns;
};

// Writes [rows, columns] of one of the call's matrices in the call's element type.
cudaError_t dequantize(const SparseFfnCall&, const Weights&, const Piece&, void* out, cudaStream_t);

}  // namespace clada::cuda

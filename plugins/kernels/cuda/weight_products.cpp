#include "weight_products.h"

#include <algorithm>

#include "chunks.h"

namespace clada::cuda {
namespace {

// Large enough to be multiplied at full speed, small enough for larger caches. In whole steps of rows or columns, which
// blocks divide.
constexpr int64_t kPieceBytes = int64_t{32} << 20;
constexpr int64_t kPieceStep = 128;

// Rows or columns, `length` long, that a piece has of `count` that there are.
int64_t of_piece(const Matrix& matrix, int64_t length, int64_t count) {
  const int64_t bytes = std::max<int64_t>(1, length * static_cast<int64_t>(element_size(matrix.element)));
  return std::min(count, std::max(kPieceBytes / bytes / kPieceStep, int64_t{1}) * kPieceStep);
}

int64_t rows_of_piece(const Matrix& matrix) { return of_piece(matrix, matrix.width, matrix.rows); }
int64_t columns_of_piece(const Matrix& matrix) { return of_piece(matrix, matrix.rows, matrix.width); }

size_t bytes_of(const Matrix& matrix, int64_t count, int64_t length) {
  return matrix.quantization.bits == 0 ? 0 : padded_bytes(count * length, element_size(matrix.element));
}

}  // namespace

size_t inward_piece_bytes(const Matrix& matrix) { return bytes_of(matrix, rows_of_piece(matrix), matrix.width); }
size_t outward_piece_bytes(const Matrix& matrix) { return bytes_of(matrix, columns_of_piece(matrix), matrix.rows); }

cudaError_t WeightProducts::inward(const Matrix& matrix, int64_t tokens, const void* in, void* out) const {
  return multiply(matrix,
                  {tokens, matrix.rows, matrix.width, matrix.element, in, matrix.weights.data, out, matrix.rows, true},
                  rows_of_piece(matrix));
}

cudaError_t WeightProducts::outward(const Matrix& matrix, int64_t tokens, const void* in, void* out) const {
  return multiply(
      matrix, {tokens, matrix.width, matrix.rows, matrix.element, in, matrix.weights.data, out, matrix.width, false},
      columns_of_piece(matrix));
}

cudaError_t WeightProducts::multiply(const Matrix& matrix, Product product, int64_t each) const {
  if (is_empty(product)) return clear_product(product, stream);
  if (matrix.quantization.bits == 0) return products.multiply(products.library, product, stream);
  const int64_t all = product.n;
  char* out = static_cast<char*>(product.c);
  product.b = piece;
  cudaError_t error = cudaSuccess;
  for (int64_t first = 0; first < all && error == cudaSuccess; first += each) {
    product.n = std::min(each, all - first);
    product.c = out + first * static_cast<int64_t>(element_size(product.element));
    const Piece widened =
        product.transposed_b ? Piece{first, product.n, 0, product.k} : Piece{0, product.k, first, product.n};
    error = dequantize(matrix, widened, piece, stream);
    if (error == cudaSuccess) error = products.multiply(products.library, product, stream);
  }
  return error;
}

}  // namespace clada::cuda

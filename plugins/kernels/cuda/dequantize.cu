#include <launch.cuh>

#include "dequantize.h"
#include "rows.cuh"

namespace clada::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kOfThread = 8;  // weights

template <class Format, class E>
__global__ void __launch_bounds__(kThreads)
    widen_weights(const Weights matrix, const Piece piece, int width, int scale_shift, bool vectors, E* out) {
  const QuantizedRows<Format, kOfThread> rows(matrix, width, scale_shift);
  const int64_t of_row = piece.columns / kOfThread, at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= piece.rows * of_row) return;
  const auto row = rows.row(static_cast<int>(piece.first_row + at / of_row));
  const int column = static_cast<int>(piece.first_column + at % of_row * kOfThread);
  const auto packed = vectors ? rows.template load<true>(row, column) : rows.template load<false>(row, column);
  E some[kOfThread];
#pragma unroll
  for (int four = 0; four < kOfThread / 4; ++four) {
    float weights[4];
    rows.widen(packed, four, weights);
#pragma unroll
    for (int i = 0; i < 4; ++i) some[4 * four + i] = from_float<E>(weights[i]);
  }
  // The piece starts at a multiple of 256 bytes, and its rows are whole blocks.
  constexpr int kOfVector = sizeof(uint4) / sizeof(E);
#pragma unroll
  for (int i = 0; i < kOfThread / kOfVector; ++i) {
    uint4 vector;
    memcpy(&vector, some + i * kOfVector, sizeof vector);
    reinterpret_cast<uint4*>(out + at * kOfThread)[i] = vector;
  }
}

}  // namespace

cudaError_t dequantize(const Matrix& matrix, const Piece& piece, void* out, cudaStream_t stream) {
  const int64_t threads = piece.rows * (piece.columns / kOfThread);
  const bool vectors = is_aligned(matrix.weights.data);
  return with_element(matrix.element, [&](auto* of) {
    using E = std::remove_pointer_t<decltype(of)>;
    const auto kernel = matrix.quantization.bits == Int4::kBits ? widen_weights<Int4, E> : widen_weights<Int8, E>;
    return launch(kernel, (threads + kThreads - 1) / kThreads, kThreads, stream, matrix.weights, piece,
                  static_cast<int>(matrix.width), scale_shift(matrix.quantization), vectors, static_cast<E*>(out));
  });
}

}  // namespace clada::cuda

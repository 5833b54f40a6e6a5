// The matrix of the quantized SparseLinear as the CPU kernels hold it, and the sums of its rows.
#pragma once
#include <cstring>

#include "kernels.h"
#include "quantized_row_sums.h"

namespace clada {

template <class I, int kBits>
struct PackedLinear {
  using Rows = PackedRows<I, kBits>;

  static Rows rows(const SparseLinearCall& call, const void* packed) {
    return {packed, call.outputs, call.quantization.block_size, 1};
  }

  // Bytes past the last row are read, not used.
  static size_t bytes(const SparseLinearCall& call) {
    return static_cast<size_t>(call.width * Rows::row_bytes(call.outputs, call.quantization.block_size) + kLine);
  }

  static void pack(const SparseLinearCall& call, void* packed, const ParallelFor& parallel) {
    const Rows to = rows(call, packed);
    memset(static_cast<uint8_t*>(packed) + bytes(call) - kLine, 0, kLine);
    pack_ranges(call.width, parallel, [&](int64_t first, int64_t last) {
      Rows::pack(to, first, last, call.quantization.block_size, call.w, call.s);
    });
  }
};

// How packed rows are summed, and into what sizes the work is cut for that; kBytes where factors are rounded to bytes.
template <class I, int kBits, bool kBytes>
struct QuantizedSums {
  using Rows = PackedRows<I, kBits>;
  static constexpr int kGroup = kBytes ? kByteSumRows : kSumRows;  // rows added at a time
  // From this many tokens on, products of matrices are faster, even though they skip nothing.
  static constexpr int64_t kMatrixTokens = Rows::kPaired ? 12 : 28;
  static constexpr int64_t kStripBytes = 8192;  // of a row: what memory gives depends on how much is read in one go
  static constexpr int64_t kLeastInputs = 192;  // of a part, whose sums have eight times the bytes of a row of codes
  static constexpr int kAhead = kGroup;         // rows are prefetched so many before they are read

  static int64_t bytes(int64_t columns) { return columns * kBits / 8; }

  // Adds the rows of `count` inputs times their factors to columns [first, last) of y.
  static void add(const Rows& w, const int32_t* inputs, int count, const float* factors, int64_t first, int64_t last,
                  float* y) {
    for (int n = 0; n < count; n += kGroup) {
      const int there = count - n < kGroup ? count - n : kGroup;
      typename Rows::Row some[kGroup], next[kGroup];
      float group[kGroup] = {};
      for (int r = 0; r < kGroup; ++r) {
        const int at = n + (r < there ? r : there - 1);
        some[r] = w.row(inputs[at]);
        next[r] = w.row(inputs[at + kAhead < count ? at + kAhead : at]);
        if (r < there) group[r] = factors[at];
      }
      add_stripes<I, kBits, kBytes>(w, some, next, there, group, first / Rows::kSpan, last / Rows::kSpan, y);
    }
  }
};

}  // namespace clada

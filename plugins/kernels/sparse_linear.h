// SparseLinear: choice of the algorithm and the type of rows for a call.
#pragma once
#include "matrix_linear.h"
#include "quantized_linear.h"
#include "row_sums.h"
#include "rowwise_linear.h"
#include "workspace.h"

namespace clada {

// How plain rows are summed, and into what sizes the work is cut for that.
template <class I, class E>
struct PlainSums {
  using Rows = PlainRows<I, E>;
  // From this many tokens on, products of matrices are faster, even though they skip nothing.
  static constexpr int64_t kMatrixTokens = 12;
  static constexpr int64_t kStripBytes = 8192;  // of a row: what is read in one go is to be long, and y to stay near
  static constexpr int64_t kLeastInputs = 64;   // of a part, whose sums are to be added up
  static constexpr int kGroup = 4;              // rows added at a time
  static constexpr int kAhead = 8;              // rows are prefetched so many before they are read

  static int64_t bytes(int64_t columns) { return columns * static_cast<int64_t>(sizeof(E)); }

  // Adds the rows of `count` inputs times their factors to columns [first, last) of y.
  static void add(const Rows& w, const int32_t* inputs, int count, const float* factors, int64_t first, int64_t last,
                  float* y) {
    int n = 0;
    for (; n + kGroup <= count; n += kGroup) add_some<kGroup>(w, inputs + n, count - n, factors + n, first, last, y);
    for (; n < count; ++n) add_some<1>(w, inputs + n, count - n, factors + n, first, last, y);
  }

 private:
  // Adds the rows of kCount of the `left` inputs.
  template <int kCount>
  static void add_some(const Rows& w, const int32_t* inputs, int left, const float* factors, int64_t first,
                       int64_t last, float* y) {
    typename Rows::Row some[kCount], next[kCount];
    for (int r = 0; r < kCount; ++r) {
      some[r] = w.row(inputs[r]);
      next[r] = w.row(inputs[kAhead + r < left ? kAhead + r : r]);
    }
    add_rows<I, Rows, kCount>(some, next, factors, w.width, first, last, y + first,
                              Rows::template prefetch<Rows::kSpan>);
  }
};

// Whether a call is computed as products of matrices; of nothing there are none.
template <class Sums>
bool as_matrices(const SparseLinearCall& call) {
  return call.width > 0 && call.outputs > 0 && call.batch * call.sequence >= Sums::kMatrixTokens;
}

template <class I, class Sums>
size_t linear_workspace(const SparseLinearCall& call) {
  const size_t floats = as_matrices<Sums>(call) ? MatrixLinear<I, typename Sums::Rows>::workspace_floats(call)
                                                : RowwiseLinear<I, Sums>::workspace_floats(call);
  return floats * sizeof(float) + kLine;
}

template <class I, class Sums>
void run_linear(const SparseLinearCall& call, const typename Sums::Rows& w, void* workspace,
                const ParallelFor& parallel) {
  const LinearProblem<I, typename Sums::Rows> problem{call, w, call.batch * call.sequence};
  if (as_matrices<Sums>(call)) {
    MatrixLinear<I, typename Sums::Rows>(problem, first_line(workspace)).run(parallel);
  } else {
    RowwiseLinear<I, Sums>(problem, first_line(workspace)).run(parallel);
  }
}

template <class I>
size_t sparse_linear_workspace(const SparseLinearCall& call) {
  return with_element(call.weight_element,
                      [&](auto value) { return linear_workspace<I, PlainSums<I, decltype(value)>>(call); });
}

template <class I>
void sparse_linear(const SparseLinearCall& call, void* workspace, const ParallelFor& parallel) {
  with_element(call.weight_element, [&](auto value) {
    using Sums = PlainSums<I, decltype(value)>;
    const typename Sums::Rows w{static_cast<const decltype(value)*>(call.w), call.outputs};
    run_linear<I, Sums>(call, w, workspace, parallel);
  });
}

// Calls f with how the rows of a call are summed.
template <class I, class F>
auto with_sums(const SparseLinearCall& call, F f) {
  return with_bits(call.quantization.bits, [&](auto bits) {
    if constexpr (I::kBytePairs && bits == 4) {
      if (call.byte_factors) return f(bits, QuantizedSums<I, bits, true>());
    }
    return f(bits, QuantizedSums<I, bits, false>());
  });
}

template <class I>
size_t quantized_linear_workspace(const SparseLinearCall& call) {
  return with_sums<I>(call, [&](auto, auto sums) { return linear_workspace<I, decltype(sums)>(call); });
}

template <class I>
void quantized_linear(const SparseLinearCall& call, const void* packed, void* workspace, const ParallelFor& parallel) {
  with_sums<I>(call, [&](auto bits, auto sums) {
    run_linear<I, decltype(sums)>(call, PackedLinear<I, bits>::rows(call, packed), workspace, parallel);
  });
}

template <class I>
size_t packed_linear_bytes(const SparseLinearCall& call) {
  return with_bits(call.quantization.bits, [&](auto bits) { return PackedLinear<I, bits>::bytes(call); });
}

template <class I>
void pack_linear(const SparseLinearCall& call, void* packed, const ParallelFor& parallel) {
  with_bits(call.quantization.bits, [&](auto bits) { PackedLinear<I, bits>::pack(call, packed, parallel); });
}

}  // namespace clada

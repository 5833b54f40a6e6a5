// The feed-forward ops: chooses how a call is computed and for which type of rows.
#pragma once
#include "matrix_ffn.h"
#include "rowwise_ffn.h"

namespace clada {

// From this many tokens on, products of matrices are faster than rows one by one, even though they skip nothing.
constexpr int64_t kMatrixTokens = 12;

static inline bool as_matrices(const SparseFfnCall& ffn) { return ffn.batch * ffn.sequence >= kMatrixTokens; }

// Floats of the call's biases in float32.
template <class I>
size_t widened_floats(const SparseFfnCall& ffn) {
  return padded<I>(ffn.neurons) + padded<I>(ffn.width);
}

template <class I, class Rows>
void run_ffn(const SparseFfnCall& ffn, const Rows& w_in, const Rows& w_up, const Rows& w_out, float* workspace,
             const ParallelFor& parallel) {
  float* b_in = workspace;
  float* b_out = b_in + padded<I>(ffn.neurons);
  if (ffn.b_in) widen<I>(ffn.element, ffn.b_in, 0, b_in, ffn.neurons);
  if (ffn.b_out) widen<I>(ffn.element, ffn.b_out, 0, b_out, ffn.width);
  const FfnProblem<I, Rows> problem{ffn,
                                    w_in,
                                    w_up,
                                    w_out,
                                    ffn.w_up != nullptr,
                                    ffn.batch * ffn.sequence,
                                    whole_spans<Rows>(ffn.width),
                                    ffn.b_in ? b_in : nullptr,
                                    ffn.b_out ? b_out : nullptr};
  float* rest = workspace + widened_floats<I>(ffn);
  if (as_matrices(ffn)) {
    MatrixFfn<I, Rows>(problem, rest).run(parallel);
  } else {
    RowwiseFfn<I, Rows>(problem, rest).run(parallel);
  }
}

template <class I, class E>
void run_plain_ffn(const SparseFfnCall& ffn, float* workspace, const ParallelFor& parallel) {
  using Rows = PlainRows<I, E>;
  const auto rows = [&](const void* data) { return Rows{static_cast<const E*>(data), ffn.width}; };
  run_ffn<I, Rows>(ffn, rows(ffn.w_in), rows(ffn.w_up), rows(ffn.w_out), workspace, parallel);
}

template <class I>
size_t sparse_ffn_workspace(const SparseFfnCall& ffn) {
  using Rows = PlainRows<I, float>;
  const size_t rest =
      as_matrices(ffn) ? MatrixFfn<I, Rows>::workspace_floats(ffn) : RowwiseFfn<I, Rows>::workspace_floats(ffn);
  return (widened_floats<I>(ffn) + rest) * sizeof(float) + 64;
}

template <class I>
void sparse_ffn(const SparseFfnCall& ffn, void* workspace, const ParallelFor& parallel) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(workspace);
  float* aligned = reinterpret_cast<float*>((at + 63) / 64 * 64);
  switch (ffn.weight_element) {
    case Element::kFloat32:
      return run_plain_ffn<I, float>(ffn, aligned, parallel);
    case Element::kFloat16:
      return run_plain_ffn<I, Float16>(ffn, aligned, parallel);
    case Element::kBFloat16:
      return run_plain_ffn<I, BFloat16>(ffn, aligned, parallel);
  }
}

}  // namespace clada

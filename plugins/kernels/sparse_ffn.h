// The feed-forward ops: choice of the algorithm and the type of rows for a call.
#pragma once
#include "kernels.h"
#include "matrix_ffn.h"
#include "quantized_ffn.h"
#include "rowwise_ffn.h"
#include "workspace.h"

namespace clada {

// Floats of the call's biases in float32.
template <class I>
size_t widened_floats(const SparseFfnCall& ffn) {
  return padded<I>(ffn.neurons) + padded<I>(ffn.width);
}

// Whether a call is computed as products of matrices, which skip nothing, and not row by row, by Ffn; of no neurons
// there are no products.
template <class Ffn>
bool as_matrices(const SparseFfnCall& ffn) {
  return ffn.neurons > 0 && ffn.batch * ffn.sequence >= Ffn::kMatrixTokens;
}

template <class I, class Rows, class Ffn>
size_t ffn_workspace(const SparseFfnCall& ffn) {
  if (ffn.batch * ffn.sequence == 0) return kLine;
  const size_t rest = as_matrices<Ffn>(ffn) ? MatrixFfn<I, Rows>::workspace_floats(ffn) : Ffn::workspace_floats(ffn);
  return (widened_floats<I>(ffn) + rest) * sizeof(float) + kLine;
}

template <class I, class Rows, class Ffn>
void run_ffn(const SparseFfnCall& ffn, const Rows& w_in, const Rows& w_up, const Rows& w_out, float* workspace,
             const ParallelFor& parallel) {
  if (ffn.batch * ffn.sequence == 0) return clear_scores(ffn);
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
                                    {ffn.element, ffn.y, ffn.width, ffn.b_out ? b_out : nullptr}};
  float* rest = workspace + widened_floats<I>(ffn);
  if (as_matrices<Ffn>(ffn)) {
    MatrixFfn<I, Rows>(problem, rest).run(parallel);
  } else {
    Ffn(problem, rest).run(parallel);
  }
}

template <class I, class E>
void run_plain_ffn(const SparseFfnCall& ffn, float* workspace, const ParallelFor& parallel) {
  using Rows = PlainRows<I, E>;
  const auto rows = [&](const void* data) { return Rows{static_cast<const E*>(data), ffn.width}; };
  run_ffn<I, Rows, RowwiseFfn<I, Rows>>(ffn, rows(ffn.w_in), rows(ffn.w_up), rows(ffn.w_out), workspace, parallel);
}

template <class I>
size_t sparse_ffn_workspace(const SparseFfnCall& ffn) {
  using Rows = PlainRows<I, float>;
  return ffn_workspace<I, Rows, RowwiseFfn<I, Rows>>(ffn);
}

template <class I>
void sparse_ffn(const SparseFfnCall& ffn, void* workspace, const ParallelFor& parallel) {
  float* aligned = first_line(workspace);
  with_element(ffn.weight_element, [&](auto value) { run_plain_ffn<I, decltype(value)>(ffn, aligned, parallel); });
}

template <class I>
size_t quantized_ffn_workspace(const SparseFfnCall& ffn) {
  return with_bits(ffn.quantization.bits,
                   [&](auto bits) { return ffn_workspace<I, PackedRows<I, bits>, QuantizedFfn<I, bits>>(ffn); });
}

template <class I>
void quantized_ffn(const SparseFfnCall& ffn, const void* packed, void* workspace, const ParallelFor& parallel) {
  with_bits(ffn.quantization.bits, [&](auto bits) {
    const PackedFfn<I, bits> rows(ffn, packed);
    run_ffn<I, PackedRows<I, bits>, QuantizedFfn<I, bits>>(ffn, rows.w_in, rows.w_up, rows.w_out, first_line(workspace),
                                                           parallel);
  });
}

template <class I>
size_t packed_ffn_bytes(const SparseFfnCall& ffn) {
  return with_bits(ffn.quantization.bits, [&](auto bits) { return PackedFfn<I, bits>::bytes(ffn); });
}

template <class I>
void pack_ffn(const SparseFfnCall& ffn, void* packed, const ParallelFor& parallel) {
  with_bits(ffn.quantization.bits, [&](auto bits) { PackedFfn<I, bits>::pack(ffn, packed, parallel); });
}

}  // namespace clada

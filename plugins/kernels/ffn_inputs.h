// The inputs of the feed-forward ops by what they are for.
#pragma once
#include <cstddef>
#include <cstdint>

#include "op_table.h"

namespace clada {

// Where an op's inputs are that the two ops name differently; kNone for what an op lacks.
constexpr size_t kNone = SIZE_MAX;
template <class Table>
struct FfnInputs;
template <>
struct FfnInputs<ops::SparseGatedFFN> {
  using In = ops::SparseGatedFFN::In;
  static constexpr size_t w_in = In::w_gate, w_up = In::w_up, w_out = In::w_down, b_in = kNone, b_out = kNone;
};
template <>
struct FfnInputs<ops::SparseFFN> {
  using In = ops::SparseFFN::In;
  static constexpr size_t w_in = In::w_in, w_up = kNone, w_out = In::w_out, b_in = In::b_in, b_out = In::b_out;
};

}  // namespace clada

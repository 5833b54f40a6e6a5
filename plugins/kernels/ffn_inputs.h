// The inputs of the feed-forward ops by purpose.
#pragma once
#include <cstddef>
#include <cstdint>

#include "op_inputs.h"

namespace clada {

// Where an op's inputs are that the ops name differently; kNone for what an op lacks.
constexpr size_t kNone = SIZE_MAX;
template <class Table>
struct FfnInputs;
template <>
struct FfnInputs<ops::SparseGatedFFN> {
  using In = ops::SparseGatedFFN::In;
  static constexpr size_t w_in = In::w_gate, w_up = In::w_up, w_out = In::w_down, b_in = kNone, b_out = kNone;
  static constexpr size_t s_in = kNone, s_up = kNone, s_out = kNone;
};
template <>
struct FfnInputs<ops::SparseFFN> {
  using In = ops::SparseFFN::In;
  static constexpr size_t w_in = In::w_in, w_up = kNone, w_out = In::w_out, b_in = In::b_in, b_out = In::b_out;
  static constexpr size_t s_in = kNone, s_up = kNone, s_out = kNone;
};
template <>
struct FfnInputs<ops::QuantizedSparseGatedFFN> {
  using In = ops::QuantizedSparseGatedFFN::In;
  static constexpr size_t w_in = In::w_gate, w_up = In::w_up, w_out = In::w_down, b_in = kNone, b_out = kNone;
  static constexpr size_t s_in = In::s_gate, s_up = In::s_up, s_out = In::s_down;
};
template <>
struct FfnInputs<ops::QuantizedSparseFFN> {
  using In = ops::QuantizedSparseFFN::In;
  static constexpr size_t w_in = In::w_in, w_up = kNone, w_out = In::w_out, b_in = In::b_in, b_out = In::b_out;
  static constexpr size_t s_in = In::s_in, s_up = kNone, s_out = In::s_out;
};

}  // namespace clada

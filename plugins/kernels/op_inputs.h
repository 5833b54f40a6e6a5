// Requirements on the inputs of any op.
#pragma once
#include <type_traits>

#include "op_table.h"

namespace clada {

// Whether an op's weights are quantized: its attributes say how.
template <class Table, class = void>
constexpr bool is_quantized = false;
template <class Table>
constexpr bool is_quantized<Table, std::void_t<decltype(Table::Attr::bits)>> = true;

// Where an op's input is: a tensor of no elements may lie nowhere, but null says that the op lacks the input.
inline const void* input_data(const void* data) {
  static const char kNothing = 0;
  return data ? data : &kNothing;
}

}  // namespace clada

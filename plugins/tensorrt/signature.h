// Inputs and outputs of an op, from the op table, in a form that code for any op can read.
#pragma once
#include <cstddef>

#include "op_table.h"

namespace clada::trt {

template <class Spec>
struct Specs {
  const Spec* first;
  size_t count;

  const Spec* begin() const { return first; }
  const Spec* end() const { return first + count; }
  size_t size() const { return count; }
  const Spec& operator[](size_t i) const { return first[i]; }
};

struct Signature {
  const char* op;
  Specs<TensorSpec> inputs, outputs;
  Specs<AttributeSpec> attributes;
};

// Table is the op's entry in the op table.
template <class Table>
inline constexpr Signature kSignature = {Table::name,
                                         {Table::In::specs, Table::In::count},
                                         {Table::Out::specs, Table::Out::count},
                                         {Table::Attr::specs, Table::Attr::count}};

}  // namespace clada::trt

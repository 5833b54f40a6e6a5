// Checks a node's inputs against the op's record.
#pragma once
#include <map>
#include <string_view>
#include <vector>

#include "op_table.h"
#include "ort.h"

namespace clada {

using Sizes = std::map<std::string_view, int64_t>;

std::vector<std::string_view> axes_of(const TensorSpec& spec);

// The size of every axis by name; throws Ort::Exception that names the first input which does not fit, or is too small
// or missing.
Sizes check_shapes(const char* op, const TensorSpec* specs, size_t count, const Ort::KernelContext& context);

// The shape of an output.
std::vector<int64_t> output_shape(const TensorSpec& spec, const Sizes& sizes);

}  // namespace clada

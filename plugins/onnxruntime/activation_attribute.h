// The activation that a node asks for.
#pragma once
#include <algorithm>
#include <iterator>
#include <string>

#include "op_table.h"
#include "ort.h"

namespace clada {

// Throws Ort::Exception where it is not known.
inline Activation activation_of(const Ort::ConstKernelInfo& info, const char* op) {
  const std::string name = info.GetAttribute<std::string>("activation");
  const auto known = std::find(std::begin(kActivations), std::end(kActivations), name);
  if (known == std::end(kActivations)) {
    throw Ort::Exception(std::string(op) + ": activation '" + name + "' is not known", ORT_INVALID_ARGUMENT);
  }
  return static_cast<Activation>(known - std::begin(kActivations));
}

}  // namespace clada

// Products of matrices for calls of many tokens.
#pragma once
#include <memory>

#include "cublas_products.h"

namespace clada::trt {

// The products of one execution context, on the device that is current. Made on first use and shared by all plugins of
// the context: a handle of cuBLAS holds megabytes of the device, and two streams must not share one. Throws
// std::runtime_error where they cannot be had.
std::shared_ptr<cuda::CublasProducts> matrix_products(const void* context);

}  // namespace clada::trt

// Products of matrices for calls of many tokens.
#pragma once
#include <map>
#include <mutex>

#include "cublas_products.h"
#include "launch.h"
#include "launchers.h"

namespace clada::cuda {

// cuBLAS on the current device, made when a call of many tokens first needs it and never freed: one for all nodes,
// since each takes memory of its own. Throws std::runtime_error where there is none.
inline CublasProducts& cublas() {
  static std::mutex mutex;
  static auto& devices = *new std::map<int, CublasProducts>();
  int device = 0;
  check("cuBLAS", cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  return devices[device];
}

// Launches a call of an op that multiplies matrices where there are many tokens.
template <class Call>
void launch_with_products(const char* op, cudaError_t (*launcher)(const Call&, void*, const Products*, cudaStream_t),
                          const Call& call, const Launch& launch) {
  if (call.batch * call.sequence <= kRowwiseTokens) {
    check(op, launcher(call, launch.workspace, nullptr, launch.stream));
    return;
  }
  const Products products = cublas().products();
  check(op, launcher(call, launch.workspace, &products, launch.stream), cublas().error());
}

}  // namespace clada::cuda

// Products of matrices by cuBLAS, which is loaded on first use: nothing links to it, and a machine without it can still
// run the calls that need no products.
#pragma once
#include <mutex>
#include <string>

#include "launchers.h"

namespace clada::cuda {

// For the device that is current when it is made, and calls from any thread, one at a time.
class CublasProducts {
 public:
  // Throws std::runtime_error, in words, where there is no cuBLAS or it cannot start.
  CublasProducts();
  ~CublasProducts();
  CublasProducts(const CublasProducts&) = delete;
  CublasProducts& operator=(const CublasProducts&) = delete;

  // For the launchers, as long as this lives.
  Products products();

  // Why the last product that failed did.
  std::string error();

 private:
  cudaError_t multiply(const Product&, cudaStream_t);

  struct Functions;
  Functions* functions;
  void* handle = nullptr;
  std::mutex mutex;
  std::string last_error;
};

}  // namespace clada::cuda

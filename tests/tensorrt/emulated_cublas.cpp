// In the place of cuBLAS and its device, the emulation's products of matrices.
#include "cublas_products.h"

extern "C" {

const clada::cuda::Products* cuda_emulation_products();

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

}  // extern "C"

namespace clada::cuda {

struct CublasProducts::Functions {};

CublasProducts::CublasProducts() : functions(nullptr) {}
CublasProducts::~CublasProducts() = default;
Products CublasProducts::products() { return *cuda_emulation_products(); }
std::string CublasProducts::error() { return last_error; }

}  // namespace clada::cuda

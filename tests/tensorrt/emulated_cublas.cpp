// Products of the emulation, in the place of cuBLAS and its device.
#include "cublas_products.h"

static int alive = 0;

extern "C" {

const clada::cuda::Products* cuda_emulation_products();

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

// How many handles there are.
int cublas_alive() { return alive; }

}  // extern "C"

namespace clada::cuda {

struct CublasProducts::Functions {};

CublasProducts::CublasProducts() : functions(nullptr) { ++alive; }
CublasProducts::~CublasProducts() { --alive; }
Products CublasProducts::products() { return *cuda_emulation_products(); }
std::string CublasProducts::error() { return last_error; }

}  // namespace clada::cuda

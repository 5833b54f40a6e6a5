// The launchers that plugins and custom ops call, over cuda_stand_in.cpp, with host pointers; and no device.
#include <cstring>

#include "cublas_products.h"
#include "launchers.h"

extern "C" {

size_t clada_cuda_sparse_ffn_workspace(const clada::SparseFfnCall*);
int clada_cuda_sparse_ffn(const clada::SparseFfnCall*, void*, const void*, void*);
size_t clada_cuda_sparse_linear_workspace(const clada::SparseLinearCall*);
int clada_cuda_sparse_linear(const clada::SparseLinearCall*, void*, const void*, void*);
size_t clada_cuda_load_signal_workspace(const clada::LoadSignalCall*);
int clada_cuda_load_signal(const clada::LoadSignalCall*, void*, void*);

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation         ? "out of memory"
         : error == cudaErrorNoKernelImageForDevice ? "no kernel image is available for execution on the device"
                                                    : "unknown error";
}

}  // extern "C"

namespace clada::cuda {

size_t sparse_ffn_workspace(const SparseFfnCall& call) { return clada_cuda_sparse_ffn_workspace(&call); }

cudaError_t sparse_ffn(const SparseFfnCall& call, void* workspace, const Products* products, cudaStream_t stream) {
  return static_cast<cudaError_t>(clada_cuda_sparse_ffn(&call, workspace, products, stream));
}

size_t sparse_linear_workspace(const SparseLinearCall& call) { return clada_cuda_sparse_linear_workspace(&call); }

cudaError_t sparse_linear(const SparseLinearCall& call, void* workspace, const Products* products,
                          cudaStream_t stream) {
  return static_cast<cudaError_t>(clada_cuda_sparse_linear(&call, workspace, products, stream));
}

size_t load_signal_workspace(const LoadSignalCall& call) { return clada_cuda_load_signal_workspace(&call); }

cudaError_t load_signal(const LoadSignalCall& call, void* workspace, cudaStream_t stream) {
  return static_cast<cudaError_t>(clada_cuda_load_signal(&call, workspace, stream));
}

CublasProducts::CublasProducts() : functions(nullptr) {}
CublasProducts::~CublasProducts() = default;
Products CublasProducts::products() { return {}; }
std::string CublasProducts::error() { return last_error; }

}  // namespace clada::cuda

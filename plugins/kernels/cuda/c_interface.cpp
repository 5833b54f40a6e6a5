// The launchers as C functions, for callers without a C++ compiler: tests and measurements through ctypes.
//
// Pointers are device pointers but for the calls and the products themselves. Results are cudaError_t, 0 for success.
#include "launchers.h"

extern "C" {

size_t clada_cuda_sparse_ffn_workspace(const clada::SparseFfnCall* call) {
  return clada::cuda::sparse_ffn_workspace(*call);
}

int clada_cuda_sparse_ffn(const clada::SparseFfnCall* call, void* workspace, const clada::cuda::Products* products,
                          cudaStream_t stream) {
  return clada::cuda::sparse_ffn(*call, workspace, products, stream);
}

size_t clada_cuda_sparse_linear_workspace(const clada::SparseLinearCall* call) {
  return clada::cuda::sparse_linear_workspace(*call);
}

int clada_cuda_sparse_linear(const clada::SparseLinearCall* call, void* workspace,
                             const clada::cuda::Products* products, cudaStream_t stream) {
  return clada::cuda::sparse_linear(*call, workspace, products, stream);
}

size_t clada_cuda_load_signal_workspace(const clada::LoadSignalCall* call) {
  return clada::cuda::load_signal_workspace(*call);
}

int clada_cuda_load_signal(const clada::LoadSignalCall* call, void* workspace, cudaStream_t stream) {
  return clada::cuda::load_signal(*call, workspace, stream);
}

// Text of an error.
const char* clada_cuda_error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

// Up to this many tokens a call needs no products.
int64_t clada_cuda_rowwise_tokens() { return clada::cuda::kRowwiseTokens; }

}  // extern "C"

#include "cublas_products.h"

#include <dlfcn.h>
#include <library_types.h>

#include <limits>
#include <memory>
#include <stdexcept>

namespace clada::cuda {
namespace {

// Constants of cuBLAS's headers, which need not be installed to compile this; the same in releases 12 and 13.
constexpr int kSuccess = 0;
constexpr int kAsItIs = 0, kTransposed = 1;  // cublasOperation_t
constexpr int kComputeFloat32 = 68;          // cublasComputeType_t
constexpr int kChooseAlgorithm = -1;         // cublasGemmAlgo_t
constexpr int kReduceInFloat32 = 16;         // cublasMath_t: parts of a sum are not added in 16 bits
constexpr const char* kLibraries[] = {"libcublas.so.13", "libcublas.so.12"};

cudaDataType cuda_type(Element element) {
  return element == Element::kFloat32 ? CUDA_R_32F : element == Element::kFloat16 ? CUDA_R_16F : CUDA_R_16BF;
}

void* open_library(std::string& name) {
  std::string reason;
  for (const char* candidate : kLibraries) {
    if (void* library = dlopen(candidate, RTLD_NOW | RTLD_LOCAL)) {
      name = candidate;
      return library;
    }
    reason = reason.empty() ? dlerror() : reason;
  }
  throw std::runtime_error("cuBLAS, which calls of more than " + std::to_string(kRowwiseTokens) +
                           " tokens need, could not be loaded (" + reason +
                           "); install CUDA's libraries or add their folder to LD_LIBRARY_PATH");
}

template <class F>
void find(void* library, const std::string& name, const char* symbol, F& function) {
  function = reinterpret_cast<F>(dlsym(library, symbol));
  if (!function) throw std::runtime_error(name + " has no " + symbol + "; CUDA 12 or 13 is needed");
}

}  // namespace

struct CublasProducts::Functions {
  std::string name;
  void* library = open_library(name);
  int (*create)(void** handle);
  int (*destroy)(void* handle);
  int (*set_stream)(void* handle, cudaStream_t);
  int (*set_math_mode)(void* handle, int mode);
  int (*gemm)(void* handle, int operation_a, int operation_b, int m, int n, int k, const void* alpha, const void* a,
              cudaDataType type_a, int lda, const void* b, cudaDataType type_b, int ldb, const void* beta, void* c,
              cudaDataType type_c, int ldc, int compute, int algorithm);
  const char* (*status_string)(int status);

  // The library stays loaded: CUDA's have threads and exit handlers of their own.
  Functions() {
    find(library, name, "cublasCreate_v2", create);
    find(library, name, "cublasDestroy_v2", destroy);
    find(library, name, "cublasSetStream_v2", set_stream);
    find(library, name, "cublasSetMathMode", set_math_mode);
    find(library, name, "cublasGemmEx", gemm);
    find(library, name, "cublasGetStatusString", status_string);
  }

  std::string failure(const char* what, int status) const {
    return name + " could not " + what + " (" + status_string(status) + ")";
  }
};

CublasProducts::CublasProducts() {
  auto found = std::make_unique<Functions>();
  int status = found->create(&handle);
  if (status != kSuccess) throw std::runtime_error(found->failure("start on this device", status));
  status = found->set_math_mode(handle, kReduceInFloat32);
  if (status != kSuccess) {
    found->destroy(handle);
    throw std::runtime_error(found->failure("be set to add in float32", status));
  }
  functions = found.release();
}

CublasProducts::~CublasProducts() {
  functions->destroy(handle);
  delete functions;
}

Products CublasProducts::products() {
  return {this, [](void* self, const Product& product, cudaStream_t stream) {
            return static_cast<CublasProducts*>(self)->multiply(product, stream);
          }};
}

std::string CublasProducts::error() {
  const std::lock_guard<std::mutex> lock(mutex);
  return last_error;
}

cudaError_t CublasProducts::multiply(const Product& product, cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(mutex);  // the stream belongs to the handle
  const int64_t most = std::numeric_limits<int>::max();
  if (product.m > most || product.n > most || product.k > most || product.c_row > most) {
    last_error = "a product of " + std::to_string(product.m) + " x " + std::to_string(product.k) + " x " +
                 std::to_string(product.n) + " is too large for " + functions->name;
    return cudaErrorInvalidValue;
  }
  const int m = static_cast<int>(product.m), n = static_cast<int>(product.n), k = static_cast<int>(product.k);
  const int c_row = static_cast<int>(product.c_row);
  const cudaDataType type = cuda_type(product.element);
  const float one = 1, zero = 0;
  int status = functions->set_stream(handle, stream);
  // cuBLAS counts along columns, and so sees every matrix transposed: c^T = b^T . a^T.
  if (status == kSuccess) {
    status = functions->gemm(handle, product.transposed_b ? kTransposed : kAsItIs, kAsItIs, n, m, k, &one, product.b,
                             type, product.transposed_b ? k : n, product.a, type, k, &zero, product.c, type, c_row,
                             kComputeFloat32, kChooseAlgorithm);
  }
  if (status == kSuccess) return cudaSuccess;
  last_error = functions->failure("multiply matrices", status);
  return cudaErrorUnknown;
}

}  // namespace clada::cuda

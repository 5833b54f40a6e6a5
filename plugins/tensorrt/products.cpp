#include "products.h"

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

namespace clada::trt {

std::shared_ptr<cuda::CublasProducts> matrix_products(const void* context) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) throw std::runtime_error(std::string("there is no device: ") + cudaGetErrorString(error));
  static std::mutex mutex;
  // Never freed: a plugin may outlive everything of ours.
  static auto& all = *new std::map<std::pair<const void*, int>, std::weak_ptr<cuda::CublasProducts>>();
  const std::lock_guard<std::mutex> lock(mutex);
  std::weak_ptr<cuda::CublasProducts>& known = all[{context, device}];
  std::shared_ptr<cuda::CublasProducts> products = known.lock();
  if (!products) known = products = std::make_shared<cuda::CublasProducts>();
  return products;
}

}  // namespace clada::trt

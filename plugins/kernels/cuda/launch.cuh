// Launch of a kernel. Included as <launch.cuh>, so that tests may put a host's way in its place.
#pragma once
#include <cuda_runtime.h>

#include <limits>

namespace clada::cuda {

// Starts `grid` blocks of `block` threads, of which a card takes from 1 to 2^31 - 1. Arguments are converted to the
// kernel's parameters.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t grid, int block, cudaStream_t stream,
                   const Arguments&... arguments) {
  if (grid < 1 || grid > std::numeric_limits<int>::max()) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid));
  config.blockDim = dim3(static_cast<unsigned>(block));
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

}  // namespace clada::cuda

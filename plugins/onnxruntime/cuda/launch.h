// ONNX Runtime's stream and arena for the CUDA kernels, and the return of their errors.
#pragma once
#include <cuda_runtime_api.h>

#include <string>

#include "ort.h"

namespace clada::cuda {

// Nothing can be set of the CUDA kernels.
struct NoSettings {};

inline constexpr const char* kCudaProvider = "CUDAExecutionProvider";

// Throws Ort::Exception for an error, with a library's own words for it where there are some.
inline void check(const char* op, cudaError_t error, const std::string& words = "") {
  if (error == cudaSuccess) return;
  throw Ort::Exception(std::string(op) + ": " + cudaGetErrorString(error) + (words.empty() ? "" : ": ") + words,
                       error == cudaErrorInvalidValue ? ORT_INVALID_ARGUMENT : ORT_EP_FAIL);
}

// The stream that the node's kernels are launched on, and memory for the time of the call.
//
// The memory is of the arena, marked with the stream: it is given back when the call has been launched, not when it has
// run, and what is launched on another stream must not get it before. Warm-up runs fill the arena, so that nothing is
// allocated while a graph is captured.
struct Launch {
  cudaStream_t stream = nullptr;
  void* workspace = nullptr;

  Launch(OrtKernelContext* context, size_t workspace_bytes) {
    const OrtApi& api = Ort::GetApi();
    void* given = nullptr;
    Ort::ThrowOnError(api.KernelContext_GetGPUComputeStream(context, &given));
    stream = static_cast<cudaStream_t>(given);
    if (workspace_bytes == 0) return;
    // The device is that of the node's inputs.
    const Ort::ConstMemoryInfo device = Ort::KernelContext(context).GetInput(0).GetTensorMemoryInfo();
    Ort::ThrowOnError(api.KernelContext_GetAllocator(context, device, &allocator_));
    Ort::Status status(api.KernelContext_GetScratchBuffer(context, device, workspace_bytes, &workspace));
    if (!status.IsOK()) release();
    Ort::ThrowOnError(status);
  }
  ~Launch() { release(); }
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

 private:
  void release() {
    if (workspace) allocator_->Free(allocator_, workspace);
    if (allocator_) Ort::GetApi().ReleaseAllocator(allocator_);
    workspace = nullptr;
    allocator_ = nullptr;
  }

  OrtAllocator* allocator_ = nullptr;
};

}  // namespace clada::cuda

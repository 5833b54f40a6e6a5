// ONNX Runtime's threads and arena for the CPU kernels.
#pragma once
#include <string>

#include "kernels.h"
#include "ort.h"

namespace clada {

inline ParallelFor thread_pool(OrtKernelContext* context) {
  return {context, [](void* pool, size_t count, void (*task)(void*, size_t), void* data) {
            Ort::KernelContext(static_cast<OrtKernelContext*>(pool)).ParallelFor(task, count, count, data);
          }};
}

// Memory for the time of a call, from ONNX Runtime's arena.
struct Scratch {
  OrtAllocator* allocator = nullptr;
  void* data = nullptr;

  Scratch(OrtKernelContext* context, size_t bytes) {
    const Ort::MemoryInfo cpu = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    Ort::ThrowOnError(Ort::GetApi().KernelContext_GetAllocator(context, cpu, &allocator));
    data = allocator->Alloc(allocator, bytes);
    if (data) return;
    Ort::GetApi().ReleaseAllocator(allocator);
    throw Ort::Exception("there is no memory for " + std::to_string(bytes) + " bytes of workspace", ORT_FAIL);
  }
  ~Scratch() {
    allocator->Free(allocator, data);
    Ort::GetApi().ReleaseAllocator(allocator);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

}  // namespace clada

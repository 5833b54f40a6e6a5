// Threads for what is done when a model is loaded, where ONNX Runtime lends none of its own.
#pragma once
#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "kernels.h"

namespace clada {

// Makes the threads for each call, one a processor and no more than a memory keeps busy.
inline ParallelFor own_threads() {
  return {nullptr, [](void*, size_t count, void (*task)(void*, size_t), void* data) {
            std::atomic<size_t> next{0};
            const auto work = [&] {
              for (size_t i = next++; i < count; i = next++) task(data, i);
            };
            std::vector<std::thread> threads;
            const unsigned most = std::min(8u, std::thread::hardware_concurrency());
            for (unsigned i = 1; i < most; ++i) threads.emplace_back(work);
            work();
            for (std::thread& thread : threads) thread.join();
          }};
}

}  // namespace clada

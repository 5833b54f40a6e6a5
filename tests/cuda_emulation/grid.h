// Runs a kernel: blocks one after another, the threads of one as fibers that run until they have to wait.
#pragma once
#include <driver_types.h>
#include <vector_types.h>

#include <cstdint>
#include <functional>
#include <string>

// Of the running thread.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace cuda_emulation {

constexpr unsigned kWarp = 32;

// Where in the kernel's source a thread waits.
struct Site {
  const char* function;
  const char* file;
  int line;
};

inline Site here(const char* function = __builtin_FUNCTION(), const char* file = __builtin_FILE(),
                 int line = __builtin_LINE()) {
  return {function, file, line};
}

// A meeting of the lanes in `mask`: the value that a lane brings, and the lane whose value it asks for.
struct Meeting {
  const char* name;
  unsigned mask;
  uint64_t value;
  unsigned source;
  bool orders_memory;  // of the lanes among each other
  Site site;
};

struct Met {
  uint64_t value;   // of the lane that was asked for
  unsigned ballot;  // a bit for each lane whose value is not 0
};

// Functions for a running thread.
unsigned this_lane();
void wait_for_block(Site);
Met meet(const Meeting&);
[[noreturn]] void fail(const std::string& what);

// One element of shared memory: who wrote it last, and who has read it since; times as in grid.cpp.
struct Word {
  uint64_t write_period = 0, read_period = 0;
  unsigned writer = 0, write_tick = 0;
  unsigned reading_warps = 0;  // a bit for each
  unsigned read_tick[kWarp] = {};
};

// The running thread reads or writes element `index`, from the code at `place`; fails where another thread's access to
// it has not been ordered before.
void read_word(Word&, size_t index, const void* place);
void write_word(Word&, size_t index, const void* place);

// The function and line of code, where the address sanitizer is there to tell.
std::string describe(const void* place);

// Calls `kernel` for every thread of a grid; its address, `code`, names it. After a failure the rest is left undone.
cudaError_t run_grid(dim3 grid, dim3 block, const void* code, const std::function<void()>& kernel);

// In which order blocks and threads run: 0 as they are numbered, 1 the other way round, else shuffled by this seed.
inline unsigned order_seed = 0;
// Error of the last launch that failed.
inline std::string report;
// Every launch so far: kernels with their grids and blocks, a line each.
inline std::string launches;

}  // namespace cuda_emulation

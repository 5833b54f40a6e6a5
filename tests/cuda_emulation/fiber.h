// Fibers: flows of control with stacks of their own, one of which runs at a time.
#pragma once
#include <cstddef>

namespace cuda_emulation {

struct Fiber {
  void* resume[5] = {};  // where __builtin_longjmp goes on
  char* stack = nullptr;
  size_t stack_size = 0;
  void* shadow_stack = nullptr;  // the address sanitizer's
  bool started = false;
};

// Leaves `from`, whose code is running, for `to`, which goes on where it left, or with entry() at first.
void switch_fiber(Fiber& from, Fiber& to, void (*entry)());

// Gives a fiber a stack, or makes one that was left for good ready to begin again.
void reset_fiber(Fiber& fiber);

}  // namespace cuda_emulation

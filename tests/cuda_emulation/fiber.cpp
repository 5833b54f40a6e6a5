#include "fiber.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdlib>

// Only there under the address sanitizer, which has to know which stack is in use.
extern "C" {
[[gnu::weak]] void __sanitizer_start_switch_fiber(void** shadow_stack, const void* stack, size_t size);
[[gnu::weak]] void __sanitizer_finish_switch_fiber(void* shadow_stack, const void** old_stack, size_t* old_size);
[[gnu::weak]] void __asan_unpoison_memory_region(const volatile void* address, size_t size);
}

namespace cuda_emulation {
namespace {

constexpr size_t kStackSize = 128 << 10;

Fiber* left;  // that the running one was entered from
void (*begin)() = nullptr;

void arrive(Fiber& fiber) {
  if (!__sanitizer_finish_switch_fiber) return;
  const void* stack;
  size_t size;
  __sanitizer_finish_switch_fiber(fiber.shadow_stack, &stack, &size);
  // The stack that the process came with is known only now.
  left->stack = static_cast<char*>(const_cast<void*>(stack));
  left->stack_size = size;
}

void start() {
  Fiber fresh;
  arrive(fresh);
  begin();
  std::abort();  // an entry never returns
}

// Jumping, unlike setcontext, asks nothing of the system; in a function of its own, as GCC wants it.
[[gnu::noinline, gnu::no_sanitize_address]] void jump(Fiber& to) { __builtin_longjmp(to.resume, 1); }

[[gnu::noinline, gnu::no_sanitize_address]] void go(Fiber& to) {
  if (to.started) jump(to);
  to.started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = to.stack;
  context.uc_stack.ss_size = to.stack_size;
  context.uc_link = nullptr;
  makecontext(&context, start, 0);
  setcontext(&context);
}

}  // namespace

[[gnu::noinline]] void switch_fiber(Fiber& from, Fiber& to, void (*entry)()) {
  left = &from;
  begin = entry;
  from.started = true;
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&from.shadow_stack, to.stack, to.stack_size);
  if (__builtin_setjmp(from.resume) == 0) go(to);
  arrive(from);
}

void reset_fiber(Fiber& fiber) {
  if (!fiber.stack) {
    fiber.stack_size = kStackSize;
    void* memory = mmap(nullptr, kStackSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    fiber.stack = static_cast<char*>(memory);
  }
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(fiber.stack, fiber.stack_size);
  fiber.started = false;
}

}  // namespace cuda_emulation

// Time, for the order of two accesses to shared memory: a block's barriers divide it into periods, numbered on and on
// over all blocks. Within one, lanes of a warp are ordered by __syncwarp alone (shuffles and votes are no memory
// barriers): each lane counts its own ticks and knows up to which tick of every other lane it has been told.
#include "grid.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#include "fiber.h"

// Only there under the address sanitizer.
extern "C" [[gnu::weak]] void __sanitizer_symbolize_pc(const void* pc, const char* format, char* text, size_t size);

namespace cuda_emulation {
namespace {

constexpr unsigned kMaxThreads = 1024;
enum class State { kReady, kAtBarrier, kMeeting, kExited };

struct Thread {
  Fiber fiber;
  uint3 index;
  State state;
  Site site;  // of the barrier or meeting it waits in
  Meeting meeting;
  Met met;
  unsigned known_tick[kWarp];  // by lane
};

Thread threads[kMaxThreads];
unsigned thread_count;
Thread* running;
Fiber host;
const std::function<void()>* kernel_body;
const void* kernel_code;
uint64_t period = 0, block_period = 0;
unsigned missing_lane = 0;  // the last that was found not to have come: the first to be looked for again
bool failed;

unsigned number(const Thread& thread) { return static_cast<unsigned>(&thread - threads); }
unsigned lane(const Thread& thread) { return number(thread) % kWarp; }
unsigned warp(const Thread& thread) { return number(thread) / kWarp; }
bool in(unsigned mask, unsigned lane) { return mask >> lane & 1; }

std::string text(uint3 at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}
std::string text(dim3 at) { return text(uint3{at.x, at.y, at.z}); }
std::string text(Site site) {
  return std::string(site.function) + " (" + site.file + ":" + std::to_string(site.line) + ")";
}
std::string text(const Meeting& meeting) {
  char mask[9];
  std::snprintf(mask, sizeof mask, "%x", meeting.mask);
  return std::string(meeting.name) + " with mask " + mask + " in " + text(meeting.site);
}

void set_failure(const Thread& thread, const std::string& what) {
  failed = true;
  report = describe(kernel_code) + ": block " + text(blockIdx) + ", thread " + text(thread.index) + " " + what;
}

void yield() { switch_fiber(running->fiber, host, nullptr); }

void run_thread() {
  for (;;) {
    (*kernel_body)();
    running->state = State::kExited;
    yield();
  }
}

// A kernel is of one source file, in which equal literals are one.
bool same(Site a, Site b) { return a.line == b.line && a.file == b.file; }

bool meets(const Thread& other, const Meeting& meeting) {
  return other.state == State::kMeeting && other.meeting.name == meeting.name && other.meeting.mask == meeting.mask &&
         same(other.meeting.site, meeting.site);
}

std::string doing(const Thread& thread) {
  const std::string name = "thread " + text(thread.index);
  if (thread.state == State::kExited) return name + " has returned";
  return name + " is in " +
         (thread.state == State::kMeeting ? text(thread.meeting) : "__syncthreads in " + text(thread.site));
}

// Nobody can go on: all wait at one barrier and pass it, or the block fails.
void pass_barrier() {
  for (Thread* thread = threads; thread < threads + thread_count; ++thread) {
    if (thread->state != State::kMeeting) continue;
    Thread* first = threads + warp(*thread) * kWarp;
    for (unsigned i = 0; i < kWarp; ++i) {
      if (!in(thread->meeting.mask, i)) continue;
      const std::string stuck = "waits in " + text(thread->meeting) + ", but ";
      if (first + i >= threads + thread_count)
        return set_failure(*thread, stuck + "the block has no lane " + std::to_string(i) + " in this warp");
      if (!meets(first[i], thread->meeting)) return set_failure(*thread, stuck + doing(first[i]));
    }
  }
  const auto waits = [](const Thread& thread) { return thread.state == State::kAtBarrier; };
  Thread& first = *std::find_if(threads, threads + thread_count, waits);
  for (Thread* thread = threads; thread < threads + thread_count; ++thread) {
    if (!waits(*thread) || !same(thread->site, first.site)) {
      return set_failure(first, "waits in __syncthreads in " + text(first.site) + ", but " + doing(*thread));
    }
  }
  for (Thread* thread = threads; thread < threads + thread_count; ++thread) thread->state = State::kReady;
  ++period;
}

void run_block(const std::vector<unsigned>& order) {
  block_period = ++period;
  for (Thread* thread = threads; thread < threads + thread_count; ++thread) {
    thread->state = State::kReady;
    std::fill_n(thread->known_tick, kWarp, 0);
    thread->known_tick[lane(*thread)] = 1;
  }
  for (;;) {
    bool ran = false, left = false;
    for (const unsigned i : order) {
      left |= threads[i].state != State::kExited;
      if (threads[i].state != State::kReady) continue;
      ran = true;
      running = threads + i;
      threadIdx = running->index;
      switch_fiber(host, running->fiber, run_thread);
      if (failed) return;
    }
    if (!left) return;
    if (!ran) pass_barrier();
    if (failed) return;
  }
}

std::vector<unsigned> chosen_order(unsigned count) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0);
  if (order_seed == 1) std::reverse(order.begin(), order.end());
  if (order_seed > 1) std::shuffle(order.begin(), order.end(), std::mt19937(order_seed));
  return order;
}

// The one who did it before was another thread, and no barrier has come between.
bool unordered(unsigned other, unsigned tick) {
  if (other == number(*running)) return false;
  return other / kWarp != warp(*running) || running->known_tick[other % kWarp] < tick;
}

[[noreturn]] void race(const char* does, size_t index, const std::string& other, const void* place) {
  fail(std::string(does) + " shared element " + std::to_string(index) + ", which " + other +
       " with no barrier between, in " + describe(place));
}

void check_writer(const Word& word, const char* does, size_t index, const void* place) {
  if (word.write_period == period && unordered(word.writer, word.write_tick)) {
    race(does, index, "thread " + text(threads[word.writer].index) + " wrote", place);
  }
}

}  // namespace

std::string describe(const void* place) {
  char text[512] = "a kernel";
  if (__sanitizer_symbolize_pc) __sanitizer_symbolize_pc(place, "%f (%s:%l)", text, sizeof text);
  return text;
}

void fail(const std::string& what) {
  set_failure(*running, what);
  yield();
  std::abort();  // nobody comes back to it
}

unsigned this_lane() { return lane(*running); }

void wait_for_block(Site site) {
  running->state = State::kAtBarrier;
  running->site = site;
  yield();
}

Met meet(const Meeting& meeting) {
  running->meeting = meeting;
  if (!in(meeting.mask, lane(*running))) fail("is not in its own mask, of " + text(meeting));
  if (!in(meeting.mask, meeting.source)) {
    fail("asks for lane " + std::to_string(meeting.source) + ", which is not in the mask, in " + text(meeting));
  }
  running->state = State::kMeeting;
  Thread* first = threads + warp(*running) * kWarp;
  for (unsigned n = 0; n < kWarp; ++n) {
    const unsigned i = (missing_lane + n) % kWarp;
    if (!in(meeting.mask, i)) continue;
    if (first + i >= threads + thread_count || !meets(first[i], meeting)) {
      missing_lane = i;
      yield();
      return running->met;
    }
  }
  // The last to come hands out what was brought.
  unsigned ballot = 0, known_tick[kWarp] = {};
  for (unsigned i = 0; i < kWarp; ++i) {
    if (!in(meeting.mask, i)) continue;
    ballot |= static_cast<unsigned>(first[i].meeting.value != 0) << i;
    if (!meeting.orders_memory) continue;
    for (unsigned j = 0; j < kWarp; ++j) known_tick[j] = std::max(known_tick[j], first[i].known_tick[j]);
  }
  for (unsigned i = 0; i < kWarp; ++i) {
    if (!in(meeting.mask, i)) continue;
    first[i].met = {first[first[i].meeting.source].meeting.value, ballot};
    first[i].state = State::kReady;
    if (!meeting.orders_memory) continue;
    std::copy_n(known_tick, kWarp, first[i].known_tick);
    ++first[i].known_tick[i];
  }
  return running->met;
}

void read_word(Word& word, size_t index, const void* place) {
  if (word.write_period < block_period) {
    fail("reads shared element " + std::to_string(index) + ", which nobody has written, in " + describe(place));
  }
  check_writer(word, "reads", index, place);
  if (word.read_period != period) {
    word.read_period = period;
    word.reading_warps = 0;
    std::fill_n(word.read_tick, kWarp, 0);
  }
  word.reading_warps |= 1u << warp(*running);
  word.read_tick[lane(*running)] = running->known_tick[lane(*running)];
}

void write_word(Word& word, size_t index, const void* place) {
  check_writer(word, "writes", index, place);
  if (word.read_period == period) {
    for (unsigned w = 0; w < kWarp; ++w) {
      if (w != warp(*running) && in(word.reading_warps, w)) {
        race("writes", index, "warp " + std::to_string(w) + " read", place);
      }
    }
    // All readers are of this warp, so the ticks are of its lanes.
    for (unsigned i = 0; i < kWarp; ++i) {
      const unsigned other = warp(*running) * kWarp + i;
      if (unordered(other, word.read_tick[i])) {
        race("writes", index, "thread " + text(threads[other].index) + " read", place);
      }
    }
  }
  word.write_period = period;
  word.writer = number(*running);
  word.write_tick = running->known_tick[lane(*running)];
  word.read_period = 0;
}

cudaError_t run_grid(dim3 grid, dim3 block, const void* code, const std::function<void()>& kernel) {
  // The code after a return address is looked for: a function is the one before its second byte.
  const void* first = static_cast<const char*>(code) + 1;
  launches += describe(first) + "<<<" + text(grid) + ", " + text(block) + ">>>\n";
  thread_count = block.x * block.y * block.z;
  const unsigned blocks = grid.x * grid.y * grid.z;
  if (!thread_count || thread_count > kMaxThreads || !blocks || grid.y > 65535 || grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  failed = false;
  kernel_body = &kernel;
  kernel_code = first;
  blockDim = block;
  gridDim = grid;
  for (unsigned i = 0; i < thread_count; ++i) {
    if (!threads[i].fiber.stack) reset_fiber(threads[i].fiber);
    threads[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
  }
  const std::vector<unsigned> thread_order = chosen_order(thread_count);
  for (const unsigned i : chosen_order(blocks)) {
    blockIdx = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
    run_block(thread_order);
    if (failed) break;
  }
  if (!failed) return cudaSuccess;
  for (unsigned i = 0; i < thread_count; ++i) reset_fiber(threads[i].fiber);
  return cudaErrorLaunchFailure;
}

}  // namespace cuda_emulation

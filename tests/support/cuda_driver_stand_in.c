// A CUDA driver of one GPU whose memory is this process's: as much of it as runtime/models/cuda_driver.py calls.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_CONTEXT = 201, NO_STREAM = 400 };

static const size_t memory = 64 << 20;
static size_t taken = 0;
static char context, stream;
static _Thread_local void* current = 0;

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : SUCCESS; }

int cuDeviceGetCount(int* count) { return *count = 1, SUCCESS; }

int cuDeviceGet(int* device, int ordinal) { return *device = 3, ordinal ? INVALID_VALUE : SUCCESS; }

int cuDeviceGetName(char* name, int size, int device) {
  if (device != 3) return INVALID_VALUE;
  strncpy(name, "stand-in", size);
  return SUCCESS;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  if (device != 3 || (attribute != 75 && attribute != 76)) return INVALID_VALUE;
  const int capability = getenv("STAND_IN_IS_ADA") ? 89 : 90;
  return *value = attribute == 75 ? capability / 10 : capability % 10, SUCCESS;
}

int cuDevicePrimaryCtxRetain(void** made, int device) {
  return *made = &context, device == 3 ? SUCCESS : INVALID_VALUE;
}

int cuCtxSetCurrent(void* wanted) { return current = wanted, wanted == &context ? SUCCESS : NO_CONTEXT; }

int cuStreamCreate(void** made, unsigned flags) {
  if (current != &context || flags != 1) return INVALID_VALUE;
  return *made = &stream, SUCCESS;
}

int cuStreamSynchronize(void* waited) { return waited == &stream ? SUCCESS : NO_STREAM; }

int cuGetErrorName(int code, const char** name) {
  *name = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE" : 0;
  return *name ? SUCCESS : INVALID_VALUE;
}

int cuMemGetInfo_v2(size_t* free, size_t* total) { return *free = memory - taken, *total = memory, SUCCESS; }

// The size lies before the memory.
int cuMemAlloc_v2(uint64_t* address, size_t size) {
  if (current != &context || !size) return INVALID_VALUE;
  if (size > memory - taken) return OUT_OF_MEMORY;
  char* piece = aligned_alloc(256, 256 + (size + 255) / 256 * 256);
  *(size_t*)piece = size;
  memset(piece + 256, 0xaa, size);
  taken += size;
  return *address = (uint64_t)(piece + 256), SUCCESS;
}

int cuMemFree_v2(uint64_t address) {
  char* piece = (char*)address - 256;
  taken -= *(size_t*)piece;
  free(piece);
  return SUCCESS;
}

int cuMemsetD8Async(uint64_t address, unsigned char value, size_t size, void* on) {
  if (on != &stream) return NO_STREAM;
  return memset((void*)address, value, size), SUCCESS;
}

int cuMemcpyHtoDAsync_v2(uint64_t target, const void* source, size_t size, void* on) {
  if (on != &stream) return NO_STREAM;
  return memcpy((void*)target, source, size), SUCCESS;
}

int cuMemcpyDtoHAsync_v2(void* target, uint64_t source, size_t size, void* on) {
  if (on != &stream) return NO_STREAM;
  return memcpy(target, (void*)source, size), SUCCESS;
}

// The one copy that a graph holds, which is made when it is launched.
static struct {
  uint64_t target, source;
  size_t size;
} captured;
static int capturing = 0;

int cuMemcpyDtoDAsync_v2(uint64_t target, uint64_t source, size_t size, void* on) {
  if (on != &stream) return NO_STREAM;
  if (capturing) {
    captured.target = target, captured.source = source, captured.size = size;
    return SUCCESS;
  }
  return memcpy((void*)target, (void*)source, size), SUCCESS;
}

int cuStreamBeginCapture_v2(void* on, int mode) {
  if (on != &stream || mode != 1 || capturing) return INVALID_VALUE;
  return capturing = 1, SUCCESS;
}

int cuStreamEndCapture(void* on, void** graph) {
  if (on != &stream || !capturing) return INVALID_VALUE;
  return capturing = 0, *graph = &captured, SUCCESS;
}

int cuGraphInstantiateWithFlags(void** executable, void* graph, uint64_t flags) {
  if (graph != &captured || flags) return INVALID_VALUE;
  return *executable = &captured.size, SUCCESS;
}

int cuGraphDestroy(void* graph) { return graph == &captured ? SUCCESS : INVALID_VALUE; }

int cuGraphExecDestroy(void* executable) { return SUCCESS; }

int cuGraphLaunch(void* executable, void* on) {
  if (executable != &captured.size) return INVALID_VALUE;
  return cuMemcpyDtoDAsync_v2(captured.target, captured.source, captured.size, on);
}

// As CUDA_MEMCPY2D: both sides, in memory of the device.
struct side {
  size_t x, y;
  unsigned kind;
  const void* host;
  uint64_t device;
  void* array;
  size_t pitch;
};
struct copy {
  struct side source, target;
  size_t width, height;
};

int cuMemcpy2DAsync_v2(const struct copy* copy, void* on) {
  if (copy->source.kind != 2 || copy->target.kind != 2) return INVALID_VALUE;
  for (size_t row = 0; row < copy->height; ++row) {
    const uint64_t target = copy->target.device + row * copy->target.pitch;
    const int code = cuMemcpyDtoDAsync_v2(target, copy->source.device + row * copy->source.pitch, copy->width, on);
    if (code) return code;
  }
  return SUCCESS;
}

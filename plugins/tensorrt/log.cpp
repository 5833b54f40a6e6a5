#include "log.h"

#include <NvInferVersion.h>
#include <dlfcn.h>

#include <atomic>
#include <cstdio>

namespace clada::trt {

using nvinfer1::ILogger;
using nvinfer1::ILoggerFinder;
using GetLogger = ILogger* (*)();

static std::atomic<ILoggerFinder*> logger_finder{nullptr};
static std::atomic<GetLogger> global_logger{nullptr};
static std::atomic<bool> loggers_fit{false};

void set_logger_finder(ILoggerFinder* finder) { logger_finder = finder; }

void set_tensorrt(const void* code) {
  Dl_info found{};
  void* library = dladdr(code, &found) ? dlopen(found.dli_fname, RTLD_LAZY | RTLD_NOLOAD) : nullptr;
  if (!library) return;
  const auto major_release = reinterpret_cast<int32_t (*)()>(dlsym(library, "getInferLibMajorVersion"));
  global_logger = reinterpret_cast<GetLogger>(dlsym(library, "getLogger"));
  loggers_fit = major_release && major_release() == NV_TENSORRT_MAJOR;
  dlclose(library);
}

static ILogger* find_logger() {
  if (!loggers_fit) return nullptr;
  ILoggerFinder* finder = logger_finder;
  if (ILogger* logger = finder ? finder->findLogger() : nullptr) return logger;
  const GetLogger get_logger = global_logger;
  return get_logger ? get_logger() : nullptr;
}

void log_error(const std::string& message) noexcept {
  try {
    if (ILogger* logger = find_logger()) {
      logger->log(ILogger::Severity::kERROR, message.c_str());
      return;
    }
  } catch (...) {  // TensorRT's own code may throw; the message is worth more than its reason
  }
  std::fprintf(stderr, "clada: %s\n", message.c_str());
}

}  // namespace clada::trt

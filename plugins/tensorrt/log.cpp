#include "log.h"

#include <atomic>
#include <cstdio>

namespace clada::trt {

static std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

void set_logger_finder(nvinfer1::ILoggerFinder* finder) { logger_finder = finder; }

void log_error(const std::string& message) noexcept {
  try {
    nvinfer1::ILoggerFinder* finder = logger_finder;
    if (nvinfer1::ILogger* logger = finder ? finder->findLogger() : nullptr) {
      logger->log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
      return;
    }
  } catch (...) {  // TensorRT's finder may throw; the message is worth more than its reason
  }
  std::fprintf(stderr, "clada: %s\n", message.c_str());
}

}  // namespace clada::trt

// Errors on their way out of the library: through TensorRT's logger and as a return code, never as an exception.
#pragma once
#include <NvInferRuntime.h>

#include <exception>
#include <string>

namespace clada::trt {

// Where the logger of the engine or context at work is asked for; null for none. TensorRT gives one only to a library
// that came within an engine.
void set_logger_finder(nvinfer1::ILoggerFinder* finder);

// Which TensorRT loaded this library: the one that this code is of. Its own logger is asked for where there is no
// finder, and none of its loggers is called where it is another major release than was built with: loggers differ.
void set_tensorrt(const void* code);

// Writes one line to TensorRT's logger, or to stderr where TensorRT gives none.
void log_error(const std::string& message) noexcept;

// Runs f and returns what it returns; where f throws, logs why, after the op's name, and returns `failed`.
template <class Result, class F>
Result guarded(const char* op, Result failed, F f) noexcept {
  try {
    return f();
  } catch (const std::exception& error) {
    try {
      log_error(std::string(op) + ": " + error.what());
    } catch (...) {
      log_error(op);
    }
    return failed;
  }
}

// The same for f that returns nothing: 0, or 1 where it throws.
template <class F>
int32_t status_of(const char* op, F f) noexcept {
  return guarded(op, int32_t{1}, [&] {
    f();
    return int32_t{0};
  });
}

}  // namespace clada::trt

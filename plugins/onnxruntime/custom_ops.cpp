// The entry points of the library: registration with ONNX Runtime, and a meter of the memory's bandwidth.
#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "ffn_op.h"
#include "load_signal_op.h"

#define CLADA_EXPORT extern "C" __attribute__((visibility("default")))

namespace clada {
namespace {

// The ops with one set of settings. ONNX Runtime keeps pointers to them for as long as a session lives.
struct Domain {
  Ort::CustomOpDomain domain{kDomain};
  std::vector<std::unique_ptr<FfnOp<ops::SparseGatedFFN>>> gated;
  std::vector<std::unique_ptr<FfnOp<ops::SparseFFN>>> plain;
  std::vector<std::unique_ptr<LoadSignalOp>> signals;

  explicit Domain(const Settings& settings) {
    for (const Element element : {Element::kFloat32, Element::kFloat16, Element::kBFloat16}) {
      gated.push_back(std::make_unique<FfnOp<ops::SparseGatedFFN>>(element, settings));
      plain.push_back(std::make_unique<FfnOp<ops::SparseFFN>>(element, settings));
      signals.push_back(std::make_unique<LoadSignalOp>(element, settings));
      domain.Add(gated.back().get());
      domain.Add(plain.back().get());
      domain.Add(signals.back().get());
    }
  }
};

// One for each settings that were ever asked for, never freed: a session may outlive everything of ours.
Domain& domain_for(const Settings& settings) {
  static std::mutex mutex;
  static auto& domains = *new std::map<std::pair<std::string, std::string>, std::unique_ptr<Domain>>();
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Domain>& domain = domains[{settings.weights, settings.instructions}];
  if (!domain) domain = std::make_unique<Domain>(settings);
  return *domain;
}

}  // namespace
}  // namespace clada

CLADA_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(clada::kApiVersion);
  if (!api) {
    // Every release speaks the first API, which makes a status.
    const std::string message = "the native kernels of clada need ONNX Runtime 1." +
                                std::to_string(clada::kApiVersion) + " or newer; this is " + base->GetVersionString();
    return base->GetApi(1)->CreateStatus(ORT_FAIL, message.c_str());
  }
  Ort::InitApi(api);
  return clada::as_status([&] {
    Ort::UnownedSessionOptions session(options);
    session.Add(clada::domain_for(clada::read_settings(session)).domain);
  });
}

// Name of the instruction set that a session uses which asks for none.
CLADA_EXPORT const char* clada_instructions() { return clada::find_kernels("")->instructions; }

// Seconds that one thread takes to read a buffer.
CLADA_EXPORT double clada_read_seconds(const void* data, size_t bytes) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point before = Clock::now();
  [[maybe_unused]] static volatile float sink;  // what is read must have an effect
  sink = clada::find_kernels("")->read(data, bytes);
  return std::chrono::duration<double>(Clock::now() - before).count();
}

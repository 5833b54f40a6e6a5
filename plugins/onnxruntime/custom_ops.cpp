// The entry points of the library: registration with ONNX Runtime, and a meter of the memory's bandwidth.
#include <array>
#include <chrono>
#include <map>
#include <memory>
#include <mutex>

#include "cached_attention_kernel.h"
#include "ffn_kernel.h"
#include "gated_activation_kernel.h"
#include "linear_kernel.h"
#include "load_signal_kernel.h"
#include "quantized_linear_kernel.h"
#include "registration.h"

namespace clada {
namespace {

using CpuDomain = Domain<FfnKernel, LinearKernel, QuantizedLinearKernel, LoadSignalKernel,
                         std::pair<ops::CachedAttention, CachedAttentionKernel>,
                         std::pair<ops::GatedActivation, GatedActivationKernel>>;

// One for each settings ever requested, never freed: a session may outlive everything of ours.
CpuDomain& domain_for(const Settings& settings) {
  static std::mutex mutex;
  static auto& domains = *new std::map<std::array<std::string, 4>, std::unique_ptr<CpuDomain>>();
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<CpuDomain>& domain =
      domains[{settings.weights, settings.instructions, settings.element, settings.exact}];
  if (!domain) domain = std::make_unique<CpuDomain>(settings, settings.element);
  return *domain;
}

}  // namespace
}  // namespace clada

CLADA_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  return clada::register_domain(options, base, [](Ort::UnownedSessionOptions& session) -> OrtCustomOpDomain* {
    return clada::domain_for(clada::read_settings(session)).domain;
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

// The entry point of the library for the CUDA execution provider.
//
// A library of its own: ONNX Runtime takes a domain once in a session, and the CPU's must load where there is no CUDA.
#include "ffn_kernel.h"
#include "linear_kernel.h"
#include "load_signal_kernel.h"
#include "registration.h"

CLADA_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  return clada::register_domain(options, base, [](Ort::UnownedSessionOptions&) -> OrtCustomOpDomain* {
    // Never freed: a session may outlive everything of ours.
    using Domain =
        clada::Domain<clada::cuda::FfnKernel, clada::cuda::LinearKernel<clada::ops::SparseLinear>,
                      clada::cuda::LinearKernel<clada::ops::QuantizedSparseLinear>, clada::cuda::LoadSignalKernel>;
    static auto& cuda = *new Domain({});
    return cuda.domain;
  });
}

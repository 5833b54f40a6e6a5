// The entry point of the library for the CUDA execution provider.
//
// A library of its own: ONNX Runtime takes a domain once in a session, and the CPU's must load where there is no CUDA.
#include "ffn_kernel.h"
#include "linear_kernel.h"
#include "load_signal_kernel.h"
#include "registration.h"

namespace clada::cuda {
namespace {

template <class Table>
using Ffn = OpBase<Table, FfnKernel<Table>>;
using CudaDomain = Domain<Ffn<ops::SparseGatedFFN>, Ffn<ops::SparseFFN>, Ffn<ops::QuantizedSparseGatedFFN>,
                          Ffn<ops::QuantizedSparseFFN>, OpBase<ops::SparseLinear, LinearKernel>,
                          OpBase<ops::LoadSignal, LoadSignalKernel>>;

}  // namespace
}  // namespace clada::cuda

CLADA_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  return clada::register_domain(options, base, [](Ort::UnownedSessionOptions&) -> OrtCustomOpDomain* {
    // Never freed: a session may outlive everything of ours.
    static auto& cuda = *new clada::cuda::CudaDomain(clada::cuda::LoadSignalKernel::Settings{});
    return cuda.domain;
  });
}

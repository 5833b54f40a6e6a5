// Registration of a library's ops with ONNX Runtime.
#pragma once
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "op_base.h"

#define CLADA_EXPORT extern "C" __attribute__((visibility("default")))

namespace clada {

// The ops of a device with one set of settings, for every element type, or one by name, and for narrow weights where a
// kernel takes those (kNarrowWeights). ONNX Runtime keeps pointers to them for as long as a session lives.
// Others, which one device alone has kernels for, are Others: for each a pair of its table and its kernel.
template <template <class> class FfnKernel, class LinearKernel, class QuantizedLinearKernel, class LoadSignalKernel,
          class... Others>
struct Domain {
  Ort::CustomOpDomain domain{kDomain};

  explicit Domain(const typename LoadSignalKernel::Settings& settings, const std::string& only = "") {
    for (const auto& [element, name] : kElements) {
      if (!only.empty() && only != name) continue;
      add<OpBase<ops::SparseGatedFFN, FfnKernel<ops::SparseGatedFFN>>>(element, settings);
      add<OpBase<ops::SparseFFN, FfnKernel<ops::SparseFFN>>>(element, settings);
      add<OpBase<ops::QuantizedSparseGatedFFN, FfnKernel<ops::QuantizedSparseGatedFFN>>>(element, settings);
      add<OpBase<ops::QuantizedSparseFFN, FfnKernel<ops::QuantizedSparseFFN>>>(element, settings);
      add<OpBase<ops::SparseLinear, LinearKernel>>(element, settings);
      if (LinearKernel::kNarrowWeights && element == Element::kFloat32) {
        add<OpBase<ops::SparseLinear, LinearKernel>>(element, settings, Element::kBFloat16);
      }
      add<OpBase<ops::QuantizedSparseLinear, QuantizedLinearKernel>>(element, settings);
      add<OpBase<ops::LoadSignal, LoadSignalKernel>>(element, settings);
      (add<OpBase<typename Others::first_type, typename Others::second_type>>(element, settings), ...);
    }
  }

 private:
  template <class Op>
  void add(Element element, const typename Op::Settings& settings) {
    add<Op>(element, settings, element);
  }

  template <class Op>
  void add(Element element, const typename Op::Settings& settings, Element weight_element) {
    const auto op = std::make_shared<Op>(element, weight_element, settings);
    domain.Add(op.get());
    ops_.push_back(op);
  }

  std::vector<std::shared_ptr<OrtCustomOp>> ops_;
};

// Implementation of RegisterCustomOps: domain_for, given the session's options, returns the domain to add to them.
template <class F>
OrtStatus* register_domain(OrtSessionOptions* options, const OrtApiBase* base, F domain_for) {
  const OrtApi* api = base->GetApi(kApiVersion);
  if (!api) {
    // Every release speaks the first API, which makes a status.
    const std::string message = "the native kernels of clada need ONNX Runtime 1." + std::to_string(kApiVersion) +
                                " or newer; this is " + base->GetVersionString();
    return base->GetApi(1)->CreateStatus(ORT_FAIL, message.c_str());
  }
  Ort::InitApi(api);
  return as_status([&] {
    Ort::UnownedSessionOptions session(options);
    session.Add(domain_for(session));
  });
}

}  // namespace clada

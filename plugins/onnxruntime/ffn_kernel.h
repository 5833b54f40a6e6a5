// The feed-forward ops on the CPU.
#pragma once
#include <utility>
#include <vector>

#include "ffn_node.h"
#include "held_weights.h"
#include "op_base.h"
#include "quantized_weights.h"
#include "settings.h"
#include "threads.h"

namespace clada {

template <class Table>
class FfnKernel {
  using In = typename Table::In;
  using At = FfnInputs<Table>;

 public:
  using Settings = clada::Settings;
  static constexpr const char* kProvider = nullptr;  // the CPU's

  FfnKernel(const Ort::ConstKernelInfo& info, Element element, const Settings& settings)
      : element_(element), kernels_(*settings.kernels), attributes_(ffn_attributes<Table>(info)) {
    if constexpr (is_quantized<Table>) {
      check_quantized(settings);
      pack(info);
    } else if (holds_bfloat16(settings, element)) {
      for (const size_t input : {At::w_in, At::w_up, At::w_out}) {
        if (input != kNone) compact_[input] = compact_input(info, input, In::specs[input].name, kernels_);
      }
    }
  }

  OrtStatusPtr ComputeV2(OrtKernelContext* context) {
    return as_status([&] { compute(context); });
  }

 private:
  void pack(const Ort::ConstKernelInfo& info) {
    std::vector<QuantizedMatrix> matrices;
    constexpr std::pair<size_t, size_t> kAll[] = {{At::w_in, At::s_in}, {At::w_up, At::s_up}, {At::w_out, At::s_out}};
    for (const auto& [codes, scales] : kAll) {
      if (codes != kNone) matrices.push_back({codes, scales, In::specs[codes].name, In::specs[scales].name});
    }
    packed_ = pack_ffn_inputs(info, Table::name, matrices, attributes_.quantization, kernels_.quantized);
  }

  void compute(OrtKernelContext* context) {
    SparseFfnCall call = ffn_call<Table>(Ort::KernelContext(context), element_, attributes_);
    if constexpr (is_quantized<Table>) {
      const Scratch workspace(context, kernels_.quantized.ffn_workspace(call));
      kernels_.quantized.ffn(call, packed_.get(), workspace.data, thread_pool(context));
      return;
    }
    if (compact_[At::w_in]) {
      call.weight_element = Element::kBFloat16;
      call.w_in = compact_[At::w_in].get();
      if constexpr (At::w_up != kNone) call.w_up = compact_[At::w_up].get();
      call.w_out = compact_[At::w_out].get();
    }
    const Scratch workspace(context, kernels_.sparse_ffn_workspace(call));
    kernels_.sparse_ffn(call, workspace.data, thread_pool(context));
  }

  Element element_;
  const Kernels& kernels_;
  FfnAttributes attributes_;
  HeldWeights compact_[In::count];  // by input, where weights are held as bfloat16
  HeldWeights packed_;              // where they are quantized
};

}  // namespace clada

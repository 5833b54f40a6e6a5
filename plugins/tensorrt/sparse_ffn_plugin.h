// The feed-forward ops in TensorRT.
#pragma once
#include "ffn_inputs.h"
#include "launchers.h"
#include "products_plugin.h"
#include "quantization.h"

namespace clada::trt {

template <class Table>
class SparseFfnPlugin final : public ProductsPlugin {
  using In = typename Table::In;
  using Out = typename Table::Out;
  using At = FfnInputs<Table>;

 public:
  using Op = Table;
  explicit SparseFfnPlugin(Attributes attributes)
      : ProductsPlugin(kSignature<Table>, std::move(attributes)),
        activation_(activation_named(attributes_.text(Table::Attr::activation))),
        quantization_(quantization_of<Table>(attributes_)) {}

 private:
  std::unique_ptr<Plugin> copy() const override { return std::make_unique<SparseFfnPlugin>(*this); }

  void check(const Sizes& sizes) const override {
    if constexpr (is_quantized<Table>) {
      check_row(quantization_, sizes.at("D"), sizes.at("P"), sizes.at("N"), "D");
    }
  }

  size_t workspace_bytes(const Sizes& sizes, Element element) const override {
    SparseFfnCall largest{};
    set_sizes(largest, sizes, element);
    if (At::w_up != kNone) largest.w_up = &largest;  // that it is not null tells which op the call is of
    return most_workspace(cuda::sparse_ffn_workspace, largest);
  }

  void launch(const Sizes& sizes, Element element, const void* const* inputs, void* const* outputs, void* workspace,
              cudaStream_t stream) const override {
    const auto input = [&](size_t i) { return i == kNone ? nullptr : input_data(inputs[i]); };
    SparseFfnCall call{};
    set_sizes(call, sizes, element);
    call.x = input(In::x);
    call.w_in = input(At::w_in);
    call.w_up = input(At::w_up);
    call.w_out = input(At::w_out);
    call.s_in = input(At::s_in);
    call.s_up = input(At::s_up);
    call.s_out = input(At::s_out);
    call.b_in = input(At::b_in);
    call.b_out = input(At::b_out);
    call.threshold = static_cast<const float*>(input(In::threshold));
    call.scale = static_cast<const float*>(input(In::scale));
    call.pool = static_cast<const uint8_t*>(input(In::pool));
    call.y = outputs[Out::y];
    call.active = static_cast<int32_t*>(outputs[Out::active]);
    call.score = static_cast<float*>(outputs[Out::score]);
    launch_call(cuda::sparse_ffn, call, workspace, stream);
  }

  void set_sizes(SparseFfnCall& call, const Sizes& sizes, Element element) const {
    call.batch = sizes.at("B");
    call.sequence = sizes.at("S");
    call.width = sizes.at("D");
    call.neurons = sizes.at("F");
    call.activation = activation_;
    call.quantization = quantization_;
    call.element = call.weight_element = element;
  }

  Activation activation_;
  Quantization quantization_;
};

}  // namespace clada::trt

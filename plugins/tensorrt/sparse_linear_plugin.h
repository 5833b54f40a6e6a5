// SparseLinear and its quantized variant in TensorRT.
#pragma once
#include "launchers.h"
#include "products_plugin.h"
#include "quantization.h"

namespace clada::trt {

template <class Table>
class SparseLinearPlugin final : public ProductsPlugin {
  using In = typename Table::In;
  using Out = typename Table::Out;

 public:
  using Op = Table;
  explicit SparseLinearPlugin(Attributes attributes)
      : ProductsPlugin(kSignature<Table>, std::move(attributes)), quantization_(quantization_of<Table>(attributes_)) {}

 private:
  std::unique_ptr<Plugin> copy() const override { return std::make_unique<SparseLinearPlugin>(*this); }

  // A plugin sees how many bytes a row of codes has, not how many outputs those are.
  void add_sizes(Sizes& sizes) const override {
    if constexpr (is_quantized<Table>) sizes["N"] = row_weights(quantization_, sizes.at("P"));
  }

  void add_expressions(Expressions& expressions, nvinfer1::IExprBuilder& builder) const override {
    if constexpr (is_quantized<Table>) {
      expressions["N"] = builder.operation(nvinfer1::DimensionOperation::kPROD, *expressions.at("P"),
                                           *builder.constant(row_weights(quantization_, 1)));
    }
  }

  void check(const Sizes& sizes) const override {
    if constexpr (is_quantized<Table>) {
      check_row(quantization_, sizes.at("N"), sizes.at("P"), sizes.at("G"), "N");
    }
  }

  size_t workspace_bytes(const Sizes& sizes, Element element) const override {
    return most_workspace(cuda::sparse_linear_workspace, sized_call(sizes, element));
  }

  void launch(const Sizes& sizes, Element element, const void* const* inputs, void* const* outputs, void* workspace,
              cudaStream_t stream) const override {
    SparseLinearCall call = sized_call(sizes, element);
    call.x = inputs[In::x];
    call.w = inputs[In::w];
    if constexpr (is_quantized<Table>) call.s = input_data(inputs[In::s]);
    call.threshold = static_cast<const float*>(inputs[In::threshold]);
    call.scale = static_cast<const float*>(inputs[In::scale]);
    call.y = outputs[Out::y];
    call.kept = static_cast<int32_t*>(outputs[Out::kept]);
    launch_call(cuda::sparse_linear, call, workspace, stream);
  }

  SparseLinearCall sized_call(const Sizes& sizes, Element element) const {
    SparseLinearCall call{};
    call.batch = sizes.at("B");
    call.sequence = sizes.at("S");
    call.width = sizes.at("D");
    call.outputs = sizes.at("N");
    call.quantization = quantization_;
    call.element = call.weight_element = element;
    return call;
  }

  Quantization quantization_;
};

}  // namespace clada::trt

// GatedActivation on the CPU.
#pragma once
#include <string>

#include "activation_attribute.h"
#include "op_base.h"
#include "settings.h"
#include "shapes.h"
#include "threads.h"

namespace clada {

class GatedActivationKernel {
  using Table = ops::GatedActivation;
  using In = Table::In;
  using Out = Table::Out;

 public:
  using Settings = clada::Settings;
  static constexpr const char* kProvider = nullptr;  // the CPU's

  GatedActivationKernel(const Ort::ConstKernelInfo& info, Element element, const Settings& settings)
      : element_(element), kernels_(*settings.kernels), activation_(activation_of(info, Table::name)) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* context) {
    return as_status([&] { compute(context); });
  }

 private:
  void compute(OrtKernelContext* context) {
    const Ort::KernelContext node(context);
    Sizes sizes = check_shapes(Table::name, In::specs, In::count, node);
    if (sizes.at("W") % 2 != 0) {
      throw Ort::Exception(
          std::string(Table::name) + ": x is " + std::to_string(sizes.at("W")) + " wide, which is not twice a width",
          ORT_INVALID_ARGUMENT);
    }
    sizes["F"] = sizes.at("W") / 2;
    void* y = node.GetOutput(Out::y, output_shape(Out::specs[Out::y], sizes)).GetTensorMutableRawData();
    const GatedActivationCall call{sizes.at("B") * sizes.at("S"),
                                   sizes.at("F"),
                                   activation_,
                                   element_,
                                   node.GetInput(In::x).GetTensorRawData(),
                                   y};
    kernels_.gated_activation(call, thread_pool(context));
  }

  Element element_;
  const Kernels& kernels_;
  Activation activation_;
};

}  // namespace clada

// CachedAttention on the CPU.
#pragma once
#include <cstring>
#include <string>

#include "op_base.h"
#include "settings.h"
#include "shapes.h"
#include "threads.h"

namespace clada {

class CachedAttentionKernel {
  using Table = ops::CachedAttention;
  using In = Table::In;
  using Out = Table::Out;

 public:
  using Settings = clada::Settings;
  static constexpr const char* kProvider = nullptr;  // the CPU's

  CachedAttentionKernel(const Ort::ConstKernelInfo& info, Element element, const Settings& settings)
      : kernels_(*settings.kernels) {
    const std::string rotary = info.GetAttribute<std::string>("rotary");
    turns_ = rotary != "none";
    of_node_.interleaved = rotary == "interleaved";
    of_node_.heads = info.GetAttribute<int64_t>("num_heads");
    of_node_.kv_heads = info.GetAttribute<int64_t>("kv_num_heads");
    of_node_.scale = info.GetAttribute<float>("scale");
    of_node_.softcap = info.GetAttribute<float>("softcap");
    of_node_.window = info.GetAttribute<int64_t>("local_window_size");
    of_node_.element = element;
    if (of_node_.kv_heads < 1 || of_node_.heads < 1 || of_node_.heads % of_node_.kv_heads != 0) {
      refuse(std::to_string(of_node_.heads) + " heads of queries do not share " + std::to_string(of_node_.kv_heads) +
             " of keys evenly");
    }
    turned_width_ = info.GetAttribute<int64_t>("rotary_embedding_dim");
    if (of_node_.window == 0) refuse("a window of 0 tokens has no token in it");
  }

  OrtStatusPtr ComputeV2(OrtKernelContext* context) {
    return as_status([&] { compute(context); });
  }

 private:
  [[noreturn]] static void refuse(const std::string& why) {
    throw Ort::Exception(std::string(Table::name) + ": " + why, ORT_INVALID_ARGUMENT);
  }

  void check(const CachedAttentionCall& call, const Sizes& sizes) const {
    if (sizes.at("B") != 1) refuse(std::to_string(sizes.at("B")) + " texts, and a cache in place is one text's");
    if (sizes.at("K") != call.kv_heads) {
      refuse("a cache of " + std::to_string(sizes.at("K")) + " heads, and kv_num_heads is " +
             std::to_string(call.kv_heads));
    }
    if (call.width < 1 || call.width > kMostHeadWidth) {
      refuse("heads of " + std::to_string(call.width) + " values; from 1 to " + std::to_string(kMostHeadWidth) +
             " are possible");
    }
    // Heads are bounded by what follows: a product of them that overflowed would not be the width of qkv.
    if (call.heads > sizes.at("W") / call.width || sizes.at("W") != (call.heads + 2 * call.kv_heads) * call.width) {
      refuse("qkv is " + std::to_string(sizes.at("W")) + " wide, which is not " + std::to_string(call.heads) +
             " + 2 * " + std::to_string(call.kv_heads) + " heads of " + std::to_string(call.width));
    }
    if (turns_ && (2 * call.rotary > call.width || 2 * call.rotary != turned_width_ || sizes.at("A") < call.sequence)) {
      refuse("angles of " + std::to_string(sizes.at("A")) + " tokens and " + std::to_string(call.rotary) +
             " pairs do not fit " + std::to_string(call.sequence) + " tokens whose heads of " +
             std::to_string(call.width) + " turn " + std::to_string(turned_width_));
    }
    if (call.last < call.sequence - 1 || call.last >= call.capacity) {
      refuse("the last of " + std::to_string(call.sequence) + " tokens is at " + std::to_string(call.last) +
             " of a cache with room for " + std::to_string(call.capacity));
    }
  }

  void compute(OrtKernelContext* context) {
    const Ort::KernelContext node(context);
    const Sizes sizes = check_shapes(Table::name, In::specs, In::count, node);
    const auto input = [&](size_t i) { return node.GetInput(i).GetTensorRawData(); };
    CachedAttentionCall call = of_node_;
    call.sequence = sizes.at("S");
    call.width = sizes.at("E");
    call.capacity = sizes.at("C");
    call.rotary = turns_ ? sizes.at("R") : 0;
    if (sizes.at("B") == 1) call.last = node.GetInput(In::last).GetTensorData<int32_t>()[0];
    check(call, sizes);
    Sizes with_y = sizes;
    with_y["Y"] = call.heads * call.width;
    const auto output = [&](size_t i) {
      return node.GetOutput(i, output_shape(Out::specs[i], with_y)).GetTensorMutableRawData();
    };
    call.qkv = input(In::qkv);
    call.cos = input(In::cos);
    call.sin = input(In::sin);
    call.past_key = input(In::past_key);
    call.past_value = input(In::past_value);
    call.y = output(Out::y);
    call.present_key = output(Out::present_key);
    call.present_value = output(Out::present_value);
    if (call.sequence == 0) return;
    const Scratch workspace(context, kernels_.cached_attention_workspace(call));
    kernels_.cached_attention(call, workspace.data, thread_pool(context));
  }

  const Kernels& kernels_;
  bool turns_;
  int64_t turned_width_;
  CachedAttentionCall of_node_{};
};

}  // namespace clada

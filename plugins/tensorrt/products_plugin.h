// Ops that multiply matrices where there are many tokens, in TensorRT.
#pragma once
#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "launchers.h"
#include "plugin.h"
#include "products.h"

namespace clada::trt {

// An op whose calls have a batch and a sequence.
class ProductsPlugin : public Plugin {
 protected:
  using Plugin::Plugin;

  // The workspace of every call of at most this batch and sequence: one of few tokens goes another way, which may need
  // more than the largest does.
  template <class Call>
  static size_t most_workspace(size_t (*workspace_of)(const Call&), const Call& largest) {
    size_t bytes = workspace_of(largest);
    for (int64_t batch = 1; batch <= std::min(largest.batch, cuda::kRowwiseTokens); ++batch) {
      for (int64_t tokens = 1; tokens <= std::min(largest.sequence, cuda::kRowwiseTokens / batch); ++tokens) {
        Call few = largest;
        few.batch = batch;
        few.sequence = tokens;
        bytes = std::max(bytes, workspace_of(few));
      }
    }
    return bytes;
  }

  template <class Call>
  void launch_call(cudaError_t (*launcher)(const Call&, void*, const cuda::Products*, cudaStream_t), const Call& call,
                   void* workspace, cudaStream_t stream) const {
    if (!needs_products(call.batch, call.sequence)) return check_launch(launcher(call, workspace, nullptr, stream));
    if (!products_) throw std::runtime_error("a call of many tokens came before onShapeChange was told of it");
    const cuda::Products products = products_->products();
    check_launch(launcher(call, workspace, &products, stream), products_->error());
  }

 private:
  void prepare(const Sizes& sizes, const void* context) override {
    if (needs_products(sizes.at("B"), sizes.at("S")) && !products_) products_ = matrix_products(context);
  }

  static bool needs_products(int64_t batch, int64_t sequence) { return batch * sequence > cuda::kRowwiseTokens; }

  std::shared_ptr<cuda::CublasProducts> products_;
};

}  // namespace clada::trt

#include "quantized_weights.h"

#include "own_threads.h"
#include "quantization_scales.h"
#include "quantization_sizes.h"

namespace clada {

namespace {

struct Matrix {
  ConstantInput codes, scales;
  int64_t rows, width;
};

// Rows, and bytes of a row: what is computed of both fits an integer.
constexpr int64_t kMost = int64_t{1} << 30;

[[noreturn]] void refuse(const char* op, const std::string& why) {
  throw Ort::Exception(std::string(op) + ": " + why, ORT_INVALID_ARGUMENT);
}

}  // namespace

// `axis` is what the op calls the width.
static Matrix read_matrix(const Ort::ConstKernelInfo& info, const char* op, const QuantizedMatrix& given,
                          Quantization quantization, const char* axis) {
  Matrix matrix{constant_input(info, given.codes, given.name, 1, op),
                constant_input(info, given.scales, given.scales_name, 2, op), 0, 0};
  const std::vector<int64_t>&codes = matrix.codes.shape, &scales = matrix.scales.shape;
  if (codes.size() != 2 || scales.size() != 2 || codes[0] != scales[0]) {
    refuse(op, std::string(given.name) + " and " + given.scales_name + " are not matrices of the same rows");
  }
  if (codes[0] > kMost || codes[1] > kMost)
    refuse(op, std::string(given.name) + " is larger than any matrix of a model");
  matrix.rows = codes[0];
  matrix.width = row_weights(quantization, codes[1]);
  const std::string misfit = size_misfit(quantization, matrix.width, codes[1], scales[1], axis);
  if (!misfit.empty()) refuse(op, std::string(given.name) + ": " + misfit);
  const std::string fault = scale_fault(static_cast<const uint16_t*>(matrix.scales.data), matrix.scales.count,
                                        static_cast<size_t>(scales[1]));
  if (!fault.empty()) refuse(op, given.scales_name + (" " + fault));
  return matrix;
}

HeldWeights pack_ffn_inputs(const Ort::ConstKernelInfo& info, const char* op, const std::vector<QuantizedMatrix>& given,
                            Quantization quantization, const QuantizedKernels& kernels) {
  std::vector<Matrix> matrices;
  for (const QuantizedMatrix& matrix : given) {
    matrices.push_back(read_matrix(info, op, matrix, quantization, "D"));
    if (matrices.back().rows != matrices[0].rows || matrices.back().width != matrices[0].width) {
      refuse(op, std::string(matrix.name) + " has not the size of " + given[0].name);
    }
  }
  SparseFfnCall ffn{};
  ffn.neurons = matrices[0].rows;
  ffn.width = matrices[0].width;
  ffn.quantization = quantization;
  ffn.w_in = matrices[0].codes.data;
  ffn.s_in = matrices[0].scales.data;
  if (matrices.size() == 3) {
    ffn.w_up = matrices[1].codes.data;
    ffn.s_up = matrices[1].scales.data;
  }
  ffn.w_out = matrices.back().codes.data;
  ffn.s_out = matrices.back().scales.data;
  HeldWeights packed = hold(kernels.packed_ffn_bytes(ffn));
  kernels.pack_ffn(ffn, packed.get(), own_threads());
  for (const Matrix& matrix : matrices) {
    release(matrix.codes);
    release(matrix.scales);
  }
  return packed;
}

HeldWeights pack_linear_input(const Ort::ConstKernelInfo& info, const char* op, const QuantizedMatrix& given,
                              Quantization quantization, const QuantizedKernels& kernels) {
  const Matrix matrix = read_matrix(info, op, given, quantization, "N");
  SparseLinearCall linear{};
  linear.width = matrix.rows;
  linear.outputs = matrix.width;
  linear.quantization = quantization;
  linear.w = matrix.codes.data;
  linear.s = matrix.scales.data;
  HeldWeights packed = hold(kernels.packed_linear_bytes(linear));
  kernels.pack_linear(linear, packed.get(), own_threads());
  release(matrix.codes);
  release(matrix.scales);
  return packed;
}

}  // namespace clada

// One checked call of the operator, and the entry points that every backend shares.
//
// A backend supplies `void run(const NormCall&)`; OpEntries<run> gives the three functions that its
// library registers, so that checks, allocation and argument order exist once.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "tensor_checks.h"

namespace hp_norm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// What the kernels need to know, and nothing of torch's own types but the dtype.
struct NormCall {
  const void* x;         // [num_tokens, hidden_size], row stride x_stride
  const void* residual;  // like x, row stride residual_stride; null: plain norm
  const void* weight;    // [hidden_size], of x's dtype or float32; null: no weight
  void* out;             // like x, row stride out_stride
  void* residual_out;    // like residual, row stride residual_out_stride; null: plain norm
  int64_t x_stride;      // strides count elements
  int64_t residual_stride;
  int64_t out_stride;
  int64_t residual_out_stride;
  int64_t num_tokens;
  int64_t hidden_size;
  float eps;
  float weight_offset;
  bool round_before_weight;
  bool weight_is_float32;  // the weight is float32 whatever x is
  ScalarType dtype;        // of x, residual and both outputs
  int32_t device_index;
};

// A new contiguous tensor like x. Asks the allocator without a detour over the dispatcher, which
// takes longer than to normalise a row on a CPU.
inline Tensor new_like(const Tensor& x) {
  const auto sizes = x.sizes();
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= sizes[d] > 0 ? sizes[d] : 1;
  }
  AtenTensorHandle handle = nullptr;
  int32_t dtype = 0, device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(x.get(), &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      x.dim(), sizes.data(), strides.data(), dtype, device_type, x.get_device_index(), &handle));
  return Tensor(handle);
}

template <void (*run)(const NormCall&)>
struct OpEntries {
  static NormCall checked(const char* op, const Tensor& x, const Tensor* residual,
                          const std::optional<Tensor>& weight, double eps, double weight_offset,
                          bool round_before_weight) {
    const Rows x_rows = check_x(op, x);
    NormCall call{};
    if (residual != nullptr) {
      const Rows residual_rows = check_residual(op, *residual, x);
      call.residual = residual_rows.data;
      call.residual_stride = residual_rows.row_stride;
    }
    check_weight(op, weight, x);
    check_scalars(op, eps, weight_offset, weight.has_value());
    call.x = x_rows.data;
    call.x_stride = x_rows.row_stride;
    call.num_tokens = x_rows.num_tokens;
    call.hidden_size = x_rows.hidden_size;
    call.weight = weight.has_value() ? weight->const_data_ptr() : nullptr;
    call.weight_is_float32 = weight.has_value() && weight->scalar_type() == ScalarType::Float;
    call.eps = static_cast<float>(eps);
    call.weight_offset = static_cast<float>(weight_offset);
    call.round_before_weight = round_before_weight;
    call.dtype = x.scalar_type();
    call.device_index = x.get_device_index();
    return call;
  }

  static Tensor rms_norm(const Tensor& x, const std::optional<Tensor>& weight, double eps,
                         double weight_offset, bool round_before_weight) {
    NormCall call =
        checked("rms_norm", x, nullptr, weight, eps, weight_offset, round_before_weight);
    Tensor out = new_like(x);
    call.out = out.mutable_data_ptr();
    call.out_stride = call.hidden_size;
    if (call.num_tokens > 0) run(call);
    return out;
  }

  static std::tuple<Tensor, Tensor> fused_add_rms_norm(const Tensor& x, const Tensor& residual,
                                                       const std::optional<Tensor>& weight,
                                                       double eps, double weight_offset,
                                                       bool round_before_weight) {
    NormCall call = checked("fused_add_rms_norm", x, &residual, weight, eps, weight_offset,
                            round_before_weight);
    Tensor out = new_like(x);
    Tensor residual_out = new_like(x);
    call.out = out.mutable_data_ptr();
    call.out_stride = call.hidden_size;
    call.residual_out = residual_out.mutable_data_ptr();
    call.residual_out_stride = call.hidden_size;
    if (call.num_tokens > 0) run(call);
    return {out, residual_out};
  }

  static void fused_add_rms_norm_(const Tensor& x, const Tensor& residual,
                                  const std::optional<Tensor>& weight, double eps,
                                  double weight_offset, bool round_before_weight) {
    NormCall call = checked("fused_add_rms_norm_", x, &residual, weight, eps, weight_offset,
                            round_before_weight);
    check_no_overlap("fused_add_rms_norm_",
                     {call.x, call.num_tokens, call.hidden_size, call.x_stride},
                     {call.residual, call.num_tokens, call.hidden_size, call.residual_stride},
                     call.dtype == ScalarType::Float ? 4 : 2, weight);
    call.out = x.mutable_data_ptr();
    call.out_stride = call.x_stride;
    call.residual_out = residual.mutable_data_ptr();
    call.residual_out_stride = call.residual_stride;
    if (call.num_tokens > 0) run(call);
  }

  static void register_impls(torch::stable::detail::StableLibrary& library) {
    library.impl("rms_norm", TORCH_BOX(&rms_norm));
    library.impl("fused_add_rms_norm", TORCH_BOX(&fused_add_rms_norm));
    library.impl("fused_add_rms_norm_", TORCH_BOX(&fused_add_rms_norm_));
  }
};

}  // namespace hp_norm

// One checked call of the operator, and the entry points that every backend shares.
//
// A backend supplies `void run(const NormCall&)`; OpEntries<run> gives the three functions that its
// library registers, so that checks, allocation and argument order exist once.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "tensor_checks.h"

namespace hp_norm {

// What the kernels need to know, and nothing of torch's own types.
struct NormCall {
  const char* op;        // the operator's name, for what the kernels' side refuses
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
  bool weight_is_float32;     // the weight is float32 whatever x is
  DType dtype;                // of x, residual and both outputs
  int64_t elem_bytes;         // of that dtype
  int64_t weight_elem_bytes;  // of an element of the weight
  int32_t device_index;
};

enum class Op { kPlain, kFused, kInPlace };

constexpr const char* name_of(Op op) {
  switch (op) {
    case Op::kPlain: return "rms_norm";
    case Op::kFused: return "fused_add_rms_norm";
    default: return "fused_add_rms_norm_";
  }
}

struct DeleteTensor {
  void operator()(AtenTensorHandle tensor) const { aoti_torch_delete_tensor_object(tensor); }
};
using OwnedTensor = std::unique_ptr<AtenTensorOpaque, DeleteTensor>;

// A new contiguous tensor like x. Asks the allocator without a detour over the dispatcher, which
// takes longer than to normalise a row on a CPU.
inline OwnedTensor new_like(const char* op, const TensorView& x) {
  std::vector<int64_t> strides(x.sizes.size());
  int64_t stride = 1;
  for (size_t d = x.sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= x.sizes[d] > 0 ? x.sizes[d] : 1;
  }
  AtenTensorHandle handle = nullptr;
  // What the allocator says is lost on the way: the stable ABI of torch 2.11 passes on a code
  // alone.
  if (aoti_torch_empty_strided(x.dim(), x.sizes.data(), strides.data(), x.dtype, x.device_type,
                               x.device_index, &handle) != AOTI_TORCH_SUCCESS) {
    refuse(op, "x", "its output must fit in memory (out of memory)", list_text(x.sizes));
  }
  return OwnedTensor(handle);
}

// The kernels as torch calls them, on a stack of its values: TORCH_BOX would make three shared
// pointers and an optional of what is only looked at, which costs a tenth of a call.
template <void (*run)(const NormCall&)>
struct OpEntries {
  template <Op kOp>
  static void entry(StableIValue* stack, uint64_t, uint64_t) {
    using torch::stable::detail::to;
    constexpr const char* op = name_of(kOp);
    constexpr bool adds = kOp != Op::kPlain, in_place = kOp == Op::kInPlace;

    // The inputs are ours to delete, whatever happens.
    StableIValue* input = stack;
    const OwnedTensor x_owned(to<AtenTensorHandle>(*input++));
    const OwnedTensor residual_owned(adds ? to<AtenTensorHandle>(*input++) : nullptr);
    const OwnedTensor weight_owned(to<std::optional<AtenTensorHandle>>(*input++).value_or(nullptr));
    const double eps = to<double>(*input++);
    const double weight_offset = to<double>(*input++);
    const bool round_before_weight = to<bool>(*input++);

    NormCall call{};
    call.op = op;
    const TensorView x = view_of(x_owned.get(), in_place);
    const DTypeFacts& dtype = check_dtype(op, x);
    const Rows x_rows = check_x(op, x);
    call.x = x_rows.data;
    call.x_stride = x_rows.row_stride;
    call.num_tokens = x_rows.num_tokens;
    call.hidden_size = x_rows.hidden_size;
    Rows residual_rows{};
    if constexpr (adds) {
      residual_rows = check_residual(op, view_of(residual_owned.get(), in_place), x);
      call.residual = residual_rows.data;
      call.residual_stride = residual_rows.row_stride;
    }
    if (weight_owned != nullptr) {
      const TensorView weight = view_of(weight_owned.get(), false);
      check_weight(op, weight, x);
      call.weight = weight.data;
      call.weight_is_float32 = weight.dtype == aoti_torch_dtype_float32();
    }
    check_scalars(op, eps, weight_offset, weight_owned != nullptr);
    call.eps = static_cast<float>(eps);
    // No offset is -0: adding it changes nothing, not even the sign of a zero, so that a kernel may
    // add it or not.
    call.weight_offset = static_cast<float>(weight_offset);
    if (call.weight_offset == 0.0f) call.weight_offset = -0.0f;
    call.round_before_weight = round_before_weight;
    call.dtype = dtype.dtype;
    call.elem_bytes = dtype.bytes;
    call.weight_elem_bytes = call.weight_is_float32 ? sizeof(float) : dtype.bytes;
    call.device_index = x.device_index;

    if constexpr (in_place) {
      check_no_overlap(op, x_rows, residual_rows, call.elem_bytes, call.weight,
                       call.weight_elem_bytes);
      call.out = x_rows.data;
      call.out_stride = x_rows.row_stride;
      call.residual_out = residual_rows.data;
      call.residual_out_stride = residual_rows.row_stride;
      if (call.num_tokens > 0) run(call);
    } else {
      const auto output = [&](void*& data, int64_t& row_stride) {
        OwnedTensor tensor = new_like(op, x);
        STABLE_TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(tensor.get(), &data));
        row_stride = call.hidden_size;
        return tensor;
      };
      OwnedTensor out = output(call.out, call.out_stride), residual_out;
      if constexpr (adds) residual_out = output(call.residual_out, call.residual_out_stride);
      if (call.num_tokens > 0) run(call);
      stack[0] = torch::stable::detail::from(out.release());
      if constexpr (adds) stack[1] = torch::stable::detail::from(residual_out.release());
    }
  }

  static void register_impls(torch::stable::detail::StableLibrary& library) {
    library.impl(name_of(Op::kPlain), entry<Op::kPlain>);
    library.impl(name_of(Op::kFused), entry<Op::kFused>);
    library.impl(name_of(Op::kInPlace), entry<Op::kInPlace>);
  }
};

}  // namespace hp_norm

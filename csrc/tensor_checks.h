// Named checks of the operator's arguments. Every message has the form
//   hp_norm::op: argument: rule, got value
// hp_norm_plugin/checks.py says the same for fake tensors; tests/test_bad_input.py holds them
// equal.
#pragma once

#include <torch/csrc/stable/stableivalue_conversions.h>
#include <torch/csrc/stable/tensor_struct.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <string>

#include "dtypes.h"

namespace hp_norm {

using Ints = torch::headeronly::IntHeaderOnlyArrayRef;

inline constexpr int64_t kMaxHiddenSize = 65536;

// A tensor with every fact asked of torch once: on a CPU a row is done in the time of some hundred
// such questions.
struct TensorView {
  void* data;  // to be read only, unless the view was made to write
  Ints sizes;
  Ints strides;
  int32_t dtype;  // as torch numbers it, like the device's type
  int32_t device_type;
  int32_t device_index;

  int64_t dim() const { return static_cast<int64_t>(sizes.size()); }
};

inline TensorView view_of(AtenTensorHandle tensor, bool is_written) {
  int64_t dim = 0, *sizes = nullptr, *strides = nullptr;
  const void* data = nullptr;
  void* written = nullptr;
  int32_t dtype = 0, device_type = 0, device_index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &dim));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &sizes));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &strides));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor, &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor, &device_index));
  if (is_written) {
    STABLE_TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(tensor, &written));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(tensor, &data));
    written = const_cast<void*>(data);
  }
  const size_t length = static_cast<size_t>(dim);
  return {written, Ints(sizes, length), Ints(strides, length), dtype, device_type, device_index};
}

// A tensor whose leading dimensions are one dimension of rows.
struct Rows {
  void* data;
  int64_t num_tokens;
  int64_t hidden_size;
  int64_t row_stride;  // elements
};

[[noreturn]] inline void refuse(const char* op, const char* argument, const std::string& rule,
                                const std::string& value) {
  throw std::runtime_error(std::string("hp_norm::") + op + ": " + argument + ": " + rule +
                           ", got " + value);
}

inline std::string dtype_name(int32_t dtype) {
  using torch::headeronly::ScalarType;
  switch (torch::stable::detail::to<ScalarType>(torch::stable::detail::from(dtype))) {
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Bool: return "bool";
    case ScalarType::ComplexHalf: return "complex32";
    case ScalarType::ComplexFloat: return "complex64";
    case ScalarType::ComplexDouble: return "complex128";
    case ScalarType::Float8_e4m3fn: return "float8_e4m3fn";
    case ScalarType::Float8_e5m2: return "float8_e5m2";
    default: return "dtype " + std::to_string(dtype);
  }
}

// "[2, 3]", as Python prints a list.
template <typename Values>
std::string list_text(const Values& values) {
  std::string text = "[";
  for (size_t i = 0; i < values.size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(values[i]);
  }
  return text + "]";
}

inline std::string number_text(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", value);
  return text;
}

inline std::string device_text(const TensorView& tensor) {
  if (tensor.device_type == aoti_torch_device_type_cpu()) return "cpu";
  if (tensor.device_type == aoti_torch_device_type_cuda()) {
    return "cuda:" + std::to_string(tensor.device_index);
  }
  return "another device";
}

// The row stride with which the leading dimensions flatten without a copy, or nullopt.
inline std::optional<int64_t> flat_row_stride(const Ints& sizes, const Ints& strides) {
  const int64_t leading = static_cast<int64_t>(sizes.size()) - 1;
  int64_t row_stride = sizes[leading];
  int64_t rows_below = 0;  // 0: no leading dimension larger than 1 seen yet
  for (int64_t d = leading - 1; d >= 0; --d) {
    if (sizes[d] == 1) continue;
    if (rows_below == 0) {
      row_stride = strides[d];
      rows_below = sizes[d];
    } else if (strides[d] != row_stride * rows_below) {
      return std::nullopt;
    } else {
      rows_below *= sizes[d];
    }
  }
  return row_stride;
}

inline Rows check_rows(const char* op, const char* argument, const TensorView& tensor) {
  const Ints &sizes = tensor.sizes, &strides = tensor.strides;
  const int64_t last = tensor.dim() - 1, hidden_size = sizes[last];
  if (hidden_size > 1 && strides[last] != 1) {
    refuse(op, argument, "inner stride must be 1", std::to_string(strides[last]));
  }
  int64_t num_tokens = 1;
  for (int64_t d = 0; d < last; ++d) num_tokens *= sizes[d];
  if (num_tokens == 0) return {tensor.data, 0, hidden_size, hidden_size};
  const std::optional<int64_t> row_stride = flat_row_stride(sizes, strides);
  if (!row_stride.has_value()) {
    refuse(op, argument, "leading dimensions must flatten to rows without a copy",
           "shape " + list_text(sizes) + " with strides " + list_text(strides));
  }
  return {tensor.data, num_tokens, hidden_size, *row_stride};
}

inline const DTypeFacts& check_dtype(const char* op, const TensorView& x) {
  const DTypeFacts* const dtype = find_dtype(x.dtype);
  if (dtype == nullptr) {
    refuse(op, "x", "dtype must be bfloat16, float16 or float32", dtype_name(x.dtype));
  }
  return *dtype;
}

inline Rows check_x(const char* op, const TensorView& x) {
  if (x.dim() < 1) refuse(op, "x", "must have at least 1 dimension", std::to_string(x.dim()));
  const int64_t hidden_size = x.sizes[x.dim() - 1];
  if (hidden_size < 1 || hidden_size > kMaxHiddenSize) {
    refuse(op, "x", "hidden_size must be from 1 to " + std::to_string(kMaxHiddenSize),
           std::to_string(hidden_size));
  }
  return check_rows(op, "x", x);
}

inline void check_same_device(const char* op, const char* argument, const TensorView& tensor,
                              const TensorView& x) {
  if (tensor.device_type != x.device_type || tensor.device_index != x.device_index) {
    refuse(op, argument, "device must be " + device_text(x) + " like x", device_text(tensor));
  }
}

inline Rows check_residual(const char* op, const TensorView& residual, const TensorView& x) {
  check_same_device(op, "residual", residual, x);
  if (residual.dtype != x.dtype) {
    refuse(op, "residual", "dtype must be " + dtype_name(x.dtype) + " like x",
           dtype_name(residual.dtype));
  }
  if (residual.sizes != x.sizes) {
    refuse(op, "residual", "shape must be " + list_text(x.sizes) + " like x",
           list_text(residual.sizes));
  }
  return check_rows(op, "residual", residual);
}

inline void check_weight(const char* op, const TensorView& weight, const TensorView& x) {
  check_same_device(op, "weight", weight, x);
  if (weight.dtype != x.dtype && weight.dtype != aoti_torch_dtype_float32()) {
    refuse(op, "weight", "dtype must be " + dtype_name(x.dtype) + " like x or float32",
           dtype_name(weight.dtype));
  }
  const int64_t hidden_size = x.sizes[x.dim() - 1];
  if (weight.dim() != 1 || weight.sizes[0] != hidden_size) {
    refuse(op, "weight", "shape must be [" + std::to_string(hidden_size) + "]",
           list_text(weight.sizes));
  }
  if (hidden_size > 1 && weight.strides[0] != 1) {
    refuse(op, "weight", "inner stride must be 1", std::to_string(weight.strides[0]));
  }
}

inline void check_scalars(const char* op, double eps, double weight_offset, bool has_weight) {
  // As the kernels take them: 1e39 is finite, but not as a float32.
  const auto finite = [](double value) { return std::isfinite(static_cast<float>(value)); };
  if (!(finite(eps) && eps >= 0.0)) {
    refuse(op, "eps", "must be finite as a float32 and at least 0", number_text(eps));
  }
  if (!finite(weight_offset)) {
    refuse(op, "weight_offset", "must be finite as a float32", number_text(weight_offset));
  }
  if (!has_weight && weight_offset != 0.0) {
    refuse(op, "weight_offset", "must be 0 without a weight", number_text(weight_offset));
  }
}

// The bytes that a tensor of rows touches: [begin, begin + extent), one run of row_bytes a period.
struct ByteRows {
  int64_t begin, row_bytes, period, num_rows;
  int64_t end() const { return begin + (num_rows - 1) * period + row_bytes; }
};

inline bool may_overlap(const ByteRows& a, const ByteRows& b) {
  if (a.num_rows == 0 || b.num_rows == 0) return false;
  if (a.end() <= b.begin || b.end() <= a.begin) return false;
  // Interleaved rows, such as two column slices of one buffer, share a range and no byte of it.
  if (a.period == b.period && a.period > 0) {
    int64_t shift = (b.begin - a.begin) % a.period;
    if (shift < 0) shift += a.period;
    return !(shift >= a.row_bytes && shift + b.row_bytes <= a.period);
  }
  return true;
}

// In place: what is written may alias nothing else, itself included. Of a weight that there is not,
// the pointer is null.
inline void check_no_overlap(const char* op, const Rows& x, const Rows& residual, int64_t bytes,
                             const void* weight, int64_t weight_element_bytes) {
  const auto byte_rows = [&](const char* argument, const Rows& rows) {
    if (rows.num_tokens > 1 && rows.row_stride < rows.hidden_size) {
      refuse(op, argument, "rows must not overlap when written in place",
             "row stride " + std::to_string(rows.row_stride));
    }
    return ByteRows{reinterpret_cast<int64_t>(rows.data), rows.hidden_size * bytes,
                    rows.row_stride * bytes, rows.num_tokens};
  };
  const ByteRows x_bytes = byte_rows("x", x);
  const ByteRows residual_bytes = byte_rows("residual", residual);
  if (may_overlap(x_bytes, residual_bytes)) {
    refuse(op, "residual", "must not overlap x", "overlapping memory");
  }
  if (weight == nullptr) return;
  const int64_t weight_bytes = x.hidden_size * weight_element_bytes;
  for (const ByteRows& written : {x_bytes, residual_bytes}) {
    // A weight inside the gap between two rows would be odd but right; one row is one period.
    if (may_overlap(written,
                    {reinterpret_cast<int64_t>(weight), weight_bytes, written.period, 1})) {
      refuse(op, "weight", "must not overlap x or residual", "overlapping memory");
    }
  }
}

}  // namespace hp_norm

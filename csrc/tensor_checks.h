// Named checks of the operator's arguments. Every message has the form
//   hp_norm::op: argument: rule, got value
// hp_norm_plugin/checks.py says the same for fake tensors; tests/test_bad_input.py holds them
// equal.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <string>

namespace hp_norm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = torch::headeronly::IntHeaderOnlyArrayRef;

inline constexpr int64_t kMaxHiddenSize = 65536;

// A tensor whose leading dimensions are one dimension of rows.
struct Rows {
  const void* data;
  int64_t num_tokens;
  int64_t hidden_size;
  int64_t row_stride;  // elements
};

[[noreturn]] inline void refuse(const char* op, const char* argument, const std::string& rule,
                                const std::string& value) {
  throw std::runtime_error(std::string("hp_norm::") + op + ": " + argument + ": " + rule +
                           ", got " + value);
}

inline std::string dtype_name(ScalarType dtype) {
  switch (dtype) {
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
    default: return "dtype " + std::to_string(static_cast<int>(dtype));
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

inline bool same_values(const Ints& a, const Ints& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i]) return false;
  }
  return true;
}

inline int32_t device_type(const Tensor& tensor) {
  int32_t type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  return type;
}

inline std::string device_text(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.get_device_index());
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

inline Rows check_rows(const char* op, const char* argument, const Tensor& tensor) {
  const Ints sizes = tensor.sizes(), strides = tensor.strides();
  const int64_t hidden_size = sizes[sizes.size() - 1];
  const int64_t inner_stride = strides[sizes.size() - 1];
  if (hidden_size > 1 && inner_stride != 1) {
    refuse(op, argument, "inner stride must be 1", std::to_string(inner_stride));
  }
  const int64_t numel = tensor.numel();
  const int64_t num_tokens = numel / hidden_size;
  if (num_tokens == 0) return {tensor.data_ptr(), 0, hidden_size, hidden_size};
  const std::optional<int64_t> row_stride = flat_row_stride(sizes, strides);
  if (!row_stride.has_value()) {
    refuse(op, argument, "leading dimensions must flatten to rows without a copy",
           "shape " + list_text(sizes) + " with strides " + list_text(strides));
  }
  return {tensor.data_ptr(), num_tokens, hidden_size, *row_stride};
}

inline Rows check_x(const char* op, const Tensor& x) {
  const ScalarType dtype = x.scalar_type();
  if (dtype != ScalarType::BFloat16 && dtype != ScalarType::Half && dtype != ScalarType::Float) {
    refuse(op, "x", "dtype must be bfloat16, float16 or float32", dtype_name(dtype));
  }
  if (x.dim() < 1) refuse(op, "x", "must have at least 1 dimension", std::to_string(x.dim()));
  const int64_t hidden_size = x.size(x.dim() - 1);
  if (hidden_size < 1 || hidden_size > kMaxHiddenSize) {
    refuse(op, "x", "hidden_size must be from 1 to " + std::to_string(kMaxHiddenSize),
           std::to_string(hidden_size));
  }
  return check_rows(op, "x", x);
}

inline void check_same_device(const char* op, const char* argument, const Tensor& tensor,
                              const Tensor& x) {
  if (device_type(tensor) != device_type(x) || tensor.get_device_index() != x.get_device_index()) {
    refuse(op, argument, "device must be " + device_text(x) + " like x", device_text(tensor));
  }
}

inline Rows check_residual(const char* op, const Tensor& residual, const Tensor& x) {
  check_same_device(op, "residual", residual, x);
  if (residual.scalar_type() != x.scalar_type()) {
    refuse(op, "residual", "dtype must be " + dtype_name(x.scalar_type()) + " like x",
           dtype_name(residual.scalar_type()));
  }
  if (!same_values(residual.sizes(), x.sizes())) {
    refuse(op, "residual", "shape must be " + list_text(x.sizes()) + " like x",
           list_text(residual.sizes()));
  }
  return check_rows(op, "residual", residual);
}

inline void check_weight(const char* op, const std::optional<Tensor>& weight, const Tensor& x) {
  if (!weight.has_value()) return;
  check_same_device(op, "weight", *weight, x);
  const ScalarType dtype = weight->scalar_type();
  if (dtype != x.scalar_type() && dtype != ScalarType::Float) {
    refuse(op, "weight", "dtype must be " + dtype_name(x.scalar_type()) + " like x or float32",
           dtype_name(dtype));
  }
  const int64_t hidden_size = x.size(x.dim() - 1);
  if (weight->dim() != 1 || weight->size(0) != hidden_size) {
    refuse(op, "weight", "shape must be [" + std::to_string(hidden_size) + "]",
           list_text(weight->sizes()));
  }
  if (hidden_size > 1 && weight->stride(0) != 1) {
    refuse(op, "weight", "inner stride must be 1", std::to_string(weight->stride(0)));
  }
}

inline void check_scalars(const char* op, double eps, double weight_offset, bool has_weight) {
  if (!(std::isfinite(eps) && eps >= 0.0)) {
    refuse(op, "eps", "must be finite and at least 0", number_text(eps));
  }
  if (!std::isfinite(weight_offset)) {
    refuse(op, "weight_offset", "must be finite", number_text(weight_offset));
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

// In place: what is written may alias nothing else, itself included.
inline void check_no_overlap(const char* op, const Rows& x, const Rows& residual, int64_t bytes,
                             const std::optional<Tensor>& weight) {
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
  if (!weight.has_value()) return;
  const int64_t weight_bytes =
      weight->numel() * (weight->scalar_type() == ScalarType::Float ? 4 : 2);
  const ByteRows weight_rows{reinterpret_cast<int64_t>(weight->data_ptr()), weight_bytes,
                             weight_bytes, 1};
  for (const ByteRows& written : {x_bytes, residual_bytes}) {
    // A weight inside the gap between two rows would be odd but right; one row is one period.
    if (may_overlap(written, {weight_rows.begin, weight_bytes, written.period, 1})) {
      refuse(op, "weight", "must not overlap x or residual", "overlapping memory");
    }
  }
}

}  // namespace hp_norm

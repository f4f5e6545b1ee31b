// The dtypes of rows that the kernels know, and what all backends have to know of each. What a
// vector of one is stands in cuda/vec.cuh and cpu/vectors.h; CONTRIBUTING.md says how to add one.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>

namespace hp_norm {

enum class DType { kBfloat16, kFloat16, kFloat32 };

struct DTypeFacts {
  DType dtype;
  int32_t (*torch_number)();  // by which torch knows it
  int64_t bytes;              // of an element
};

inline constexpr DTypeFacts kDTypes[] = {
    {DType::kBfloat16, aoti_torch_dtype_bfloat16, 2},
    {DType::kFloat16, aoti_torch_dtype_float16, 2},
    {DType::kFloat32, aoti_torch_dtype_float32, 4},
};

// Null for a dtype that the kernels do not know.
inline const DTypeFacts* find_dtype(int32_t torch_number) {
  for (const DTypeFacts& facts : kDTypes) {
    if (facts.torch_number() == torch_number) return &facts;
  }
  return nullptr;
}

}  // namespace hp_norm

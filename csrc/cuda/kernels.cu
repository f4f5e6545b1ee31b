// Instantiates the kernels for every dtype.
#include "kernel_table.cuh"
#include "kernels.h"

namespace hp_norm {
namespace {

template <typename T>
const void* find_for(const KernelKey& key) {
  if (key.weight_is_float32) {
    return key.add ? Kernels<T, float, true>::find(key.config)
                   : Kernels<T, float, false>::find(key.config);
  }
  return key.add ? Kernels<T, T, true>::find(key.config) : Kernels<T, T, false>::find(key.config);
}

}  // namespace

const void* find_kernel(const KernelKey& key) {
  switch (key.dtype) {
    case DType::kBfloat16: return find_for<__nv_bfloat16>(key);
    case DType::kFloat16: return find_for<__half>(key);
    default: return find_for<float>(key);
  }
}

}  // namespace hp_norm

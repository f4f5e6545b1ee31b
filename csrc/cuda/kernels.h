// The list of compiled kernels: which one serves a dtype and a launch configuration.
#pragma once

#include "../dtypes.h"
#include "launch_rules.h"

namespace hp_norm {

struct KernelKey {
  DType dtype;
  bool weight_is_float32;  // false: the weight is of x's dtype (or there is none)
  bool add;
  LaunchConfig config;
};

// The kernel's host symbol, or null where none is compiled for this key.
const void* find_kernel(const KernelKey& key);

}  // namespace hp_norm

// The operator schemas, declared once for every backend. hp_norm_plugin/ops.py documents them.
#include <torch/csrc/stable/library.h>

#define HP_NORM_OPTIONS "*, float weight_offset=0.0, bool round_before_weight=False"

STABLE_TORCH_LIBRARY(hp_norm, library) {
  library.def("rms_norm(Tensor x, Tensor? weight, float eps, " HP_NORM_OPTIONS ") -> Tensor");
  library.def(
      "fused_add_rms_norm(Tensor x, Tensor residual, Tensor? weight, float eps, " HP_NORM_OPTIONS
      ") -> (Tensor, Tensor)");
  library.def(
      "fused_add_rms_norm_(Tensor(a!) x, Tensor(b!) residual, Tensor? weight, float "
      "eps, " HP_NORM_OPTIONS ") -> ()");
}

// CPU implementation: rows in parallel, the widest instruction set that this processor has.
#include "../norm_call.h"
#include "row_kernel.h"

namespace hp_norm {
namespace {

RowKernel choose_row_kernel() {
#if defined(HP_NORM_X86)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    return __builtin_cpu_supports("avx512bf16") ? norm_rows_avx512bf16 : norm_rows_avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) return norm_rows_avx2;
#endif
  return norm_rows_baseline;
}

void run_cpu(const NormCall& call) {
  static const RowKernel kernel = choose_row_kernel();
  // A thread is worth waking for about 32 Ki elements (2 x Xeon cores, 2026-11-22: a 4096-wide row
  // takes about 1 us, a parallel region several).
  constexpr int64_t kElementsPerTask = 32768;
  const int64_t rows_per_task = 1 + (kElementsPerTask - 1) / call.hidden_size;
  if (call.num_tokens <= rows_per_task) {
    kernel(call, 0, call.num_tokens);
    return;
  }
  torch::stable::parallel_for(0, call.num_tokens, rows_per_task,
                              [&](int64_t begin, int64_t end) { kernel(call, begin, end); });
}

}  // namespace
}  // namespace hp_norm

STABLE_TORCH_LIBRARY_IMPL(hp_norm, CPU, library) {
  hp_norm::OpEntries<hp_norm::run_cpu>::register_impls(library);
}

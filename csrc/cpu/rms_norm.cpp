// CPU implementation: rows in parallel, the widest instruction set that this processor has.
#include <atomic>
#include <cstring>

#include "../norm_call.h"
#include "row_kernel.h"

namespace hp_norm {
namespace {

struct NamedKernel {
  const char* name;
  bool runs_here;
  RowKernel kernel;
};

// The best one first; setup.py says what each is compiled for.
const auto& row_kernels() {
#if defined(HP_NORM_X86)
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  static const bool avx512 =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  static const NamedKernel kernels[] = {
      {"avx512bf16", avx512 && __builtin_cpu_supports("avx512bf16"), norm_rows_avx512bf16},
      {"avx512", avx512, norm_rows_avx512},
      {"avx2", avx2, norm_rows_avx2},
      {"baseline", true, norm_rows_baseline},
  };
#else
  static const NamedKernel kernels[] = {{"baseline", true, norm_rows_baseline}};
#endif
  return kernels;
}

// The best kernel of this processor, or the one of that name; null where it does not run here.
RowKernel find_row_kernel(const char* name) {
  for (const NamedKernel& found : row_kernels()) {
    if (found.runs_here && (name == nullptr || std::strcmp(name, found.name) == 0)) {
      return found.kernel;
    }
  }
  return nullptr;
}

std::atomic<RowKernel>& row_kernel() {
  static std::atomic<RowKernel> kernel = find_row_kernel(nullptr);
  return kernel;
}

void run_cpu(const NormCall& call) {
  const RowKernel kernel = row_kernel().load(std::memory_order_relaxed);
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

// For tests: calls use the kernel of that name until it is called again with null. False, and
// nothing changed, where the name is unknown or this processor lacks the instructions.
extern "C" __attribute__((visibility("default"))) bool hp_norm_force_row_kernel(const char* name) {
  const hp_norm::RowKernel kernel = hp_norm::find_row_kernel(name);
  if (kernel != nullptr) hp_norm::row_kernel() = kernel;
  return kernel != nullptr;
}

STABLE_TORCH_LIBRARY_IMPL(hp_norm, CPU, library) {
  hp_norm::OpEntries<hp_norm::run_cpu>::register_impls(library);
}

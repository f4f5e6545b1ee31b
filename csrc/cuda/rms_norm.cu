// CUDA implementation: rule -> kernel -> launch -> error check. The checks come before, in
// norm_call.h.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>
#include <optional>

#include "../norm_call.h"
#include "kernels.h"
#include "launch_plan.h"
#include "row_steps.cuh"

namespace hp_norm {
namespace {

// Set by hp_norm_force_config: the configuration that this thread's calls use instead of the rules.
thread_local std::optional<LaunchConfig> forced_config;

void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("hp_norm: ") + what + ": " + cudaGetErrorString(error));
}

constexpr size_t kSharedBytesWithoutAsking = 48 << 10;

constexpr int kMaxDevices = 64;

struct Device {
  int32_t sm;  // 10 x major + minor, of the code that it runs if that is older; 0: not asked yet
  int32_t num_sms;
  int32_t max_shared_bytes;  // of a CTA that asks for more than kSharedBytesWithoutAsking
};

// By device: at which GPC its filled launches have the next grid begin (hp_norm_set_first_gpc).
std::array<std::atomic<int32_t>, kMaxDevices> first_gpcs{};

int32_t device_attribute(cudaDeviceAttr attribute, int32_t device_index) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device_index), "device attributes");
  return value;
}

// The newest architecture whose rules the code for this device can follow: what the driver compiled
// from PTX of sm_80 knows neither clusters nor the wait for the grid before.
int32_t rules_sm(int32_t sm) {
  if (sm < kFirstWithClusters) return sm;
  const LaunchConfig any = narrow_config(sm, 1024);
  cudaFuncAttributes code;
  check_cuda(cudaFuncGetAttributes(&code, find_kernel({DType::kBfloat16, false, false, any})),
             "attributes of a kernel");
  return code.ptxVersion < kFirstWithClusters ? code.ptxVersion : sm;
}

// Called with the device current.
const Device& device_of(const char* op, int32_t device_index) {
  static std::array<Device, kMaxDevices> known;
  static std::mutex mutex;
  if (device_index >= kMaxDevices) {
    refuse(op, "x", "device must have an index below " + std::to_string(kMaxDevices),
           std::to_string(device_index));
  }
  const std::lock_guard<std::mutex> lock(mutex);
  Device& device = known[device_index];
  if (device.sm == 0) {
    device.num_sms = device_attribute(cudaDevAttrMultiProcessorCount, device_index);
    device.max_shared_bytes =
        device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device_index);
    device.sm = rules_sm(10 * device_attribute(cudaDevAttrComputeCapabilityMajor, device_index) +
                         device_attribute(cudaDevAttrComputeCapabilityMinor, device_index));
  }
  return device;
}

// Programmatic dependent launch serves calls of up to this many tokens.
std::atomic<int64_t> dependent_launch_max_tokens = kNoLimit;

// The widest access of 32, 16, ... bytes that every one of the values is a multiple of.
int32_t common_alignment(std::initializer_list<uint64_t> values) {
  uint64_t bits = 32;
  for (const uint64_t value : values) bits |= value;
  return static_cast<int32_t>(bits & -bits);
}

struct Alignment {
  int32_t rows;
  int32_t weight;
};

Alignment alignment_of(const NormCall& call) {
  const auto address = [](const void* pointer) { return reinterpret_cast<uint64_t>(pointer); };
  const auto bytes = [&](int64_t elements) {
    return static_cast<uint64_t>(elements * call.elem_bytes);
  };
  // One row has no stride to step over.
  const bool many = call.num_tokens > 1;
  const auto stride = [&](int64_t elements) { return many ? bytes(elements) : 0; };
  const int32_t rows = common_alignment(
      {address(call.x), address(call.residual), address(call.out), address(call.residual_out),
       stride(call.x_stride), stride(call.residual_stride), stride(call.out_stride),
       stride(call.residual_out_stride), bytes(call.hidden_size)});
  const int32_t weight = common_alignment(
      {address(call.weight), static_cast<uint64_t>(call.hidden_size * call.weight_elem_bytes)});
  return {rows, weight};
}

LaunchConfig choose_config(const NormCall& call, int32_t sm, const Alignment& alignment) {
  const int64_t row_bytes = call.hidden_size * call.elem_bytes;
  // Weights are read 16 bytes at a time beside vectors of any width; below that all is narrow, and
  // so is what the other kernels' 32-bit row numbers and pitches cannot count, and what they have
  // no code for.
  const bool counts = call.num_tokens <= INT32_MAX &&
                      std::max({call.x_stride, call.residual_stride, call.out_stride,
                                call.residual_out_stride}) <= UINT32_MAX / call.elem_bytes;
  const bool usual = call.weight != nullptr && !call.round_before_weight;
  const int32_t access_bytes = usual && counts && alignment.weight >= 16 ? alignment.rows : 8;
  if (forced_config.has_value()) {
    const LaunchConfig& config = *forced_config;
    const bool any_access = config.options & (kNarrow | kReread);
    const bool clusters = config.ctas_per_row > 1 || (config.options & kPairCtas);
    if (!is_valid(config, row_bytes) || (clusters && sm < kFirstWithClusters) ||
        (!any_access && access_bytes < config.vec_bytes)) {
      throw std::runtime_error("hp_norm: the forced launch configuration cannot take these rows");
    }
    return config;
  }
  const RuleOp op = call.residual == nullptr ? kPlainOp : kAddOp;
  return choose_launch(sm, op, row_bytes, call.num_tokens, access_bytes).config;
}

NormParams make_params(const NormCall& call, const LaunchConfig& config, const LaunchShape& shape,
                       const Alignment& alignment, int32_t num_sms) {
  NormParams p{};
  p.x = call.x;
  p.residual = call.residual;
  p.weight = call.weight;
  p.out = call.out;
  p.residual_out = call.residual_out;
  const int64_t x_pitch = call.x_stride * call.elem_bytes;
  const int64_t residual_pitch = call.residual_stride * call.elem_bytes;
  p.x_pitch = Pitch::of(x_pitch);
  p.residual_pitch = Pitch::of(residual_pitch);
  p.out_pitch = Pitch::of(call.out_stride * call.elem_bytes);
  p.residual_out_pitch = Pitch::of(call.residual_out_stride * call.elem_bytes);
  p.num_tokens = call.num_tokens;
  p.hidden_size = static_cast<int32_t>(call.hidden_size);
  p.row_access_bytes = std::min(alignment.rows, 16);
  p.weight_access_bytes = std::min(alignment.weight, 16);
  p.inverse_size = static_cast<float>(1.0 / static_cast<double>(call.hidden_size));
  p.eps = call.eps;
  p.weight_offset = call.weight_offset;
  p.round_before_weight = call.round_before_weight;
  plan_row(p, config, shape);
  plan_prefetch(p, config, shape, num_sms, call.elem_bytes, x_pitch, residual_pitch);
  return p;
}

void run_cuda(const NormCall& call) {
  const torch::stable::accelerator::DeviceGuard guard(call.device_index);
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(call.device_index, &stream));

  const Device& device = device_of(call.op, call.device_index);
  const int32_t sm = device.sm;
  const Alignment alignment = alignment_of(call);
  const LaunchConfig config = choose_config(call, sm, alignment);
  const LaunchShape shape = launch_shape(config, call.hidden_size * call.elem_bytes);
  const void* kernel =
      find_kernel({call.dtype, call.weight_is_float32, call.residual != nullptr, config});
  NormParams params = make_params(call, config, shape, alignment, device.num_sms);

  const int64_t ctas = ceil_div(call.num_tokens, config.rows_per_cta) * config.ctas_per_row;
  if (ctas > INT32_MAX) {
    refuse(call.op, "x", "must have fewer rows: a CUDA launch takes 2147483647 CTAs",
           std::to_string(call.num_tokens));
  }
  const bool dependent = sm >= kFirstWithClusters && call.num_tokens <= dependent_launch_max_tokens;
  cudaLaunchAttribute attributes[kMaxLaunchAttributes];
  cudaLaunchConfig_t launch = plan_launch(params, config, shape, device.num_sms,
                                          first_gpcs[call.device_index], dependent, attributes);
  if (launch.dynamicSmemBytes > kSharedBytesWithoutAsking) {
    // The limit is the function's, for all threads: so it is the same in every call.
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    device.max_shared_bytes),
               "shared memory of a staged row");
  }
  launch.stream = static_cast<cudaStream_t>(stream);
  void* arguments[] = {&params};
  check_cuda(cudaLaunchKernelExC(&launch, kernel, arguments), "kernel launch");
}

}  // namespace
}  // namespace hp_norm

// For tests and tuning: this thread's calls use `config` until it is called again with null.
extern "C" __attribute__((visibility("default"))) void hp_norm_force_config(
    const hp_norm::LaunchConfig* config) {
  hp_norm::forced_config = config == nullptr ? std::nullopt : std::make_optional(*config);
}

// Calls of more than `max_tokens` tokens launch only when the kernel before has ended.
extern "C" __attribute__((visibility("default"))) void hp_norm_limit_dependent_launch(
    int64_t max_tokens) {
  hp_norm::dependent_launch_max_tokens = max_tokens;
}

// Filled launches on this device have the next grid begin at this GPC. A CUDA graph keeps what was
// set when it was captured.
extern "C" __attribute__((visibility("default"))) void hp_norm_set_first_gpc(int32_t device_index,
                                                                             int32_t gpc) {
  hp_norm::first_gpcs.at(device_index) = gpc;
}

STABLE_TORCH_LIBRARY_IMPL(hp_norm, CUDA, library) {
  hp_norm::OpEntries<hp_norm::run_cuda>::register_impls(library);
}

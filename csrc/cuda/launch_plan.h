// How a configuration is launched and what it starts ahead, L2 requests and the next grid: the
// host's side of rms_norm.cuh, for the launcher and the benchmarks.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "launch_rules.h"
#include "reduce.cuh"
#include "row_steps.cuh"

namespace hp_norm {

// How a row is divided, and when the next grid may start.
inline void plan_row(NormParams& p, const LaunchConfig& config, const LaunchShape& shape) {
  p.vecs_per_row = shape.vecs_per_row;
  p.ctas_per_row = config.ctas_per_row;
  p.padded_chunks = padded_chunks(shape.chunks_per_row);
  p.trigger_early = config.options & kTriggerEarly;
  p.trigger_after_loads = !(config.options & (kTriggerEarly | kTriggerAtEnd));
}

// Fills the prefetch fields of `p` for a launch on `num_sms` SMs, from rows every x_pitch and
// residual_pitch bytes.
inline void plan_prefetch(NormParams& p, const LaunchConfig& config, const LaunchShape& shape,
                          int32_t num_sms, int64_t elem_bytes, int64_t x_pitch,
                          int64_t residual_pitch) {
  const int64_t rows = config.rows_per_cta;
  const int64_t row_bytes = p.hidden_size * elem_bytes;
  // Requests never reach past the last row: a CTA that is not full asks for nothing.
  const auto request = [&](int64_t pitch) {
    return static_cast<uint32_t>(pitch == row_bytes ? rows * row_bytes : row_bytes);
  };
  p.x_request_bytes = request(x_pitch);
  p.residual_request_bytes = request(residual_pitch);
  if (config.options & (kNarrow | kReread)) return;
  if (config.options & kPrefetchResidual) {
    const int64_t threads = int64_t{shape.threads_per_cta} * config.ctas_per_row;
    p.first_wave_groups =
        static_cast<uint32_t>(std::min(num_sms * kThreadsPerSm / threads, p.num_tokens / rows));
  }
  if (config.options & kPrefetchAhead) {
    const bool kept = config.options & kKeepAhead;
    const int64_t ahead =
        ceil_div(kept ? kKeptAheadBytes : kAheadBytes, row_bytes * (p.residual != nullptr ? 2 : 1));
    p.ahead_policy = kept ? kEvictLast : kEvictNormal;
    p.groups_with_ahead = static_cast<uint32_t>(std::max<int64_t>(0, p.num_tokens - ahead) / rows);
    p.x_ahead = ahead * x_pitch;
    p.residual_ahead = ahead * residual_pitch;
  }
}

inline constexpr int kMaxLaunchAttributes = 3;

// Grid, CTA, shared memory and attributes of a launch on `num_sms` SMs, which `attributes` must
// outlive. first_gpc: where a filled launch has the next grid begin. dependent: it may start before
// the kernel before has ended.
inline cudaLaunchConfig_t plan_launch(const NormParams& p, const LaunchConfig& config,
                                      const LaunchShape& shape, int32_t num_sms, int32_t first_gpc,
                                      bool dependent,
                                      cudaLaunchAttribute (&attributes)[kMaxLaunchAttributes]) {
  const unsigned ctas_per_row = config.ctas_per_row;
  cudaLaunchConfig_t launch{};
  launch.gridDim =
      dim3(static_cast<unsigned>(ceil_div(p.num_tokens, config.rows_per_cta)) * ctas_per_row);
  launch.blockDim = dim3(shape.threads_per_row, config.rows_per_cta);
  launch.dynamicSmemBytes = sizeof(float) * p.padded_chunks * config.rows_per_cta +
                            stage_bytes(config, shape, p.residual != nullptr);
  if (config.options & kTwoPerSm) {
    launch.dynamicSmemBytes = std::max<size_t>(launch.dynamicSmemBytes, kTwoPerSmBytes);
  }
  launch.attrs = attributes;
  if (dependent) {
    attributes[launch.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[launch.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  const bool pairs = (config.options & kPairCtas) && launch.gridDim.x % kPair == 0;
  const unsigned cluster = pairs ? kPair : ctas_per_row;
  if (cluster > 1) {
    attributes[launch.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[launch.numAttrs++].val.clusterDim = {cluster, 1, 1};
    if ((config.options & kFillGpu) && p.residual != nullptr) {
      const unsigned clusters = num_sms * kFillCtasPerSm / ctas_per_row + first_gpc;
      launch.gridDim.x = std::max(launch.gridDim.x, clusters * ctas_per_row);
      attributes[launch.numAttrs].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
      attributes[launch.numAttrs++].val.sharedMemCarveout = kFillSharedPercent;
    }
  }
  return launch;
}

}  // namespace hp_norm

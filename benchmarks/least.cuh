// Kernels that show what a norm cannot undercut: no features, no fixed order of the sum, little
// code. One row a CTA, one 16-byte vector a thread, bf16, in place.
#pragma once

#include "reduce.cuh"
#include "row_steps.cuh"

namespace hp_norm::bench {

// When the next grid may start: before griddepcontrol.wait, behind it, or as the CTAs end.
enum class Trigger { kAtStart, kEarly, kAtEnd };

template <Trigger kTrigger>
__device__ __forceinline__ void wait_in_turn() {
  if (kTrigger == Trigger::kAtStart) launch_dependent_grid();
  wait_for_primary_grid();
  if (kTrigger == Trigger::kEarly) launch_dependent_grid();
}

// The norm without what the contract asks for.
template <Trigger kTrigger>
__global__ void __launch_bounds__(1024) least_norm(uint4* x, uint4* residual, const uint4* weight) {
  __shared__ float warp_sums[32];
  const size_t at = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  wait_in_turn<kTrigger>();
  const uint4 added[2] = {x[at], residual[at]};
  const uint4 factors = weight[threadIdx.x];
  const auto pair = [](const uint4& vec, int k) {
    return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162*>(&vec)[k]);
  };
  uint4 rounded;
  float h[8], sum = 0.0f;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float2 a = pair(added[0], k), b = pair(added[1], k);
    h[2 * k] = a.x + b.x;
    h[2 * k + 1] = a.y + b.y;
    sum += h[2 * k] * h[2 * k] + h[2 * k + 1] * h[2 * k + 1];
    reinterpret_cast<__nv_bfloat162*>(&rounded)[k] = __floats2bfloat162_rn(h[2 * k], h[2 * k + 1]);
  }
  residual[at] = rounded;
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) sum += __shfl_xor_sync(kFullWarp, sum, bit);
  const int lane = threadIdx.x % 32;
  if (lane == 0) warp_sums[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = lane < blockDim.x / 32 ? warp_sums[lane] : 0.0f;
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) sum += __shfl_xor_sync(kFullWarp, sum, bit);
  const float rstd = rsqrtf(sum / (8 * blockDim.x) + 1e-6f);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float2 factor = pair(factors, k);
    reinterpret_cast<__nv_bfloat162*>(&rounded)[k] =
        __floats2bfloat162_rn(h[2 * k] * rstd * factor.x, h[2 * k + 1] * rstd * factor.y);
  }
  x[at] = rounded;
}

// The same bytes without a sum.
template <Trigger kTrigger>
__global__ void __launch_bounds__(1024) move_rows(uint4* x, uint4* residual, const uint4* weight) {
  const size_t at = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  wait_in_turn<kTrigger>();
  uint4 a = x[at], b = residual[at];
  const uint4 factors = weight[threadIdx.x];
  a.x ^= factors.x;
  b.y ^= factors.y;
  a.z ^= b.z;
  b.w ^= a.w;
  residual[at] = b;
  x[at] = a;
}

// Nothing.
template <Trigger kTrigger>
__global__ void empty_rows(uint4*, uint4*, const uint4*) {
  wait_in_turn<kTrigger>();
}

}  // namespace hp_norm::bench

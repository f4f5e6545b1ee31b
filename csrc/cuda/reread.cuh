// The kernel for rows that neither a CTA's registers hold nor a cluster (before sm_90 there are
// none): the row is read again from L2 for the second pass. One CTA a row, any alignment.
#pragma once

#include "launch_rules.h"
#include "reduce.cuh"
#include "row_steps.cuh"

namespace hp_norm {

template <typename T, typename W, int kElems, bool kAdd>
__global__ void __launch_bounds__(kRereadThreads)
    rms_norm_reread_kernel(const __grid_constant__ NormParams p) {
  extern __shared__ __align__(16) float chunk_sums[];  // [padded_chunks]
  const int lane = threadIdx.x % 32;
  const int64_t row = blockIdx.x;
  const int chunks = (p.vecs_per_row + 31) / 32;
  const auto* x = reinterpret_cast<const T*>(p.x_pitch.row_of(static_cast<const char*>(p.x), row));
  const auto* residual = reinterpret_cast<const T*>(
      p.residual_pitch.row_of(static_cast<const char*>(p.residual), row));
  auto* out = reinterpret_cast<T*>(p.out_pitch.row_of(static_cast<char*>(p.out), row));
  auto* residual_out =
      reinterpret_cast<T*>(p.residual_out_pitch.row_of(static_cast<char*>(p.residual_out), row));
  const auto load_sum = [&](float (&h)[kElems], int vec) {
    const auto load = [&](const T* from) {
      return load_vec<RowAccess::kNarrow, T, kElems>(from, vec * kElems, true, p.hidden_size,
                                                     p.row_access_bytes);
    };
    load(x).unpack(h);
    if constexpr (kAdd) add_residual(h, load(residual));
  };
  const auto store_rounded = [&](T* to, const float (&values)[kElems], int vec) {
    Vec<T, kElems> rounded;
    rounded.pack(values);
    store_vec<RowAccess::kNarrow>(to, rounded, vec * kElems, true, p.hidden_size,
                                  p.row_access_bytes);
  };

  wait_for_primary_grid();
  for (int chunk = threadIdx.x / 32; chunk < p.padded_chunks; chunk += blockDim.x / 32) {
    float h[kElems] = {};
    const int vec = chunk * 32 + lane;
    if (chunk < chunks && vec < p.vecs_per_row) load_sum(h, vec);
    float sum[1] = {sum_squares(h)};
    const float chunk_sum = warp_chunk_sums(sum, lane);
    if (lane == 0) chunk_sums[chunk] = chunk_sum;
  }
  __syncthreads();
  const float rstd =
      reciprocal_std(total_of_chunks<16, kMaxSharedChunks / kWarp>(chunk_sums, chunks, lane), p);
  for (int vec = threadIdx.x; vec < p.vecs_per_row; vec += blockDim.x) {
    float h[kElems];
    load_sum(h, vec);
    if constexpr (kAdd) store_rounded(residual_out, h, vec);
    Vec<W, kElems> weight_vec;
    const W* weight = static_cast<const W*>(p.weight);
    if (weight != nullptr) load_weight<true>(weight_vec, weight, vec * kElems, true, p);
    normalize<true, true>(h, rstd, weight_vec, p);
    store_rounded(out, h, vec);
  }
}

}  // namespace hp_norm

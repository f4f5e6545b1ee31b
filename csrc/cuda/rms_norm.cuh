// The kernel: one row is read once, held on the SM, and written once. Four steps: load, add, sum,
// normalise and store; row_steps.cuh says what each computes.
#pragma once

#include "cluster.cuh"
#include "launch_rules.h"
#include "reduce.cuh"
#include "row_steps.cuh"

namespace hp_norm {

// Waits for the `threads` threads of one row of the CTA; ids 1 to 15 are the rows'.
__device__ __forceinline__ void row_barrier(int row_in_cta, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(row_in_cta + 1), "r"(threads) : "memory");
}

// How a row comes in and where it waits for its sum.
enum class RowPath {
  kWide,    // whole vectors, in registers
  kNarrow,  // accesses of any width, in registers
  kStaged,  // whole vectors, in shared memory: fewer registers, so that two long rows fit on an SM
};

// One row on threadIdx.x = 0 .. blockDim.x - 1 of one CTA or (kCluster) of the CTAs of a cluster;
// threadIdx.y is the row within the CTA. Vector v of the row belongs to chunk v / 32, and a CTA's
// chunks are contiguous.
template <typename T, typename W, int kElems, int kVecs, bool kAdd, bool kCluster, RowPath kPath>
__global__ void __launch_bounds__(kMaxThreadsPerCta)
    rms_norm_kernel(const __grid_constant__ NormParams p) {
  constexpr bool kNarrow = kPath == RowPath::kNarrow;
  constexpr bool kStaged = kPath == RowPath::kStaged;
  // Weights hide their latency behind the row's. With long rows a thread has registers for half
  // of them, behind the barrier; for none in a cluster, or where they are float32 beside 16-bit
  // rows.
  constexpr bool kWeightsWithRow = kVecs <= 2 && kElems * kVecs <= 16;
  constexpr bool kFewRegisters = kCluster || sizeof(W) > sizeof(T);
  constexpr int kEarlyWeights = kWeightsWithRow ? kVecs
                                : kFewRegisters ? 0
                                : kStaged       ? kVecs / 2
                                                : kVecs / 2;
  // [rows_per_cta][padded_chunks], and behind it (kStaged) x [kVecs][blockDim.x] and the residual.
  extern __shared__ __align__(16) float shared_sums[];

  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int warps = blockDim.x / 32;
  const int rank = kCluster ? cluster_rank() : 0;
  const int64_t row_group = kCluster ? blockIdx.x / p.ctas_per_row : blockIdx.x;
  const int64_t row = row_group * blockDim.y + threadIdx.y;
  const int first_vec = rank * kVecs * blockDim.x + threadIdx.x;
  const int first_chunk = rank * kVecs * warps + warp;
  const int chunks_per_row = kVecs * warps * (kCluster ? p.ctas_per_row : 1);
  float* chunk_sums = shared_sums + threadIdx.y * p.padded_chunks;
  if (row >= p.num_tokens) return;

  for (int slot = chunks_per_row + threadIdx.x; slot < p.padded_chunks; slot += blockDim.x) {
    chunk_sums[slot] = 0.0f;
  }
  if constexpr (kCluster) cluster_sums_prepare(chunks_per_row);
  const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
  const T* residual = static_cast<const T*>(p.residual) + row * p.residual_stride;
  T* out = static_cast<T*>(p.out) + row * p.out_stride;
  T* residual_out = static_cast<T*>(p.residual_out) + row * p.residual_out_stride;
  const W* weight = static_cast<const W*>(p.weight);
  if constexpr (kVecs <= 2) settle(x, residual, out, residual_out, weight);

  const bool first_thread_of_row = threadIdx.x == 0 && rank == 0;
  const uint32_t row_bytes = p.hidden_size * static_cast<uint32_t>(sizeof(T));
  if (kAdd && !kNarrow && first_thread_of_row && row < p.first_wave_rows) {
    prefetch_to_l2(residual, row_bytes);
  }
  if (!kNarrow && first_thread_of_row && row == 0 && weight != nullptr) {
    // In a model the weight comes from DRAM: the layers' matrices have pushed it out of L2.
    prefetch_to_l2(weight, p.hidden_size * static_cast<uint32_t>(sizeof(W)));
  }
  wait_for_primary_grid();
  if (p.trigger_early) launch_dependent_grid();
  if (!kNarrow && first_thread_of_row && p.ahead_rows > 0 && row + p.ahead_rows < p.num_tokens) {
    prefetch_to_l2(x + p.ahead_rows * p.x_stride, row_bytes);
    if constexpr (kAdd) prefetch_to_l2(residual + p.ahead_rows * p.residual_stride, row_bytes);
  }

  // Load: every access of the row is in flight before the first is used.
  constexpr int kHeld = kStaged ? 1 : kVecs;  // vectors in registers at a time
  Vec<T, kElems> x_vec[kHeld] = {};
  Vec<T, kElems> residual_vec[kHeld] = {};
  Vec<W, kElems> weight_vec[kVecs];
  uint4* const staged_x = reinterpret_cast<uint4*>(shared_sums + p.padded_chunks) + threadIdx.x;
  uint4* const staged_residual = staged_x + kVecs * blockDim.x;
  const auto load_weights = [&](int first, int last) {
#pragma unroll
    for (int i = first; i < last; ++i) {
      const int vec = first_vec + i * blockDim.x;
      if (vec < p.vecs_per_row && weight != nullptr) {
        load_weight<kNarrow>(weight_vec[i], weight, vec * kElems, p);
      }
    }
  };
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const int vec = first_vec + i * blockDim.x;
    if constexpr (kStaged) {
      if (vec < p.vecs_per_row) {
        copy_to_shared_async(staged_x + i * blockDim.x, x + vec * kElems);
        if constexpr (kAdd) {
          copy_to_shared_async(staged_residual + i * blockDim.x, residual + vec * kElems);
        }
      }
      // Two groups: the first half of the row is added while the second arrives.
      if (i == kVecs / 2 - 1 || i == kVecs - 1) commit_async_copies();
    } else if (vec < p.vecs_per_row) {
      x_vec[i] = load_vec<kNarrow, T, kElems>(x, vec * kElems, p.hidden_size, p.row_access_bytes);
      if constexpr (kAdd) {
        residual_vec[i] =
            load_vec<kNarrow, T, kElems>(residual, vec * kElems, p.hidden_size, p.row_access_bytes);
      }
    }
  }
  if constexpr (kWeightsWithRow) load_weights(0, kVecs);
  if (!p.trigger_early) launch_dependent_grid();

  // Add, keep the sum unrounded, store it rounded. A staged row is added once for each pass.
  float h_of[kHeld][kElems];
  const auto add = [&](int i) {
    const int held = kStaged ? 0 : i;
    if constexpr (kStaged) {
      const bool in_row = first_vec + i * blockDim.x < p.vecs_per_row;
      x_vec[0].load_shared(staged_x + i * blockDim.x, in_row);
      if constexpr (kAdd) residual_vec[0].load_shared(staged_residual + i * blockDim.x, in_row);
    }
    x_vec[held].unpack(h_of[held]);
    if constexpr (kAdd) add_residual(h_of[held], residual_vec[held]);
  };
  float sums[kVecs];
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    if (kStaged && i == 0) wait_for_async_copies<1>();
    if (kStaged && i == kVecs / 2) wait_for_async_copies<0>();
    add(i);
    const float (&h)[kElems] = h_of[kStaged ? 0 : i];
    if constexpr (kAdd) {
      const int vec = first_vec + i * blockDim.x;
      if (vec < p.vecs_per_row) {
        Vec<T, kElems> rounded;
        rounded.pack(h);
        store_vec<kNarrow>(residual_out, rounded, vec * kElems, p.hidden_size, p.row_access_bytes);
      }
    }
    sums[i] = sum_squares(h);
  }

  // Sum: each warp publishes its chunks' sums, and every thread adds those of the whole row.
  float total = warp_chunk_sums(sums, lane);
  if constexpr (kCluster) {
    cluster_sums_push<kVecs>(chunk_sums, total, first_chunk, warps, p.ctas_per_row, lane);
  } else if (warps > 1 && lane < kVecs) {
    chunk_sums[first_chunk + lane * warps] = total;
  }
  if constexpr (!kWeightsWithRow) load_weights(0, kEarlyWeights);
  if (kCluster || warps > 1) {
    if constexpr (kCluster) {
      cluster_sums_wait();
    } else {
      row_barrier(threadIdx.y, blockDim.x);
    }
    total = total_of_chunks<(kVecs <= 2)>(chunk_sums, chunks_per_row, lane);
  } else {
#pragma unroll
    for (int bit = 1; bit < kVecs; bit *= 2) total = add_across(total, bit);
  }
  const float rstd = reciprocal_std(total, p);

  // Normalise and store.
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const int vec = first_vec + i * blockDim.x;
    if (vec >= p.vecs_per_row) continue;
    if (i >= kEarlyWeights) load_weights(i, i + 1);
    if constexpr (kStaged) add(i);
    float (&h)[kElems] = h_of[kStaged ? 0 : i];
    normalize(h, rstd, weight_vec[i], p);
    Vec<T, kElems> rounded;
    rounded.pack(h);
    store_vec<kNarrow>(out, rounded, vec * kElems, p.hidden_size, p.row_access_bytes);
  }
}

}  // namespace hp_norm

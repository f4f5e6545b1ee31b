// The kernel: one row is read once, held on the SM, and written once. Four steps: load, add, sum,
// normalise and store; row_steps.cuh says what each computes.
#pragma once

#include <type_traits>

#include "cluster.cuh"
#include "launch_rules.h"
#include "reduce.cuh"
#include "row_path.cuh"
#include "row_steps.cuh"

namespace hp_norm {

// Waits for the `threads` threads of one row of the CTA; ids 1 to 15 are the rows'.
__device__ __forceinline__ void row_barrier(int row_in_cta, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(row_in_cta + 1), "r"(threads) : "memory");
}

// One row on threadIdx.x = 0 .. blockDim.x - 1 of one CTA or (kCluster) of the CTAs of a cluster;
// threadIdx.y is the row within the CTA. Vector v of the row belongs to chunk v / 32, and a CTA's
// chunks are contiguous.
template <typename T, typename W, int kElems, int kVecs, bool kAdd, bool kCluster, RowPath kPath>
__global__ void __maxnreg__(max_registers(kPath, kVecs * kElems * int(sizeof(T)) / 16, kAdd,
                                          kCluster, sizeof(W) > sizeof(T)))
    rms_norm_kernel(const __grid_constant__ NormParams p) {
  constexpr bool kNarrow = kPath == RowPath::kNarrow;
  constexpr bool kCached = kPath == RowPath::kCached;
  constexpr bool kKept =
      kPath == RowPath::kKept || kPath == RowPath::kLean || kPath == RowPath::kStagedKept;
  constexpr bool kOnce = kPath == RowPath::kStagedOnce;
  constexpr bool kStaged = kPath == RowPath::kStaged || kPath == RowPath::kStagedKept || kOnce;
  constexpr bool kSeveralRows = !kCluster && (kPath == RowPath::kRows || kNarrow);
  constexpr RowAccess kAccess = kNarrow   ? RowAccess::kNarrow
                                : kCached ? RowAccess::kCached
                                          : RowAccess::kStreamed;
  constexpr RowAccess kOutAccess = kKept ? RowAccess::kKept : kAccess;
  // The plain norm's cached kernel takes 1.5 to 3 % longer with a policy in its code, also where it
  // asks for nothing (H200, 2026-11-28, docs/notes/2026-11-28-requests-kept.md).
  constexpr bool kNamesPolicy = kAdd || !kCached;
  // The launcher sends rows or pitches that 32 bits do not count to the narrow kernel.
  using Index = std::conditional_t<kNarrow, int64_t, uint32_t>;
  // Weights hide their latency behind the row's. With long rows a thread has registers for half
  // of them, before the barrier; for one in a cluster, for none where they are float32 beside
  // 16-bit rows. Staged rows leave room for more, which is up to 20 % faster where rows come from
  // L2; but a fused add that streams from DRAM loses 3 to 8 % by them, as two CTAs no longer fit on
  // an SM (H200, 2026-11-26).
  constexpr bool kWideWeights = sizeof(W) > sizeof(T);
  constexpr bool kWeightsWithRow = kVecs <= 2 && kElems * kVecs <= 16;
  constexpr int kEarlyWeights = kWeightsWithRow    ? kVecs
                                : kWideWeights     ? 0
                                : kCluster         ? 1
                                : !kStaged || kAdd ? kVecs / 2
                                : kVecs == 8       ? kVecs - 2
                                                   : kVecs - 1;
  constexpr int kBroadcast = kVecs > 2 ? 0 : kCluster ? 32 : 16;
  // Chunk sums that a lane adds: a CTA has at most 32 warps.
  constexpr int kLongestRun = kCluster || kNarrow ? kMaxSharedChunks / kWarp : kVecs;
  // [rows_per_cta][padded_chunks], and behind it (kStaged) x [kVecs][blockDim.x] and the residual.
  extern __shared__ __align__(16) float shared_sums[];

  // In a model every call finds its code in DRAM, not in a cache: the matrices of the layers have
  // pushed it out. So the loads come first, and all that can wait is computed while they are in
  // flight (docs/notes/2026-11-24-cold-code.md).
  const int rank = kCluster ? cluster_rank() : 0;
  const Index row_group = kCluster ? cluster_id() : blockIdx.x;
  const Index first_row = kSeveralRows ? row_group * blockDim.y : row_group;
  const int row_in_cta = kSeveralRows ? threadIdx.y : 0;
  const Index row = first_row + row_in_cta;
  if (kSeveralRows && row >= static_cast<Index>(p.num_tokens)) return;
  if (kCluster && kAdd && row >= static_cast<Index>(p.num_tokens)) return fill_place();
  const auto* const x_bytes = static_cast<const char*>(p.x);
  const auto* const residual_bytes = static_cast<const char*>(p.residual);
  const char* const x_of_cta = p.x_pitch.row_of(x_bytes, first_row);
  const char* const residual_of_cta = p.residual_pitch.row_of(residual_bytes, first_row);
  const T* x = reinterpret_cast<const T*>(p.x_pitch.row_of(x_bytes, row));
  const T* residual = reinterpret_cast<const T*>(p.residual_pitch.row_of(residual_bytes, row));
  const W* weight = static_cast<const W*>(p.weight);
  const int first_vec = rank * kVecs * blockDim.x + threadIdx.x;
  const int warps = blockDim.x / kWarp;
  // A short row publishes the sums of 8 or 16 lanes instead of whole chunks: fewer shuffles.
  constexpr bool kParts = kVecs == 1 && !kCluster;
  const int log2_lanes = kParts ? log2_lanes_per_sum(warps) : 5;
  const int sums_of_row = kParts     ? blockDim.x >> log2_lanes
                          : kCluster ? kVecs * warps * p.ctas_per_row
                                     : kVecs * warps;
  float* const chunk_sums = shared_sums + row_in_cta * p.padded_chunks;
  const auto clear_unused_slots = [&] {
    // Never more slots than threads: kVecs * ctas_per_row is at most 32.
    const int slot = sums_of_row + threadIdx.x;
    if (slot < p.padded_chunks) chunk_sums[slot] = 0.0f;
  };
  if constexpr (kCluster) {
    // The cluster's barrier orders the slots before the sums are read; in one CTA the row's does.
    clear_unused_slots();
    cluster_sums_prepare(sums_of_row);
  }

  // One thread asks for all rows of the CTA, from addresses that are the same for every thread:
  // ptxas needs a loop for others.
  const bool asks = threadIdx.x == 0 && row_in_cta == 0 && rank == 0;
  if (!kNarrow && asks && row_group < p.first_wave_groups) {
    if constexpr (kAdd) prefetch_to_l2(residual_of_cta, p.residual_request_bytes);
    if (row_group == 0) prefetch_to_l2(weight, p.hidden_size * static_cast<uint32_t>(sizeof(W)));
  }
  if constexpr (kWeightsWithRow) {
    const int element = first_vec * kElems;
    settle(x + element, residual + element, weight + element);
  }
  wait_for_primary_grid();
  if (p.trigger_early) launch_dependent_grid();

  // Load: every access of the row is in flight before the first is used.
  constexpr int kHeld = kStaged ? 1 : kVecs;  // vectors in registers at a time
  Vec<T, kElems> x_vec[kHeld];
  Vec<T, kElems> residual_vec[kHeld];
  Vec<W, kElems> weight_vec[kVecs];
  uint4* const staged_x = reinterpret_cast<uint4*>(shared_sums + p.padded_chunks) + threadIdx.x;
  uint4* const staged_residual = staged_x + kVecs * blockDim.x;
  const auto load_weights = [&](const W* from, int first, int last) {
#pragma unroll
    for (int i = first; i < last; ++i) {
      const int vec = first_vec + i * blockDim.x;
      if (kNarrow && from == nullptr) continue;
      load_weight<kNarrow>(weight_vec[i], from, vec * kElems, vec < p.vecs_per_row, p);
    }
  };
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const int vec = first_vec + i * blockDim.x;
    if constexpr (kStaged) {
      const bool in_row = vec < p.vecs_per_row;
      copy_to_shared_async<kOnce>(staged_x + i * blockDim.x, x + vec * kElems, in_row);
      if constexpr (kAdd) {
        copy_to_shared_async<false>(staged_residual + i * blockDim.x, residual + vec * kElems,
                                    in_row);
      }
      // Two groups: the first half of the row is added while the second arrives.
      if (i == kVecs / 2 - 1 || i == kVecs - 1) commit_async_copies();
    } else {
      const auto load = [&](const T* from) {
        return load_vec<kAccess, T, kElems>(from, vec * kElems, vec < p.vecs_per_row, p.hidden_size,
                                            p.row_access_bytes);
      };
      x_vec[i] = load(x);
      if constexpr (kAdd) residual_vec[i] = load(residual);
    }
  }
  if constexpr (kWeightsWithRow) load_weights(weight, 0, kVecs);
  if (!kNarrow && !kCluster && asks && row_group < p.groups_with_ahead) {
    prefetch_to_l2<kNamesPolicy>(x_of_cta + p.x_ahead, p.x_request_bytes, p.ahead_policy);
    if constexpr (kAdd) {
      prefetch_to_l2<kNamesPolicy>(residual_of_cta + p.residual_ahead, p.residual_request_bytes,
                                   p.ahead_policy);
    }
  }
  if (p.trigger_after_loads) launch_dependent_grid();

  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int first_chunk = rank * kVecs * warps + warp;
  if constexpr (!kCluster) clear_unused_slots();
  T* const out = reinterpret_cast<T*>(p.out_pitch.row_of(static_cast<char*>(p.out), row));
  T* const residual_out =
      reinterpret_cast<T*>(p.residual_out_pitch.row_of(static_cast<char*>(p.residual_out), row));

  // Add, keep the sum unrounded, store it rounded. A staged row is added once for each pass.
  float h_of[kHeld][kElems];
  const auto add = [&](int i) {
    const int held = kStaged ? 0 : i;
    if constexpr (kStaged) {
      x_vec[0].load_shared(staged_x + i * blockDim.x);
      if constexpr (kAdd) residual_vec[0].load_shared(staged_residual + i * blockDim.x);
    }
    x_vec[held].unpack(h_of[held]);
    if constexpr (kAdd) add_residual(h_of[held], residual_vec[held]);
  };
  const auto store_rounded = [&](T* to, const float (&h)[kElems], int vec, auto access) {
    Vec<T, kElems> rounded;
    rounded.pack(h);
    store_vec<access>(to, rounded, vec * kElems, vec < p.vecs_per_row, p.hidden_size,
                      p.row_access_bytes);
  };
  const auto store_residual = [&](int i, const float (&h)[kElems]) {
    store_rounded(residual_out, h, first_vec + i * blockDim.x, Access<kAccess>{});
  };
  // Two vectors: the row's sum first, and the residual while the other warps bring theirs. 2 % at
  // 64 and 128 tokens; in clusters, and behind the barrier, slower (H100, 2026-11-25).
  constexpr bool kLateResidual = kVecs == 2 && !kCluster;
  float sums[kVecs];
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    if (kStaged && i == 0) wait_for_async_copies<1>();
    if (kStaged && i == kVecs / 2) wait_for_async_copies<0>();
    add(i);
    const float (&h)[kElems] = h_of[kStaged ? 0 : i];
    if constexpr (kAdd && !kLateResidual) store_residual(i, h);
    sums[i] = sum_squares(h);
  }

  // Sum: each warp publishes its chunks' sums, and every thread adds those of the whole row.
  float total = warp_chunk_sums(sums, lane, log2_lanes);
  if constexpr (kCluster) {
    cluster_sums_push<kVecs>(chunk_sums, total, first_chunk, warps, p.ctas_per_row, lane);
  } else if constexpr (kParts) {
    const int lanes = 1 << log2_lanes;
    if (warps > 1 && threadIdx.x % lanes == 0) chunk_sums[threadIdx.x >> log2_lanes] = total;
  } else if (warps > 1 && lane < kVecs) {
    chunk_sums[first_chunk + lane * warps] = total;
  }
  if constexpr (kAdd && kLateResidual) {
#pragma unroll
    for (int i = 0; i < kVecs; ++i) store_residual(i, h_of[i]);
  }
  if constexpr (!kWeightsWithRow) load_weights(weight, 0, kEarlyWeights);
  if (kCluster || warps > 1) {
    if constexpr (kCluster) {
      cluster_sums_wait();
    } else if constexpr (kSeveralRows) {
      row_barrier(row_in_cta, blockDim.x);
    } else {
      __syncthreads();
    }
    total = total_of_chunks<kBroadcast, kLongestRun>(chunk_sums, sums_of_row, lane);
  } else {
#pragma unroll
    for (int bit = 1; bit < kVecs; bit *= 2) total = add_across(total, bit);
  }
  const float rstd = reciprocal_std(total, p);

  // Normalise and store.
  // ptxas would compute the addresses of all the weights before the barrier, and keep them.
  const W* late_weight = weight;
  if constexpr (kEarlyWeights < kVecs) {
    asm volatile("mov.b64 %0, %1;" : "=l"(late_weight) : "l"(weight) : "memory");
  }
  // One vector ahead, where there are registers: a load behind a store would wait for it.
  constexpr int kAhead = kWideWeights ? 0 : 1;
  const auto finish = [&](auto has_offset) {
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      const int next = i + kAhead;
      if (next >= kEarlyWeights && next < kVecs) load_weights(late_weight, next, next + 1);
      if constexpr (kStaged) add(i);
      float (&h)[kElems] = h_of[kStaged ? 0 : i];
      normalize<kNarrow, has_offset>(h, rstd, weight_vec[i], p);
      store_rounded(out, h, first_vec + i * blockDim.x, Access<kOutAccess>{});
    }
  };
  // Few models have an offset; a tenth of the instructions is its addition (H200, 2026-11-26). With
  // 8 vectors a second copy of the loop would spill.
  if (kNarrow || kVecs > 4 || p.weight_offset != 0.0f) {
    finish(std::true_type{});
  } else {
    finish(std::false_type{});
  }
}

}  // namespace hp_norm

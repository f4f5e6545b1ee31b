// The kernels, on raw pointers. One row is read once, held in registers, and written once:
//
//   1. h = float32(x) + float32(residual); residual_out = round(h)
//   2. rstd = 1 / sqrt(mean(h * h) + eps), float32, over the unrounded h
//   3. y = round(h * rstd * (weight_offset + weight)); with round_before_weight, h * rstd is first
//      rounded to the weight's dtype and multiplied there
//   4. no weight: y = round(h * rstd)
#pragma once

#include "cluster.cuh"
#include "launch_rules.h"
#include "reduce.cuh"
#include "vec.cuh"

namespace hp_norm {

struct NormParams {
  const void* x;         // [num_tokens, hidden_size], row stride x_stride
  const void* residual;  // [num_tokens, hidden_size], row stride residual_stride
  const void* weight;    // [hidden_size], or null
  void* out;             // [num_tokens, hidden_size], row stride out_stride
  void* residual_out;    // [num_tokens, hidden_size], row stride residual_out_stride
  int64_t x_stride;      // strides count elements
  int64_t residual_stride;
  int64_t out_stride;
  int64_t residual_out_stride;
  int64_t num_tokens;
  int32_t hidden_size;
  int32_t vecs_per_row;
  int32_t ctas_per_row;
  int32_t padded_chunks;        // slots for the chunk sums of one row
  int32_t row_access_bytes;     // widest access that all rows allow (narrow kernels)
  int32_t weight_access_bytes;  // the same for the weight
  float inverse_size;           // float32(1 / hidden_size)
  float eps;
  float weight_offset;
  int32_t first_wave_rows;  // rows whose residual is asked for before the wait (0: none)
  int32_t ahead_rows;       // how far ahead of its row a CTA asks L2 for x and residual (0: not)
  bool round_before_weight;
  bool trigger_early;
};

// Programmatic dependent launch: nothing is read or written before the wait, the weight included
// (the kernel before may have written it).
__device__ __forceinline__ void wait_for_primary_grid() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void launch_dependent_grid() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Has the row's addresses computed before the wait, where they cost no time: ptxas would otherwise
// sink some 25 instructions behind it (H200, 2026-11-22: 1-3 % of a decode call). A trap that
// depends on them cannot sink, and is never taken: rows are aligned to their elements.
template <typename... Pointers>
__device__ __forceinline__ void settle(Pointers... pointers) {
  const uint64_t all = (0ull | ... | reinterpret_cast<uint64_t>(pointers));
  asm volatile("{\n.reg .pred p;\nsetp.eq.u64 p, %0, 1;\n@p trap;\n}" ::"l"(all) : "memory");
}

// A vector of kElems elements starting at `element` of a row or of the weight.
template <bool kNarrow, typename T, int kElems>
__device__ __forceinline__ Vec<T, kElems> load_vec(const T* row, int element, int hidden_size,
                                                   int access_bytes) {
  Vec<T, kElems> vec;
  if constexpr (kNarrow) {
    load_narrow(vec.words, row + element, (hidden_size - element) * int(sizeof(T)), access_bytes);
  } else {
    load_wide(vec.words, row + element);
  }
  return vec;
}

template <bool kNarrow, typename T, int kElems>
__device__ __forceinline__ void store_vec(T* row, const Vec<T, kElems>& vec, int element,
                                          int hidden_size, int access_bytes) {
  if constexpr (kNarrow) {
    store_narrow(row + element, vec.words, (hidden_size - element) * int(sizeof(T)), access_bytes);
  } else {
    store_wide(row + element, vec.words);
  }
}

// Weights are shared by all rows, so they take the default cache policy.
template <bool kNarrow, typename W, int kElems>
__device__ __forceinline__ void load_weight(Vec<W, kElems>& vec, const W* weight, int element,
                                            const NormParams& p) {
  const W* from = weight + element;
  if constexpr (kNarrow) {
    load_narrow(vec.words, from, (p.hidden_size - element) * int(sizeof(W)), p.weight_access_bytes);
  } else {
#pragma unroll
    for (int i = 0; i < vec.kWords; i += 4) {
      const uint4 four =
          *reinterpret_cast<const uint4*>(reinterpret_cast<const uint32_t*>(from) + i);
      vec.words[i] = four.x;
      vec.words[i + 1] = four.y;
      vec.words[i + 2] = four.z;
      vec.words[i + 3] = four.w;
    }
  }
}

template <typename T, int kElems>
__device__ __forceinline__ void add_residual(float (&h)[kElems], const Vec<T, kElems>& residual) {
  float values[kElems];
  residual.unpack(values);
#pragma unroll
  for (int i = 0; i < kElems; ++i) h[i] = __fadd_rn(h[i], values[i]);
}

// Steps 3 and 4: h becomes y, not yet rounded to the output's dtype.
template <typename W, int kElems>
__device__ __forceinline__ void normalize(float (&h)[kElems], float rstd,
                                          const Vec<W, kElems>& weight, const NormParams& p) {
#pragma unroll
  for (int i = 0; i < kElems; ++i) h[i] = __fmul_rn(h[i], rstd);
  if (p.weight == nullptr) return;
  float factor[kElems];
  weight.unpack(factor);
#pragma unroll
  for (int i = 0; i < kElems; ++i) factor[i] = __fadd_rn(p.weight_offset, factor[i]);
  if (p.round_before_weight) {
    round_to<W>(h);
    round_to<W>(factor);
  }
#pragma unroll
  for (int i = 0; i < kElems; ++i) h[i] = __fmul_rn(h[i], factor[i]);
  if (p.round_before_weight) round_to<W>(h);
}

// 1 / sqrt(x), correctly rounded: the approximation, and one third-order correction from its exact
// residual 1 - x * y * y. tests/gpu/rsqrt.cu compares all positive floats with __frsqrt_rn, which
// is 20 ns slower (H200, 2026-11-22).
__device__ __forceinline__ float correct_rsqrt(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  const float xy = __fmul_rn(x, y);
  const float xy_low = __fmaf_rn(x, y, -xy);
  const float r = __fmaf_rn(-xy_low, y, __fmaf_rn(-xy, y, 1.0f));
  const float correction = __fmaf_rn(__fmul_rn(0.375f, r), r, __fmul_rn(0.5f, r));
  y = __fmaf_rn(correction, y, y);
  constexpr float kSmallestNormal = 1.17549435e-38f;
  constexpr float kLargest = 3.40282347e+38f;
  const bool usual = x >= kSmallestNormal && x <= kLargest;
  return usual ? y : __frsqrt_rn(x);
}

__device__ __forceinline__ float reciprocal_std(float sum_of_squares, const NormParams& p) {
  return correct_rsqrt(__fadd_rn(__fmul_rn(sum_of_squares, p.inverse_size), p.eps));
}

// Waits for the `threads` threads of one row of the CTA; ids 1 to 15 are the rows'.
__device__ __forceinline__ void row_barrier(int row_in_cta, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(row_in_cta + 1), "r"(threads) : "memory");
}

// One row in the registers of threadIdx.x = 0 .. blockDim.x - 1, of one CTA or (kCluster) of the
// CTAs of a cluster; threadIdx.y is the row within the CTA. Vector v of the row belongs to chunk
// v / 32, and a CTA's chunks are contiguous.
template <typename T, typename W, int kElems, int kVecs, bool kAdd, bool kCluster, bool kNarrow>
__global__ void __launch_bounds__(kMaxThreadsPerCta)
    rms_norm_kernel(const __grid_constant__ NormParams p) {
  // Weights hide their latency behind the row's. With long rows a thread has registers for half
  // of them, behind the barrier; for none in a cluster, or where they are float32 beside 16-bit
  // rows.
  constexpr bool kWeightsWithRow = kVecs <= 2 && kElems * kVecs <= 16;
  constexpr bool kFewRegisters = kCluster || sizeof(W) > sizeof(T);
  constexpr int kEarlyWeights = kWeightsWithRow ? kVecs : kFewRegisters ? 0 : kVecs / 2;
  extern __shared__ __align__(16) float shared_sums[];  // [rows_per_cta][padded_chunks]

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
  Vec<T, kElems> x_vec[kVecs] = {};
  Vec<T, kElems> residual_vec[kVecs] = {};
  Vec<W, kElems> weight_vec[kVecs];
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
    if (vec >= p.vecs_per_row) continue;
    x_vec[i] = load_vec<kNarrow, T, kElems>(x, vec * kElems, p.hidden_size, p.row_access_bytes);
    if constexpr (kAdd) {
      residual_vec[i] =
          load_vec<kNarrow, T, kElems>(residual, vec * kElems, p.hidden_size, p.row_access_bytes);
    }
  }
  if constexpr (kWeightsWithRow) load_weights(0, kVecs);
  if (!p.trigger_early) launch_dependent_grid();

  // Add, keep the sum unrounded, store it rounded.
  float h[kVecs][kElems];
  float sums[kVecs];
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const int vec = first_vec + i * blockDim.x;
    x_vec[i].unpack(h[i]);
    if constexpr (kAdd) {
      add_residual(h[i], residual_vec[i]);
      if (vec < p.vecs_per_row) {
        Vec<T, kElems> rounded;
        rounded.pack(h[i]);
        store_vec<kNarrow>(residual_out, rounded, vec * kElems, p.hidden_size, p.row_access_bytes);
      }
    }
    sums[i] = sum_squares(h[i]);
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
    normalize(h[i], rstd, weight_vec[i], p);
    Vec<T, kElems> rounded;
    rounded.pack(h[i]);
    store_vec<kNarrow>(out, rounded, vec * kElems, p.hidden_size, p.row_access_bytes);
  }
}

// For rows that neither a CTA's registers hold nor a cluster (before sm_90 there are none): the row
// is read again from L2 for the second pass. One CTA a row, any alignment.
template <typename T, typename W, int kElems, bool kAdd>
__global__ void __launch_bounds__(kRereadThreads)
    rms_norm_reread_kernel(const __grid_constant__ NormParams p) {
  extern __shared__ __align__(16) float chunk_sums[];  // [padded_chunks]
  const int lane = threadIdx.x % 32;
  const int64_t row = blockIdx.x;
  const int chunks = (p.vecs_per_row + 31) / 32;
  const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
  const T* residual = static_cast<const T*>(p.residual) + row * p.residual_stride;
  T* out = static_cast<T*>(p.out) + row * p.out_stride;
  T* residual_out = static_cast<T*>(p.residual_out) + row * p.residual_out_stride;
  const auto load_sum = [&](float (&h)[kElems], int vec) {
    const auto load = [&](const T* from) {
      return load_vec<true, T, kElems>(from, vec * kElems, p.hidden_size, p.row_access_bytes);
    };
    load(x).unpack(h);
    if constexpr (kAdd) add_residual(h, load(residual));
  };
  const auto store_rounded = [&](T* to, const float (&values)[kElems], int vec) {
    Vec<T, kElems> rounded;
    rounded.pack(values);
    store_vec<true>(to, rounded, vec * kElems, p.hidden_size, p.row_access_bytes);
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
  const float rstd = reciprocal_std(total_of_chunks<true>(chunk_sums, chunks, lane), p);
  for (int vec = threadIdx.x; vec < p.vecs_per_row; vec += blockDim.x) {
    float h[kElems];
    load_sum(h, vec);
    if constexpr (kAdd) store_rounded(residual_out, h, vec);
    Vec<W, kElems> weight_vec;
    const W* weight = static_cast<const W*>(p.weight);
    if (weight != nullptr) load_weight<true>(weight_vec, weight, vec * kElems, p);
    normalize(h, rstd, weight_vec, p);
    store_rounded(out, h, vec);
  }
}

}  // namespace hp_norm

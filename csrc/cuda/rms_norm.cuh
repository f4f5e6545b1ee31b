// The kernels, on raw pointers. One row is read once, held in registers, and written once:
//
//   1. h = float32(x) + float32(residual); residual_out = round(h)
//   2. rstd = 1 / sqrt(mean(h * h) + eps), float32, over the unrounded h
//   3. y = round(h * rstd * (weight_offset + weight)); with round_before_weight, h * rstd is first
//      rounded to the weight's dtype and multiplied there
//   4. no weight: y = round(h * rstd)
#pragma once

#include "cluster.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace hp_norm {

struct NormParams {
  const void* x;            // [num_tokens, hidden_size], row stride x_stride
  const void* residual;     // [num_tokens, hidden_size], row stride residual_stride
  const void* weight;       // [hidden_size], or null
  void* out;                // [num_tokens, hidden_size], row stride out_stride
  void* residual_out;       // [num_tokens, hidden_size], row stride residual_out_stride
  int64_t x_stride;         // strides count elements
  int64_t residual_stride;
  int64_t out_stride;
  int64_t residual_out_stride;
  int64_t num_tokens;
  int32_t hidden_size;
  int32_t vecs_per_row;
  int32_t ctas_per_row;
  int32_t padded_chunks;    // slots for the chunk sums of one row
  int32_t row_access_bytes;     // widest access that all rows allow (narrow kernels)
  int32_t weight_access_bytes;  // the same for the weight
  float inverse_size;       // float32(1 / hidden_size)
  float eps;
  float weight_offset;
  L2Policy load_policy;
  L2Policy out_policy;
  L2Policy residual_out_policy;
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

// A vector of kElems elements starting at `element` of a row or of the weight.
template <bool kNarrow, typename T, int kElems>
__device__ __forceinline__ Vec<T, kElems> load_vec(const T* row, int element, int hidden_size,
                                                   int access_bytes, uint64_t policy) {
  Vec<T, kElems> vec;
  if constexpr (kNarrow) {
    load_narrow(vec.words, row + element, (hidden_size - element) * int(sizeof(T)), access_bytes);
  } else {
    load_words(vec.words, row + element, policy);
  }
  return vec;
}

template <bool kNarrow, typename T, int kElems>
__device__ __forceinline__ void store_vec(T* row, const Vec<T, kElems>& vec, int element,
                                          int hidden_size, int access_bytes, uint64_t policy) {
  if constexpr (kNarrow) {
    store_narrow(row + element, vec.words, (hidden_size - element) * int(sizeof(T)), access_bytes);
  } else {
    store_words(row + element, vec.words, policy);
  }
}

// Weights are shared by all rows, so they take the default cache policy.
template <bool kNarrow, typename W, int kElems>
__device__ __forceinline__ void load_weight(Vec<W, kElems>& vec, const void* weight, int element,
                                            const NormParams& p) {
  const W* from = static_cast<const W*>(weight) + element;
  if constexpr (kNarrow) {
    load_narrow(vec.words, from, (p.hidden_size - element) * int(sizeof(W)),
                p.weight_access_bytes);
  } else {
#pragma unroll
    for (int i = 0; i < vec.kWords; i += 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(reinterpret_cast<const uint32_t*>(from) + i);
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
__device__ __forceinline__ void normalize(float (&h)[kElems], float rstd, const Vec<W, kElems>& weight,
                                          const NormParams& p) {
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

__device__ __forceinline__ float reciprocal_std(float sum_of_squares, const NormParams& p) {
  return __frsqrt_rn(__fadd_rn(__fmul_rn(sum_of_squares, p.inverse_size), p.eps));
}

// Waits for the `threads` threads of one row of the CTA; ids 1 to 15 are the rows'.
__device__ __forceinline__ void row_barrier(int row_in_cta, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(row_in_cta + 1), "r"(threads) : "memory");
}

constexpr int max_threads(int values_per_thread) { return values_per_thread > 32 ? 512 : 1024; }

// One row in the registers of threadIdx.x = 0 .. blockDim.x - 1, of one CTA or (kCluster) of the
// CTAs of a cluster; threadIdx.y is the row within the CTA. Vector v of the row belongs to chunk
// v / 32, and a CTA's chunks are contiguous.
template <typename T, typename W, int kElems, int kVecs, bool kAdd, bool kCluster, bool kNarrow>
__global__ void __launch_bounds__(max_threads(kElems* kVecs))
    rms_norm_kernel(const __grid_constant__ NormParams p) {
  // Weights fetched with the row hide their latency behind it; past 16 values a thread the
  // registers are worth more.
  constexpr bool kEarlyWeight = kElems * kVecs <= 16;
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
  const uint64_t load_policy = make_policy(p.load_policy);
  const uint64_t out_policy = make_policy(p.out_policy);
  const uint64_t residual_out_policy = make_policy(p.residual_out_policy);
  const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
  const T* residual = static_cast<const T*>(p.residual) + row * p.residual_stride;
  T* out = static_cast<T*>(p.out) + row * p.out_stride;
  T* residual_out = static_cast<T*>(p.residual_out) + row * p.residual_out_stride;

  wait_for_primary_grid();
  if (p.trigger_early) launch_dependent_grid();

  // Load: every access of the row is in flight before the first is used.
  Vec<T, kElems> x_vec[kVecs] = {};
  Vec<T, kElems> residual_vec[kVecs] = {};
  Vec<W, kElems> weight_vec[kEarlyWeight ? kVecs : 1];
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const int vec = first_vec + i * blockDim.x;
    if (vec >= p.vecs_per_row) continue;
    x_vec[i] = load_vec<kNarrow, T, kElems>(x, vec * kElems, p.hidden_size, p.row_access_bytes,
                                            load_policy);
    if constexpr (kAdd) {
      residual_vec[i] = load_vec<kNarrow, T, kElems>(residual, vec * kElems, p.hidden_size,
                                                     p.row_access_bytes, load_policy);
    }
  }
  if constexpr (kEarlyWeight) {
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      const int vec = first_vec + i * blockDim.x;
      if (vec < p.vecs_per_row && p.weight != nullptr) {
        load_weight<kNarrow>(weight_vec[i], p.weight, vec * kElems, p);
      }
    }
  }
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
        store_vec<kNarrow>(residual_out, rounded, vec * kElems, p.hidden_size, p.row_access_bytes,
                           residual_out_policy);
      }
    }
    sums[i] = sum_squares(h[i]);
  }

  // Sum.
  float total = warp_chunk_sums(sums, lane);
  if constexpr (kCluster) {
    cluster_sums_push<kVecs>(chunk_sums, total, first_chunk, warps, p.ctas_per_row, lane);
    cluster_sums_wait();
    total = total_of_chunks(chunk_sums, p.padded_chunks, lane);
  } else if (warps > 1) {
    if (lane < kVecs) chunk_sums[first_chunk + lane * warps] = total;
    row_barrier(threadIdx.y, blockDim.x);
    total = total_of_chunks(chunk_sums, p.padded_chunks, lane);
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
    Vec<W, kElems>& weight = weight_vec[kEarlyWeight ? i : 0];
    if constexpr (!kEarlyWeight) {
      if (p.weight != nullptr) load_weight<kNarrow>(weight, p.weight, vec * kElems, p);
    }
    normalize(h[i], rstd, weight, p);
    Vec<T, kElems> rounded;
    rounded.pack(h[i]);
    store_vec<kNarrow>(out, rounded, vec * kElems, p.hidden_size, p.row_access_bytes, out_policy);
  }
}

// For rows that neither a CTA's registers hold nor a cluster (before sm_90 there are none): the row
// is read again from L2 for the second pass. One CTA a row, any alignment.
template <typename T, typename W, int kElems, bool kAdd>
__global__ void __launch_bounds__(1024) rms_norm_reread_kernel(const __grid_constant__ NormParams p) {
  extern __shared__ __align__(16) float chunk_sums[];  // [padded_chunks]
  const int lane = threadIdx.x % 32;
  const int64_t row = blockIdx.x;
  const int chunks = (p.vecs_per_row + 31) / 32;
  const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
  const T* residual = static_cast<const T*>(p.residual) + row * p.residual_stride;
  T* out = static_cast<T*>(p.out) + row * p.out_stride;
  T* residual_out = static_cast<T*>(p.residual_out) + row * p.residual_out_stride;
  const auto load_sum = [&](float(&h)[kElems], int vec) {
    const auto load = [&](const T* from) {
      return load_vec<true, T, kElems>(from, vec * kElems, p.hidden_size, p.row_access_bytes, 0);
    };
    load(x).unpack(h);
    if constexpr (kAdd) add_residual(h, load(residual));
  };
  const auto store_rounded = [&](T* to, const float(&values)[kElems], int vec) {
    Vec<T, kElems> rounded;
    rounded.pack(values);
    store_vec<true>(to, rounded, vec * kElems, p.hidden_size, p.row_access_bytes, 0);
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
  const float rstd = reciprocal_std(total_of_chunks(chunk_sums, p.padded_chunks, lane), p);
  for (int vec = threadIdx.x; vec < p.vecs_per_row; vec += blockDim.x) {
    float h[kElems];
    load_sum(h, vec);
    if constexpr (kAdd) store_rounded(residual_out, h, vec);
    Vec<W, kElems> weight;
    if (p.weight != nullptr) load_weight<true>(weight, p.weight, vec * kElems, p);
    normalize(h, rstd, weight, p);
    store_rounded(out, h, vec);
  }
}

}  // namespace hp_norm

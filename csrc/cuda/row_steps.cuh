// The steps of a row that the kernels share: loads and stores, the add, the normalisation; and the
// contract of the numbers:
//
//   1. h = float32(x) + float32(residual); residual_out = round(h)
//   2. rstd = 1 / sqrt(mean(h * h) + eps), float32, over the unrounded h
//   3. y = round(h * rstd * (weight_offset + weight)), an offset of 0 not being added; with
//      round_before_weight, h * rstd is first rounded to the weight's dtype and multiplied there
//   4. no weight: y = round(h * rstd)
#pragma once

#include "access.cuh"
#include "vec.cuh"

namespace hp_norm {

// The bytes from row to row. Where 32 bits are enough they are loaded as 32: masked out of 64 they
// would be multiplied as 64, which is four instructions instead of one.
struct Pitch {
  uint32_t low;
  uint32_t high;

  static Pitch of(int64_t bytes) {
    return {static_cast<uint32_t>(bytes), static_cast<uint32_t>(bytes >> 32)};
  }
  template <typename Byte>
  __device__ __forceinline__ Byte* row_of(Byte* tensor, uint32_t row) const {
    return tensor + static_cast<uint64_t>(row) * low;
  }
  template <typename Byte>
  __device__ __forceinline__ Byte* row_of(Byte* tensor, int64_t row) const {
    return tensor + row * static_cast<int64_t>(static_cast<uint64_t>(high) << 32 | low);
  }
};

struct NormParams {
  const void* x;         // [num_tokens, hidden_size], a row every x_pitch bytes
  const void* residual;  // [num_tokens, hidden_size]
  const void* weight;    // [hidden_size], or null (narrow and re-reading kernels only)
  void* out;             // [num_tokens, hidden_size]
  void* residual_out;    // [num_tokens, hidden_size]
  Pitch x_pitch;
  Pitch residual_pitch;
  Pitch out_pitch;
  Pitch residual_out_pitch;
  int64_t num_tokens;
  int64_t x_ahead;         // how many bytes ahead a CTA asks L2 for x
  int64_t residual_ahead;  // and for the residual
  int32_t hidden_size;
  int32_t vecs_per_row;
  int32_t ctas_per_row;
  int32_t padded_chunks;        // slots for the chunk sums of one row
  int32_t row_access_bytes;     // widest access that all rows allow (narrow kernels)
  int32_t weight_access_bytes;  // the same for the weight
  float inverse_size;           // float32(1 / hidden_size)
  float eps;
  float weight_offset;
  uint32_t x_request_bytes;  // what a request covers: the rows of a CTA, or the first of them
  uint32_t residual_request_bytes;  // where rows are not contiguous
  uint32_t groups_with_ahead;       // so many CTAs or clusters, the first, ask for rows ahead
  uint32_t first_wave_groups;  // and so many for their residual, and the weight, before the wait
  bool round_before_weight;    // narrow and re-reading kernels only
  bool trigger_early;          // launch_dependents between griddepcontrol.wait and the loads
  bool trigger_after_loads;    // or behind them; neither: when the CTAs end
  uint64_t ahead_policy;       // what L2 is told of the lines that are asked for ahead
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

// For a CTA without a row (kFillGpu): it fills its place until all of the grid are dealt out, and
// is gone before the rows are, which would otherwise take 0.1 to 0.3 us longer. It reads nothing,
// so it waits for no grid; the rows do (H200, 2026-11-26).
__device__ __forceinline__ void fill_place() {
  constexpr int kCycles = 1000;
  launch_dependent_grid();
  if (threadIdx.x != 0) return;
  for (const auto start = clock64(); clock64() - start < kCycles;) {
  }
}

// Has the addresses of the loads computed before the wait, where they cost no time: ptxas would
// otherwise sink them behind it (H200, 2026-11-24: 5 % of a decode call). A store that depends on
// them cannot sink, and is never made: rows are aligned to their elements. Not a trap: that is a
// branch, behind which ptxas takes the warp for diverged, which is 60 to 70 instructions more.
__device__ __forceinline__ void settle(const void* a, const void* b, const void* c) {
  const auto low =
      static_cast<uint32_t>(reinterpret_cast<uint64_t>(a) | reinterpret_cast<uint64_t>(b) |
                            reinterpret_cast<uint64_t>(c));
  asm volatile("{\n.reg .pred p;\nsetp.eq.u32 p, %0, 1;\n@p st.shared.u32 [%0], %0;\n}" ::"r"(low)
               : "memory");
}

// A vector of kElems elements starting at `element` of a row; zeros where it is not `valid`.
template <RowAccess kAccess, typename T, int kElems>
__device__ __forceinline__ Vec<T, kElems> load_vec(const T* row, int element, bool valid,
                                                   int hidden_size, int access_bytes) {
  Vec<T, kElems> vec;
  if constexpr (kAccess == RowAccess::kNarrow) {
    const int valid_bytes = valid ? (hidden_size - element) * int(sizeof(T)) : 0;
    load_narrow(vec.words, row + element, valid_bytes, access_bytes);
  } else {
    load_wide<kAccess>(vec.words, row + element, valid);
  }
  return vec;
}

template <RowAccess kAccess, typename T, int kElems>
__device__ __forceinline__ void store_vec(T* row, const Vec<T, kElems>& vec, int element,
                                          bool valid, int hidden_size, int access_bytes) {
  if constexpr (kAccess == RowAccess::kNarrow) {
    const int valid_bytes = valid ? (hidden_size - element) * int(sizeof(T)) : 0;
    store_narrow(row + element, vec.words, valid_bytes, access_bytes);
  } else {
    store_wide<kAccess>(row + element, vec.words, valid);
  }
}

// Weights are shared by all rows, so they take the default cache policy.
template <bool kNarrow, typename W, int kElems>
__device__ __forceinline__ void load_weight(Vec<W, kElems>& vec, const W* weight, int element,
                                            bool valid, const NormParams& p) {
  const W* from = weight + element;
  if constexpr (kNarrow) {
    const int valid_bytes = valid ? (p.hidden_size - element) * int(sizeof(W)) : 0;
    load_narrow(vec.words, from, valid_bytes, p.weight_access_bytes);
  } else {
#pragma unroll
    for (int i = 0; i < vec.kWords; i += 4) load_16_bytes_if(vec.words + i, from, i * 4, valid);
  }
}

template <typename T, int kElems>
__device__ __forceinline__ void add_residual(float (&h)[kElems], const Vec<T, kElems>& residual) {
  float values[kElems];
  residual.unpack(values);
#pragma unroll
  for (int i = 0; i < kElems; ++i) h[i] = __fadd_rn(h[i], values[i]);
}

// Steps 3 and 4: h becomes y, not yet rounded to the output's dtype. kAllOptions: there may be no
// weight, and the rounding may come before it; elsewhere the code for that would only be in the
// way. Without kOffset the offset is -0, which changes no weight.
template <bool kAllOptions, bool kOffset, typename W, int kElems>
__device__ __forceinline__ void normalize(float (&h)[kElems], float rstd,
                                          const Vec<W, kElems>& weight, const NormParams& p) {
#pragma unroll
  for (int i = 0; i < kElems; ++i) h[i] = __fmul_rn(h[i], rstd);
  if (kAllOptions && p.weight == nullptr) return;
  float factor[kElems];
  weight.unpack(factor);
  if constexpr (kOffset) {
#pragma unroll
    for (int i = 0; i < kElems; ++i) factor[i] = __fadd_rn(p.weight_offset, factor[i]);
  }
  const bool round_before = kAllOptions && p.round_before_weight;
  if (round_before) {
    round_to<W>(h);
    round_to<W>(factor);
  }
#pragma unroll
  for (int i = 0; i < kElems; ++i) h[i] = __fmul_rn(h[i], factor[i]);
  if (round_before) round_to<W>(h);
}

// 1 / sqrt(x), correctly rounded: the approximation, and one third-order correction from its exact
// residual 1 - x * y * y. tests/gpu/rsqrt.cu compares all positive floats with __frsqrt_rn, which
// is 20 ns slower (H200, 2026-11-22). Zero, infinity and NaN have no residual; the approximation is
// exact there.
__device__ __forceinline__ float correct_rsqrt(float x) {
  float y;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  const float xy = __fmul_rn(x, y);
  const float xy_low = __fmaf_rn(x, y, -xy);
  const float r = __fmaf_rn(-xy_low, y, __fmaf_rn(-xy, y, 1.0f));
  const float correction = __fmaf_rn(__fmul_rn(0.375f, r), r, __fmul_rn(0.5f, r));
  constexpr float kLargest = 3.40282347e+38f;
  return x > 0.0f && x <= kLargest ? __fmaf_rn(correction, y, y) : y;
}

__device__ __forceinline__ float reciprocal_std(float sum_of_squares, const NormParams& p) {
  return correct_rsqrt(__fadd_rn(__fmul_rn(sum_of_squares, p.inverse_size), p.eps));
}

}  // namespace hp_norm

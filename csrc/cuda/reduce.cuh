// The canonical sum: a balanced binary tree over adjacent elements of a row, padded with zeros to a
// power of two, every partial sum rounded to float32. A chunk is what one warp holds of a row with
// one vector a lane; chunks cover aligned power-of-two ranges of the row, so every mapping of
// chunks to threads, warps and CTAs, and every vector width, sums the same tree: the same bits.
#pragma once

#include <cstdint>

namespace hp_norm {

inline constexpr unsigned kFullWarp = 0xffffffffu;

// Adds adjacent pairs until one sum is left. __fadd_rn is never fused with a multiply.
template <int kCount>
__device__ __forceinline__ float sum_tree(const float* values) {
  if constexpr (kCount == 1) {
    return values[0];
  } else {
    constexpr int kHalf = kCount / 2;
    return __fadd_rn(sum_tree<kHalf>(values), sum_tree<kHalf>(values + kHalf));
  }
}

template <int kElems>
__device__ __forceinline__ float sum_squares(const float (&h)[kElems]) {
  float squares[kElems];
#pragma unroll
  for (int i = 0; i < kElems; ++i) squares[i] = __fmul_rn(h[i], h[i]);
  return sum_tree<kElems>(squares);
}

__device__ __forceinline__ float add_across(float value, int lane_bit) {
  return __fadd_rn(value, __shfl_xor_sync(kFullWarp, value, lane_bit));
}

// How many lanes (2 to the power of) a warp adds up, of a row with one vector a lane: as few as
// keep the row's sums within the 16 that total_of_chunks broadcasts; all of them in a row of one
// warp.
__device__ __forceinline__ int log2_lanes_per_sum(int warps) {
  return warps == 1 || warps > 8 ? 5 : warps > 4 ? 4 : 3;
}

// Every lane brings its part of kChunks chunks; lane l returns with the sum of chunk l % kChunks.
// While several chunks are left, a step folds two of them at once: each lane keeps the one whose
// parity is its own and gives the other away, so that kChunks chunks cost about kChunks + 5
// shuffles instead of 5 x kChunks. Of one chunk, only groups of 2^log2_lanes lanes are added.
template <int kChunks>
__device__ __forceinline__ float warp_chunk_sums(float (&sums)[kChunks], int lane,
                                                 int log2_lanes = 5) {
  int bit = 1;
#pragma unroll
  for (int left = kChunks; left > 1; left /= 2) {
    const bool odd = lane & bit;
#pragma unroll
    for (int i = 0; i < left / 2; ++i) {
      const float kept = odd ? sums[2 * i + 1] : sums[2 * i];
      const float given = odd ? sums[2 * i] : sums[2 * i + 1];
      sums[i] = __fadd_rn(kept, __shfl_xor_sync(kFullWarp, given, bit));
    }
    bit *= 2;
  }
#pragma unroll
  for (; bit < 32; bit *= 2) {
    if (kChunks == 1 && bit >= 8 && bit >> log2_lanes) break;
    sums[0] = add_across(sums[0], bit);
  }
  return sums[0];
}

// The first kRun sums at `sums`, added as a tree. 16-byte reads where there are 4 or more.
template <int kRun>
__device__ __forceinline__ float sum_run(const float* sums) {
  float values[kRun];
  if constexpr (kRun >= 4) {
#pragma unroll
    for (int i = 0; i < kRun; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(sums + i);
      values[i] = four.x;
      values[i + 1] = four.y;
      values[i + 2] = four.z;
      values[i + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kRun; ++i) values[i] = sums[i];
  }
  return sum_tree<kRun>(values);
}

// The number of slots for chunk sums: 32, and then the powers of two.
__host__ __device__ constexpr int padded_chunks(int num_chunks) {
  int padded = 32;
  while (padded < num_chunks) padded *= 2;
  return padded;
}

// The tree over a row's chunk sums in shared memory, in every lane. Slots past the row's last chunk
// hold zero. Up to kBroadcast (0, 16 or 32) chunks every lane reads them all, since broadcast reads
// and a tree of adds are shorter than 5 shuffles; it takes 16 registers. Otherwise a lane adds
// a run of up to kLongestRun chunks, and the shuffles add the lanes: one piece of code for each
// length.
template <int kBroadcast, int kLongestRun>
__device__ __forceinline__ float total_of_chunks(const float* sums, int chunks, int lane) {
  if (kBroadcast >= 16 && chunks <= 16) return sum_run<16>(sums);
  if (kBroadcast >= 32 && chunks <= 32) {
    return __fadd_rn(sum_run<16>(sums), sum_run<16>(sums + 16));
  }
  float sum;
  if (kLongestRun == 1 || chunks <= 32) {
    sum = sums[lane];
  } else if (kLongestRun == 2 || chunks <= 64) {
    sum = sum_run<2>(sums + lane * 2);
  } else if (kLongestRun == 4 || chunks <= 128) {
    sum = sum_run<4>(sums + lane * 4);
  } else if (kLongestRun == 8 || chunks <= 256) {
    sum = sum_run<8>(sums + lane * 8);
  } else {
    sum = sum_run<16>(sums + lane * 16);
  }
#pragma unroll
  for (int bit = 1; bit < 32; bit *= 2) sum = add_across(sum, bit);
  return sum;
}

}  // namespace hp_norm

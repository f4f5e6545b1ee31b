// The only file that knows dtypes: unpacking and rounding. To add one, specialise Word<T> here.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace hp_norm {

// A 32-bit word of kElems elements of T, as it lies in memory, to and from float32.
template <typename T>
struct Word;

template <>
struct Word<float> {
  static constexpr int kElems = 1;
  static __device__ __forceinline__ void unpack(uint32_t word, float* values) {
    values[0] = __uint_as_float(word);
  }
  static __device__ __forceinline__ uint32_t pack(const float* values) {
    return __float_as_uint(values[0]);
  }
};

template <>
struct Word<__nv_bfloat16> {
  static constexpr int kElems = 2;
  static __device__ __forceinline__ void unpack(uint32_t word, float* values) {
    // A bfloat16 is the upper half of a float32.
    values[0] = __uint_as_float(word << 16);
    values[1] = __uint_as_float(word & 0xffff0000u);
  }
  static __device__ __forceinline__ uint32_t pack(const float* values) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(values[0], values[1]);
    uint32_t word;
    __builtin_memcpy(&word, &pair, sizeof(word));
    return word;
  }
};

template <>
struct Word<__half> {
  static constexpr int kElems = 2;
  static __device__ __forceinline__ void unpack(uint32_t word, float* values) {
    __half2 pair;
    __builtin_memcpy(&pair, &word, sizeof(word));
    const float2 wide = __half22float2(pair);
    values[0] = wide.x;
    values[1] = wide.y;
  }
  static __device__ __forceinline__ uint32_t pack(const float* values) {
    const __half2 pair = __floats2half2_rn(values[0], values[1]);
    uint32_t word;
    __builtin_memcpy(&word, &pair, sizeof(word));
    return word;
  }
};

// kElems elements of T as 32-bit words, the form in which they travel. Vector structs of bf162 or
// half2 compile to 32-bit accesses; words do not (tests/test_sass.py).
template <typename T, int kElems>
struct Vec {
  static constexpr int kPerWord = Word<T>::kElems;
  static constexpr int kBytes = kElems * static_cast<int>(sizeof(T));
  static constexpr int kWords = kBytes / 4;
  uint32_t words[kWords];

  __device__ __forceinline__ void unpack(float (&values)[kElems]) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) Word<T>::unpack(words[i], values + i * kPerWord);
  }
  __device__ __forceinline__ void pack(const float (&values)[kElems]) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = Word<T>::pack(values + i * kPerWord);
  }
  __device__ __forceinline__ void load_shared(const uint4* from) {
    static_assert(kBytes == 16);
    const uint4 four = *from;
    words[0] = four.x;
    words[1] = four.y;
    words[2] = four.z;
    words[3] = four.w;
  }
};

template <typename T, int kElems>
__device__ __forceinline__ void round_to(float (&values)[kElems]) {
  Vec<T, kElems> rounded;
  rounded.pack(values);
  rounded.unpack(values);
}

}  // namespace hp_norm

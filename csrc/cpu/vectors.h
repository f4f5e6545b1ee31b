// Vectors of float32, as wide as the instruction set that this file is compiled for: how they are
// loaded, rounded and stored.
//
// Every translation unit has its own copy, hence the unnamed namespace: the same names mean other
// instructions in each of them.
#pragma once

#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace hp_norm {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16, kLevels = 4;  // 2^kLevels floats a vector
// The unmasked conversions of gcc 12 start from an undefined vector and warn about it.
constexpr __mmask16 kAllLanes = 0xffff;
#elif defined(__AVX2__)
constexpr int kWidth = 8, kLevels = 3;
#else
constexpr int kWidth = 4, kLevels = 2;
#endif

#define HP_NORM_INLINE inline __attribute__((always_inline))

typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef uint32_t Words __attribute__((vector_size(4 * kWidth)));

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <typename Vector>
HP_NORM_INLINE Vector load_vector(const void* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}

HP_NORM_INLINE Floats load_one(const float* from) { return load_vector<Floats>(from); }

HP_NORM_INLINE Floats load_one(const Float16* from) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_cvtph_ps(kAllLanes, load_vector<__m256i>(from));
#elif defined(__F16C__)
  return (Floats)_mm256_cvtph_ps(load_vector<__m128i>(from));
#else
  Floats values;
  for (int i = 0; i < kWidth; ++i) {
    values[i] = torch::headeronly::detail::fp16_ieee_to_fp32_value(from[i].bits);
  }
  return values;
#endif
}

template <int... i>
HP_NORM_INLINE void deinterleave(Floats& even, Floats& odd, std::integer_sequence<int, i...>) {
  const Floats a = even, b = odd;
  even = __builtin_shufflevector(a, b, 2 * i...);
  odd = __builtin_shufflevector(a, b, 2 * i + 1 ...);
}

HP_NORM_INLINE void load_pair(Floats& even, Floats& odd, const float* from) {
  even = load_one(from);
  odd = load_one(from + kWidth);
  deinterleave(even, odd, std::make_integer_sequence<int, kWidth>());
  // A NaN as bfloat16 has it, for round_to_bfloat16.
  const Floats nan = (Floats)((Words){} + 0x7fc00000);
  even = even == even ? even : nan;
  odd = odd == odd ? odd : nan;
}

HP_NORM_INLINE void load_pair(Floats& even, Floats& odd, const Bfloat16* from) {
  const Words pairs = load_vector<Words>(from);
  even = (Floats)(pairs << 16);
  odd = (Floats)(pairs & 0xffff0000);
}

// Rounded to nearest even in the upper 16 bits; the lower ones are left over. A NaN needs no care:
// it comes from one that was loaded, so its lower bits are 0 and rounding does not carry out of
// them.
HP_NORM_INLINE Words round_to_bfloat16(Floats values) {
  const Words words = (Words)values;
  // AVX-512 keeps comparisons in masks, the others as vectors of -1.
  if constexpr (kWidth == 16) {
    return words + ((words & 0x10000) != 0 ? (Words){} + 0x8000 : (Words){} + 0x7fff);
  }
  return words + 0x8000 + (Words)((words & 0x10000) == 0);
}

HP_NORM_INLINE void store_one(float* to, Floats values) {
  std::memcpy(to, &values, sizeof(values));
}

HP_NORM_INLINE void store_one(Float16* to, Floats values) {
  // gcc would convert straight to memory, which takes 3 cycles on a Zen 3 and 1.75 on a Zen 4, not
  // 2 and 1.5, if the asm did not keep it from that.
#if defined(__AVX512F__)
  __m256i halves = _mm512_maskz_cvtps_ph(kAllLanes, (__m512)values, _MM_FROUND_TO_NEAREST_INT);
  asm("" : "+x"(halves));
  std::memcpy(to, &halves, sizeof(halves));
#elif defined(__F16C__)
  __m128i halves = _mm256_cvtps_ph((__m256)values, _MM_FROUND_TO_NEAREST_INT);
  asm("" : "+x"(halves));
  std::memcpy(to, &halves, sizeof(halves));
#else
  for (int i = 0; i < kWidth; ++i) {
    to[i].bits = torch::headeronly::detail::fp16_ieee_from_fp32_value(values[i]);
  }
#endif
}

#if defined(__AVX512BF16__)
typedef uint16_t Halves __attribute__((vector_size(4 * kWidth)));

template <int... i>
HP_NORM_INLINE Halves interleave(Halves split, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(split, split, (i % 2 * kWidth + i / 2)...);
}

// By the processor's own rounding; false, and nothing stored, where it would flush a denormal.
HP_NORM_INLINE bool store_if_normal(Bfloat16* to, Floats even, Floats odd) {
  constexpr int kDenormal = 0x20;
  if (!_kortestz_mask16_u8(_mm512_fpclass_ps_mask((__m512)even, kDenormal),
                           _mm512_fpclass_ps_mask((__m512)odd, kDenormal))) {
    return false;
  }
  const Halves split = (Halves)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
  const Halves pairs = interleave(split, std::make_integer_sequence<int, 2 * kWidth>());
  std::memcpy(to, &pairs, sizeof(pairs));
  return true;
}
#endif

HP_NORM_INLINE void store_pair(Bfloat16* to, Floats even, Floats odd) {
#if defined(__AVX512BF16__)
  if (store_if_normal(to, even, odd)) [[likely]]
    return;
#endif
  const Words low = round_to_bfloat16(even) >> 16, high = round_to_bfloat16(odd);
#if defined(__AVX2__) && !defined(__AVX512F__)
  const Words pairs = (Words)_mm256_blend_epi16((__m256i)low, (__m256i)high, 0xaa);
#else
  const Words pairs = low | (high & 0xffff0000);
#endif
  std::memcpy(to, &pairs, sizeof(pairs));
}

// The values that storing as T and loading again would give.
template <typename T>
HP_NORM_INLINE Floats round_to(Floats values) {
  if constexpr (std::is_same_v<T, Bfloat16>) {
    return (Floats)(round_to_bfloat16(values) & 0xffff0000);
  } else if constexpr (std::is_same_v<T, Float16>) {
    Float16 rounded[kWidth];
    store_one(rounded, values);
    return load_one(rounded);
  } else {
    return values;
  }
}

}  // namespace
}  // namespace hp_norm

// Vectors of float32, as wide as the instruction set that this file is compiled for, and the
// groups of them in which rows are loaded and stored.
//
// Every translation unit has its own copy, hence the unnamed namespace: the same names mean other
// instructions in each of them.
#pragma once

#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
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

// Adjacent elements in 1 vector or, as 2, the even and the odd ones of twice as many: so bfloat16
// comes out of 32-bit words, without a shuffle, and its first level of sums needs none either.
template <int kParts>
struct Group {
  static constexpr int kSize = kParts * kWidth;
  Floats part[kParts];
};

// A group as float32 in memory of our own, part by part.
template <int kParts>
HP_NORM_INLINE void load_parts(Group<kParts>& group, const float* from) {
  for (int p = 0; p < kParts; ++p) group.part[p] = load_vector<Floats>(from + p * kWidth);
}

template <int kParts>
HP_NORM_INLINE void store_parts(float* to, const Group<kParts>& group) {
  for (int p = 0; p < kParts; ++p) std::memcpy(to + p * kWidth, &group.part[p], sizeof(Floats));
}

template <typename T>
struct GroupOf {
  using type = Group<1>;
};
template <>
struct GroupOf<Bfloat16> {
  using type = Group<2>;
};

template <int... i>
HP_NORM_INLINE Group<2> deinterleave(Floats a, Floats b, std::integer_sequence<int, i...>) {
  return {{__builtin_shufflevector(a, b, 2 * i...), __builtin_shufflevector(a, b, 2 * i + 1 ...)}};
}

HP_NORM_INLINE void load(Group<1>& group, const float* from) {
  group.part[0] = load_vector<Floats>(from);
}

HP_NORM_INLINE void load(Group<2>& group, const float* from) {
  group = deinterleave(load_vector<Floats>(from), load_vector<Floats>(from + kWidth),
                       std::make_integer_sequence<int, kWidth>());
  // A NaN as bfloat16 has it, for round_to_bfloat16.
  for (Floats& part : group.part) part = part == part ? part : (Floats)((Words){} + 0x7fc00000);
}

HP_NORM_INLINE void load(Group<2>& group, const Bfloat16* from) {
  const Words pairs = load_vector<Words>(from);
  group = {{(Floats)(pairs << 16), (Floats)(pairs & 0xffff0000)}};
}

HP_NORM_INLINE void load(Group<1>& group, const Float16* from) {
#if defined(__AVX512F__)
  group.part[0] = (Floats)_mm512_maskz_cvtph_ps(kAllLanes, load_vector<__m256i>(from));
#elif defined(__F16C__)
  group.part[0] = (Floats)_mm256_cvtph_ps(load_vector<__m128i>(from));
#else
  for (int i = 0; i < kWidth; ++i) {
    group.part[0][i] = torch::headeronly::detail::fp16_ieee_to_fp32_value(from[i].bits);
  }
#endif
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

HP_NORM_INLINE void store(float* to, const Group<1>& group) {
  std::memcpy(to, &group.part[0], sizeof(Floats));
}

#if defined(__AVX512BF16__)
typedef uint16_t Halves __attribute__((vector_size(4 * kWidth)));

template <int... i>
HP_NORM_INLINE Halves interleave(Halves split, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(split, split, (i % 2 * kWidth + i / 2)...);
}

// By the processor's own rounding; false, and nothing stored, where it would flush a denormal.
HP_NORM_INLINE bool store_if_normal(Bfloat16* to, const Group<2>& group) {
  constexpr int kDenormal = 0x20;
  const __m512 even = (__m512)group.part[0], odd = (__m512)group.part[1];
  if (!_kortestz_mask16_u8(_mm512_fpclass_ps_mask(even, kDenormal),
                           _mm512_fpclass_ps_mask(odd, kDenormal))) {
    return false;
  }
  const Halves split = (Halves)_mm512_cvtne2ps_pbh(odd, even);  // the even ones, then the odd ones
  const Halves pairs = interleave(split, std::make_integer_sequence<int, 2 * kWidth>());
  std::memcpy(to, &pairs, sizeof(pairs));
  return true;
}
#endif

HP_NORM_INLINE void store(Bfloat16* to, const Group<2>& group) {
#if defined(__AVX512BF16__)
  if (store_if_normal(to, group)) [[likely]]
    return;
#endif
  const Words even = round_to_bfloat16(group.part[0]) >> 16;
  const Words odd = round_to_bfloat16(group.part[1]);
#if defined(__AVX2__) && !defined(__AVX512F__)
  const Words pairs = (Words)_mm256_blend_epi16((__m256i)even, (__m256i)odd, 0xaa);
#else
  const Words pairs = even | (odd & 0xffff0000);
#endif
  std::memcpy(to, &pairs, sizeof(pairs));
}

HP_NORM_INLINE void store(Float16* to, const Group<1>& group) {
#if defined(__AVX512F__)
  __m256i halves =
      _mm512_maskz_cvtps_ph(kAllLanes, (__m512)group.part[0], _MM_FROUND_TO_NEAREST_INT);
  asm("" : "+x"(halves));  // as below: 1.75 cycles on a Zen 4, not 1.5
  std::memcpy(to, &halves, sizeof(halves));
#elif defined(__F16C__)
  __m128i halves = _mm256_cvtps_ph((__m256)group.part[0], _MM_FROUND_TO_NEAREST_INT);
  asm("" : "+x"(halves));  // gcc would convert straight to memory: 3 cycles on a Zen 3, not 2
  std::memcpy(to, &halves, sizeof(halves));
#else
  for (int i = 0; i < kWidth; ++i) {
    to[i].bits = torch::headeronly::detail::fp16_ieee_from_fp32_value(group.part[0][i]);
  }
#endif
}

// The values that storing as T and loading again would give.
template <typename T>
HP_NORM_INLINE Floats round_to(Floats values) {
  if constexpr (std::is_same_v<T, Bfloat16>) {
    return (Floats)(round_to_bfloat16(values) & 0xffff0000);
  } else if constexpr (std::is_same_v<T, Float16>) {
    Float16 rounded[kWidth];
    store(rounded, Group<1>{{values}});
    Group<1> group;
    load(group, rounded);
    return group.part[0];
  } else {
    return values;
  }
}

// The first `count` elements of a group: the rest reads as zero and is not written.
template <typename T, typename G>
HP_NORM_INLINE void load_some(G& group, const T* from, int64_t count) {
  if (count >= G::kSize) return load(group, from);
  T padded[G::kSize] = {};
  if (count > 0) std::memcpy(padded, from, count * sizeof(T));
  load(group, padded);
}

template <typename T, typename G>
HP_NORM_INLINE void store_some(T* to, const G& group, int64_t count) {
  if (count >= G::kSize) return store(to, group);
  T padded[G::kSize];
  store(padded, group);
  std::memcpy(to, padded, count * sizeof(T));
}

// Adds neighbours. Between 4-float lanes: the even lanes of a and b, plus the odd ones. Within
// lanes: of each lane the even elements of a and then of b, plus the odd ones. Both are a single
// instruction for each half, unlike the order [a0 + a1, a2 + a3, ..., b0 + b1, ...].
template <bool kBetweenLanes, int... i>
HP_NORM_INLINE Floats add_neighbours(Floats a, Floats b, std::integer_sequence<int, i...>) {
  constexpr auto source = [](int to, int odd) {
    const int lane = to / 4, element = to % 4;
    if (kBetweenLanes) return (2 * lane + odd) * 4 + element;
    return element / 2 * kWidth + lane * 4 + element % 2 * 2 + odd;
  };
  return __builtin_shufflevector(a, b, source(i, 0)...) +
         __builtin_shufflevector(a, b, source(i, 1)...);
}

// The sums of 2^kDepth vectors leaf(first), leaf(first + step), ..., summed kDepth times by
// neighbours. For kDepth == kLevels, the sums of the kWidth vectors, in their order.
template <int kDepth, typename Leaf>
HP_NORM_INLINE Floats sum_tree(const Leaf& leaf, int64_t first, int64_t step) {
  if constexpr (kDepth == 0) {
    return leaf(first);
  } else {
    const Floats left = sum_tree<kDepth - 1>(leaf, first, step);
    const Floats right = sum_tree<kDepth - 1>(leaf, first + (step << (kDepth - 1)), step);
    return add_neighbours<(kDepth > 2)>(left, right, std::make_integer_sequence<int, kWidth>());
  }
}

}  // namespace
}  // namespace hp_norm

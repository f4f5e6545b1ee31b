// Groups of vectors in which rows are loaded and stored, and the tree that sums their squares.
#pragma once

#include <algorithm>
#include <bit>

#include "vectors.h"

namespace hp_norm {
namespace {

// The elements of one cache line of a row of T, as float32. bfloat16 comes as the halves of 32-bit
// words, the even elements in one part and the odd ones in the next: without a shuffle, and the
// first level of sums needs none either. Other parts hold adjacent elements.
//
// A line is loaded and stored at once, because two arrays may lie so that their lines evict each
// other when read in turns: half a line at a time, a fused add of fp16 from memory took up to twice
// as long, a quarter up to three times (Zen 4, arrays 64 MiB + 8 KiB apart, 2026-11-26).
template <typename T>
struct Group {
  static constexpr int kVectorParts = std::is_same_v<T, Bfloat16> ? 2 : 1;
  static constexpr int kVectors =  // no more than the tree of sums takes
      std::min<int>(64 / sizeof(T) / kWidth / kVectorParts, kWidth);
  static constexpr int kParts = kVectors * kVectorParts, kSize = kParts * kWidth;
  Floats part[kParts];
};

template <typename T, typename From>
HP_NORM_INLINE void load(Group<T>& group, const From* from) {
  constexpr int kStep = Group<T>::kVectorParts;
  for (int p = 0; p < Group<T>::kParts; p += kStep, from += kStep * kWidth) {
    if constexpr (kStep == 2) {
      load_pair(group.part[p], group.part[p + 1], from);
    } else {
      group.part[p] = load_one(from);
    }
  }
}

template <typename T>
HP_NORM_INLINE void store(T* to, const Group<T>& group) {
  constexpr int kStep = Group<T>::kVectorParts;
  for (int p = 0; p < Group<T>::kParts; p += kStep, to += kStep * kWidth) {
    if constexpr (kStep == 2) {
      store_pair(to, group.part[p], group.part[p + 1]);
    } else {
      store_one(to, group.part[p]);
    }
  }
}

// The first `count` elements of a group: the rest reads as zero and is not written.
template <typename T, typename From>
HP_NORM_INLINE void load_some(Group<T>& group, const From* from, int64_t count) {
  if (count >= Group<T>::kSize) return load(group, from);
  From padded[Group<T>::kSize] = {};
  if (count > 0) std::memcpy(padded, from, count * sizeof(From));
  load(group, padded);
}

template <typename T>
HP_NORM_INLINE void store_some(T* to, const Group<T>& group, int64_t count) {
  if (count >= Group<T>::kSize) return store(to, group);
  T padded[Group<T>::kSize];
  store(padded, group);
  std::memcpy(to, padded, count * sizeof(T));
}

// A group in memory of our own, part by part.
template <typename T>
HP_NORM_INLINE void load_parts(Group<T>& group, const float* from) {
  for (int p = 0; p < Group<T>::kParts; ++p) group.part[p] = load_one(from + p * kWidth);
}

template <typename T>
HP_NORM_INLINE void store_parts(float* to, const Group<T>& group) {
  for (int p = 0; p < Group<T>::kParts; ++p) store_one(to + p * kWidth, group.part[p]);
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

// The sums of 2^kDepth vectors, summed kDepth times by neighbours; for kDepth == kLevels, the sums
// of the kWidth vectors, in their order. leaf(first), leaf(first + step), ... are vectors that have
// been summed kLeafDepth times.
template <int kDepth, int kLeafDepth, typename Leaf>
HP_NORM_INLINE Floats sum_tree(const Leaf& leaf, int64_t first, int64_t step) {
  if constexpr (kDepth == kLeafDepth) {
    return leaf(first);
  } else {
    const int64_t half = step << (kDepth - kLeafDepth - 1);
    const Floats left = sum_tree<kDepth - 1, kLeafDepth>(leaf, first, step);
    const Floats right = sum_tree<kDepth - 1, kLeafDepth>(leaf, first + half, step);
    return add_neighbours<(kDepth > 2)>(left, right, std::make_integer_sequence<int, kWidth>());
  }
}

// How often the vectors of a group are summed by neighbours to become one.
template <typename T>
constexpr int kLeafDepth = std::countr_zero(unsigned{Group<T>::kVectors});

// A leaf of the tree: the squares of a group.
template <typename T>
HP_NORM_INLINE Floats sum_squares(const Group<T>& h) {
  const auto squares = [&](int64_t v) __attribute__((always_inline)) {
    if constexpr (Group<T>::kVectorParts == 2) {
      const Floats even = h.part[2 * v], odd = h.part[2 * v + 1];
      return even * even + odd * odd;
    } else {
      return h.part[v] * h.part[v];
    }
  };
  return sum_tree<kLeafDepth<T>, 0>(squares, 0, 1);
}

}  // namespace
}  // namespace hp_norm

// One row at a time, in two passes over it: the sum of squares, then the outputs. The same bits as
// the CUDA kernels: float32 throughout, squares summed by adjacent pairs, a correctly rounded
// reciprocal square root.
//
// The second pass mostly loads the row again, from the cache, and adds again: cheaper than keeping
// the sums as float32 (kKeepsSums). In place, it loads each group before it overwrites it.
//
// HP_NORM_ROW_KERNEL names the function that this compilation defines; the compiler's target flags
// decide how wide a vector is.
#include "row_kernel.h"

#include <cmath>
#include <cstring>

#include "groups.h"

namespace hp_norm {
namespace {

enum class Weight { kNone, kExact, kRounded };  // kRounded: every factor is rounded to its dtype

template <typename T, bool kAdd>
struct Input {
  using G = Group<T>;
  const T* x;
  const T* residual;
  const T* next_x;  // of the next row, if that has to come from memory; else null
  const T* next_residual;

  // `count` elements, with zeros behind them.
  HP_NORM_INLINE G load_group(int64_t i, int64_t count = G::kSize) const {
    G h;
    load_some(h, x + i, count);
    if constexpr (kAdd) {
      G addend;
      load_some(addend, residual + i, count);
      for (int p = 0; p < G::kParts; ++p) h.part[p] += addend.part[p];
    }
    return h;
  }
};

// A balanced binary tree over adjacent elements, as if padded with zeros to a power of two. A chunk
// of kWidth vectors becomes one vector of sums; then kWidth of those become one, until one is left.
// With kKeep, the elements go to `kept` as float32, with the zeros behind them.
template <bool kKeep, typename T, bool kAdd>
float sum_of_squares(const Input<T, kAdd>& input, int64_t hidden_size, float* kept) {
  constexpr int kGroup = Group<T>::kSize, kChunk = kWidth / Group<T>::kVectors * kGroup;
  Floats sums[kMaxHiddenSize / kChunk];
  const auto squares_of = [&](int64_t i, const auto& h) __attribute__((always_inline)) {
    if constexpr (kKeep) store_parts(kept + i, h);
    return sum_squares(h);
  };
  const auto whole = [&](int64_t i) __attribute__((always_inline)) {
    if (input.next_x != nullptr) __builtin_prefetch(input.next_x + i, 0, 2);
    return squares_of(i, input.load_group(i));
  };
  const auto some = [&](int64_t i) __attribute__((always_inline)) {
    return squares_of(i, input.load_group(i, hidden_size - i));
  };
  int64_t count = 0;
  int64_t i = 0;
  for (; i + kChunk <= hidden_size; i += kChunk) {
    sums[count++] = sum_tree<kLevels, kLeafDepth<T>>(whole, i, kGroup);
  }
  if (i < hidden_size) sums[count++] = sum_tree<kLevels, kLeafDepth<T>>(some, i, kGroup);

  const auto sums_at = [&](int64_t at) __attribute__((always_inline)) { return sums[at]; };
  for (;;) {
    const bool is_last = count == 1;
    while (count % kWidth != 0) sums[count++] = Floats{};
    count /= kWidth;
    for (int64_t j = 0; j < count; ++j) sums[j] = sum_tree<kLevels, 0>(sums_at, j * kWidth, 1);
    if (is_last) return sums[0][0];
  }
}

// What a normalised element is multiplied by.
template <typename T, typename W, Weight kWeight>
struct Factors {
  using G = Group<T>;
  const W* weight;
  float weight_offset;

  HP_NORM_INLINE G load_group(int64_t i, int64_t count = G::kSize) const {
    G factors{};
    if constexpr (kWeight != Weight::kNone) load_some(factors, weight + i, count);
    for (Floats& part : factors.part) {
      part += weight_offset;
      if constexpr (kWeight == Weight::kRounded) part = round_to<W>(part);
    }
    return factors;
  }
};

// The same factors, computed once for many rows. They lie in the order of groups.
template <typename T>
struct ReadyFactors {
  using G = Group<T>;
  const float* factors;

  HP_NORM_INLINE G load_group(int64_t i, int64_t = G::kSize) const {
    G group;
    load_parts(group, factors + i);
    return group;
  }
};

// Whether the second pass takes x + residual as float32 from the first. Sparing two conversions of
// six, it is 10 to 25 % faster at hidden sizes from 1024 to 32768 (Zen 4, AVX-512, 2026-11-26), but
// 4 to 7 % slower with AVX2 (Zen 3, 2026-11-25). Without a residual it spares one conversion of
// three, and does not pay.
template <typename T, bool kAdd>
constexpr bool kKeepsSums = kWidth == 16 && kAdd && std::is_same_v<T, Float16>;

template <typename T, typename W, bool kAdd, Weight kWeight, typename RowFactors>
void norm_row(const NormCall& call, int64_t row, float inverse_size, RowFactors factors,
              bool next_is_far) {
  using G = Group<T>;
  const int64_t hidden_size = call.hidden_size;
  const auto row_of = [&](const void* rows, int64_t stride, int64_t at) {
    return static_cast<const T*>(rows) + at * stride;
  };
  Input<T, kAdd> input{row_of(call.x, call.x_stride, row), nullptr, nullptr, nullptr};
  if (next_is_far) input.next_x = row_of(call.x, call.x_stride, row + 1);
  if constexpr (kAdd) {
    input.residual = row_of(call.residual, call.residual_stride, row);
    if (next_is_far) input.next_residual = row_of(call.residual, call.residual_stride, row + 1);
  }
  constexpr bool kKeep = kKeepsSums<T, kAdd>;
  alignas(64) float kept[kKeep ? kMaxHiddenSize : 1];
  const float mean_square = sum_of_squares<kKeep>(input, hidden_size, kept) * inverse_size;
  const double root = std::sqrt(static_cast<double>(mean_square + call.eps));
  const float rstd = static_cast<float>(1.0 / root);

  T* out = static_cast<T*>(call.out) + row * call.out_stride;
  T* residual_out = static_cast<T*>(call.residual_out) + row * call.residual_out_stride;
  const auto scale = [&](G& h, const G& factor) __attribute__((always_inline)) {
    for (int p = 0; p < G::kParts; ++p) {
      h.part[p] *= rstd;
      if constexpr (kWeight == Weight::kExact) {
        h.part[p] *= factor.part[p];
      } else if constexpr (kWeight == Weight::kRounded) {
        h.part[p] = round_to<W>(round_to<W>(h.part[p]) * factor.part[p]);
      }
    }
  };
  int64_t i = 0;
  for (; i + G::kSize <= hidden_size; i += G::kSize) {
    if (input.next_residual != nullptr) __builtin_prefetch(input.next_residual + i, 0, 2);
    G h;
    if constexpr (kKeep) {
      load_parts(h, kept + i);
    } else {
      h = input.load_group(i);
    }
    if constexpr (kAdd) store(residual_out + i, h);
    scale(h, factors.load_group(i));
    store(out + i, h);
  }
  if (const int64_t count = hidden_size - i; count > 0) {
    G h = input.load_group(i, count);
    if constexpr (kAdd) store_some(residual_out + i, h, count);
    scale(h, factors.load_group(i, count));
    store_some(out + i, h, count);
  }
}

template <typename T, typename W, bool kAdd, Weight kWeight>
void norm_rows(const NormCall& call, int64_t first_row, int64_t last_row) {
  constexpr int kGroup = Group<T>::kSize;
  const int64_t hidden_size = call.hidden_size;
  const float inverse_size = static_cast<float>(1.0 / static_cast<double>(hidden_size));
  const Factors<T, W, kWeight> factors{static_cast<const W*>(call.weight), call.weight_offset};
  // Rows that come from memory are asked for while the row before is normalised, x in its first
  // pass and the residual in its second: 1.2 to 1.6 times as fast. In a cache it can cost up to 12
  // %, and float32 rows lose 8 to 30 % anywhere (Zen 3, 2026-11-25; Zen 4, 2026-11-26).
  constexpr int64_t kFarBytes = 2 << 20;
  const bool is_far =
      sizeof(T) == 2 && call.num_tokens * hidden_size * int64_t{sizeof(T)} >= kFarBytes;
  const auto norm = [&](const auto& row_factors) {
    for (int64_t row = first_row; row < last_row; ++row) {
      const bool next_is_far = is_far && row + 1 < last_row;
      norm_row<T, W, kAdd, kWeight>(call, row, inverse_size, row_factors, next_is_far);
    }
  };
  // Computing the factors once pays from that many rows on, as long as they and a row fit in the
  // first-level cache or nearly so, which they do not beside sums that are kept; float32 weights
  // have nothing to convert (Zen 3 and Zen 4, 2026-11-26).
  constexpr int64_t kReadyRows = 4, kReadySize = 8192;
  constexpr bool kMayBeReady =
      kWeight != Weight::kNone && !kKeepsSums<T, kAdd> && !std::is_same_v<W, float>;
  if constexpr (kMayBeReady) {
    if (last_row - first_row >= kReadyRows && hidden_size <= kReadySize) {
      alignas(64) float ready[kReadySize];
      int64_t i = 0;
      for (; i + kGroup <= hidden_size; i += kGroup) store_parts(ready + i, factors.load_group(i));
      if (i < hidden_size) store_parts(ready + i, factors.load_group(i, hidden_size - i));
      return norm(ReadyFactors<T>{ready});
    }
  }
  norm(factors);
}

template <typename T, bool kAdd>
RowKernel kernel_for_weight(const NormCall& call) {
  if (call.weight == nullptr) return norm_rows<T, float, kAdd, Weight::kNone>;
  // Rounding to float32 changes nothing, so such a weight has one order only.
  if (call.weight_is_float32) return norm_rows<T, float, kAdd, Weight::kExact>;
  if (call.round_before_weight) return norm_rows<T, T, kAdd, Weight::kRounded>;
  return norm_rows<T, T, kAdd, Weight::kExact>;
}

template <typename T>
RowKernel kernel_for(const NormCall& call) {
  return call.residual != nullptr ? kernel_for_weight<T, true>(call)
                                  : kernel_for_weight<T, false>(call);
}

}  // namespace

void HP_NORM_ROW_KERNEL(const NormCall& call, int64_t first_row, int64_t last_row) {
  switch (call.dtype) {
    case DType::kBfloat16: return kernel_for<Bfloat16>(call)(call, first_row, last_row);
    case DType::kFloat16: return kernel_for<Float16>(call)(call, first_row, last_row);
    default: return kernel_for<float>(call)(call, first_row, last_row);
  }
}

}  // namespace hp_norm

// One row at a time, 16 floats at a time. The same bits as the CUDA kernels: float32 throughout,
// squares summed by adjacent pairs, a correctly rounded reciprocal square root.
//
// HP_NORM_ROW_KERNEL names the function that this compilation defines; the compiler's target flags
// decide how the 16-wide vectors are made.
#include "row_kernel.h"

#include <cmath>
#include <cstring>
#include <vector>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace hp_norm {
namespace {

constexpr int kWidth = 16;
constexpr int kChunk = kWidth * kWidth;  // elements whose squares become one vector of 16 sums

typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef uint32_t Words __attribute__((vector_size(4 * kWidth)));
typedef uint16_t Halves __attribute__((vector_size(2 * kWidth)));

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

Halves load_halves(const void* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof(halves));
  return halves;
}

Floats load(const float* from) {
  Floats values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}

Floats load(const Bfloat16* from) {
  return (Floats)(__builtin_convertvector(load_halves(from), Words) << 16);
}

Floats load(const Float16* from) {
#if defined(__F16C__)
  Floats values;
  for (int half = 0; half < 2; ++half) {
    const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + half);
    const __m256 wide = _mm256_cvtph_ps(packed);
    std::memcpy(reinterpret_cast<float*>(&values) + 8 * half, &wide, sizeof(wide));
  }
  return values;
#else
  Floats values;
  for (int i = 0; i < kWidth; ++i) {
    values[i] = torch::headeronly::detail::fp16_ieee_to_fp32_value(from[i].bits);
  }
  return values;
#endif
}

void store(float* to, Floats values) { std::memcpy(to, &values, sizeof(values)); }

void store(Bfloat16* to, Floats values) {
  const Words words = (Words)values;
  const Words rounded = (words + 0x7fff + ((words >> 16) & 1)) >> 16;
  const Words quiet_nan = (Words){} + 0x7fc0;
  const Halves halves = __builtin_convertvector(values == values ? rounded : quiet_nan, Halves);
  std::memcpy(to, &halves, sizeof(halves));
}

void store(Float16* to, Floats values) {
#if defined(__F16C__)
  for (int half = 0; half < 2; ++half) {
    const __m256 wide = _mm256_loadu_ps(reinterpret_cast<const float*>(&values) + 8 * half);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to) + half,
                     _mm256_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT));
  }
#else
  for (int i = 0; i < kWidth; ++i) {
    to[i].bits = torch::headeronly::detail::fp16_ieee_from_fp32_value(values[i]);
  }
#endif
}

// The first `count` of 16 elements; the rest reads as zero and is not written.
template <typename T>
Floats load_some(const T* from, int count) {
  if (count >= kWidth) return load(from);
  T padded[kWidth] = {};
  std::memcpy(padded, from, count * sizeof(T));
  return load(padded);
}

template <typename T>
void store_some(T* to, Floats values, int count) {
  if (count >= kWidth) return store(to, values);
  T padded[kWidth];
  store(padded, values);
  std::memcpy(to, padded, count * sizeof(T));
}

template <typename T>
Floats round_to(Floats values) {
  T rounded[kWidth];
  store(rounded, values);
  return load(rounded);
}

// [a0 + a1, a2 + a3, ..., b0 + b1, ...]: one level of the tree over 32 adjacent sums.
Floats add_pairs(Floats a, Floats b) {
  const Words even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
  return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, even + 1);
}

// Squares of 2^kLevels vectors, summed kLevels times by adjacent pairs.
template <int kLevels>
inline Floats sum_squares(const float* h) {
  if constexpr (kLevels == 0) {
    const Floats values = load(h);
    return values * values;
  } else {
    constexpr int kHalf = kWidth << (kLevels - 1);
    return add_pairs(sum_squares<kLevels - 1>(h), sum_squares<kLevels - 1>(h + kHalf));
  }
}

// The sum of squares over chunks of 256 zero-padded elements: a balanced binary tree over adjacent
// elements, as if padded with zeros to a power of two.
float sum_squares_tree(const float* h, int64_t chunks) {
  Floats pending[16];  // pending[level]: a left half that waits for its right half
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    Floats sums = sum_squares<4>(h + chunk * kChunk);
    int level = 0;
    for (; (chunk >> level) & 1; ++level) sums = add_pairs(pending[level], sums);
    pending[level] = sums;
  }
  int level = __builtin_ctzll(chunks);
  Floats sums = pending[level];
  for (; (int64_t{1} << level) < chunks; ++level) {
    const bool is_right_half = level > __builtin_ctzll(chunks) && ((chunks >> level) & 1);
    sums = is_right_half ? add_pairs(pending[level], sums) : add_pairs(sums, Floats{});
  }
  for (int step = 0; step < 4; ++step) sums = add_pairs(sums, Floats{});
  return sums[0];
}

template <typename T, typename W>
void norm_row(const NormCall& call, int64_t row, float* h) {
  const int64_t hidden_size = call.hidden_size;
  const T* x = static_cast<const T*>(call.x) + row * call.x_stride;
  T* out = static_cast<T*>(call.out) + row * call.out_stride;

  if (call.residual != nullptr) {
    const T* residual = static_cast<const T*>(call.residual) + row * call.residual_stride;
    T* residual_out = static_cast<T*>(call.residual_out) + row * call.residual_out_stride;
    for (int64_t i = 0; i < hidden_size; i += kWidth) {
      const int count = static_cast<int>(hidden_size - i);
      const Floats sum = load_some(x + i, count) + load_some(residual + i, count);
      store(h + i, sum);
      store_some(residual_out + i, sum, count);
    }
  } else {
    for (int64_t i = 0; i < hidden_size; i += kWidth) {
      store(h + i, load_some(x + i, static_cast<int>(hidden_size - i)));
    }
  }
  const int64_t chunks = (hidden_size + kChunk - 1) / kChunk;
  const int64_t written = (hidden_size + kWidth - 1) / kWidth * kWidth;
  std::memset(h + written, 0, (chunks * kChunk - written) * sizeof(float));

  const float inverse_size = static_cast<float>(1.0 / static_cast<double>(hidden_size));
  const float mean_square = sum_squares_tree(h, chunks) * inverse_size;
  const float rstd = static_cast<float>(1.0 / std::sqrt(static_cast<double>(mean_square + call.eps)));

  const W* weight = static_cast<const W*>(call.weight);
  for (int64_t i = 0; i < hidden_size; i += kWidth) {
    const int count = static_cast<int>(hidden_size - i);
    Floats y = load(h + i) * rstd;
    if (weight != nullptr) {
      Floats factor = load_some(weight + i, count) + call.weight_offset;
      if (call.round_before_weight) {
        y = round_to<W>(round_to<W>(y) * round_to<W>(factor));
      } else {
        y = y * factor;
      }
    }
    store_some(out + i, y, count);
  }
}

template <typename T, typename W>
void norm_rows(const NormCall& call, int64_t first_row, int64_t last_row) {
  static thread_local std::vector<float> scratch;
  scratch.resize((call.hidden_size + kChunk - 1) / kChunk * kChunk);
  for (int64_t row = first_row; row < last_row; ++row) {
    norm_row<T, W>(call, row, scratch.data());
  }
}

template <typename T>
void norm_rows_of(const NormCall& call, int64_t first_row, int64_t last_row) {
  if (call.weight_is_float32) {
    norm_rows<T, float>(call, first_row, last_row);
  } else {
    norm_rows<T, T>(call, first_row, last_row);
  }
}

}  // namespace

void HP_NORM_ROW_KERNEL(const NormCall& call, int64_t first_row, int64_t last_row) {
  switch (call.dtype) {
    case ScalarType::BFloat16: return norm_rows_of<Bfloat16>(call, first_row, last_row);
    case ScalarType::Half: return norm_rows_of<Float16>(call, first_row, last_row);
    default: return norm_rows<float, float>(call, first_row, last_row);
  }
}

}  // namespace hp_norm

// The kernel of a configuration: every instantiation is reached from here.
#pragma once

#include <type_traits>

#include "reread.cuh"
#include "rms_norm.cuh"

namespace hp_norm {

template <typename T, typename W, bool kAdd>
struct Kernels {
  // As pointers to const void: the launcher passes NormParams by address to every kernel alike.
  template <int kVecBytes, int kVecs, bool kCluster, RowPath kPath>
  static const void* row() {
    constexpr int kElems = kVecBytes / sizeof(T);
    return reinterpret_cast<const void*>(
        &rms_norm_kernel<T, W, kElems, kVecs, kAdd, kCluster, kPath>);
  }

  template <int kVecBytes, bool kCluster, RowPath kPath>
  static const void* wide(int vecs_per_thread) {
    switch (vecs_per_thread) {
      case 1: return row<kVecBytes, 1, kCluster, kPath>();
      case 2: return row<kVecBytes, 2, kCluster, kPath>();
      default:
        // 32 values a thread are the most, so 32-byte vectors stop at 2.
        if constexpr (kVecBytes == 16) return row<kVecBytes, 4, kCluster, kPath>();
        return nullptr;
    }
  }

  template <int kVecBytes>
  static const void* wide(const LaunchConfig& config) {
    if (config.ctas_per_row > 1) {
      return wide<kVecBytes, true, RowPath::kWide>(config.vecs_per_thread);
    }
    return config.rows_per_cta > 1 ? wide<kVecBytes, false, RowPath::kRows>(config.vecs_per_thread)
                                   : wide<kVecBytes, false, RowPath::kWide>(config.vecs_per_thread);
  }

  static const void* find(const LaunchConfig& config) {
    const bool cluster = config.ctas_per_row > 1;
    // Beside float32 weights, which few models have, rows have one cache policy.
    if constexpr (std::is_same_v<T, W>) {
      if (config.options & kKeepOutput) {
        if (config.options & kStaged) return row<16, 4, false, RowPath::kStagedKept>();
        if (!cluster) return row<16, 4, false, RowPath::kKept>();
        if constexpr (!kAdd) {
          if (config.options & kLean) return row<16, 2, true, RowPath::kLean>();
        }
        return config.vecs_per_thread == 2 ? row<16, 2, true, RowPath::kKept>()
                                           : row<16, 4, true, RowPath::kKept>();
      }
      if (config.options & kCached) {
        return config.vecs_per_thread == 2 ? row<16, 2, false, RowPath::kCached>()
                                           : row<16, 4, false, RowPath::kCached>();
      }
    }
    if (config.options & kReread) {
      return reinterpret_cast<const void*>(&rms_norm_reread_kernel<T, W, 16 / sizeof(T), kAdd>);
    }
    if (config.options & kNarrow) {
      return cluster ? row<16, kNarrowVecs, true, RowPath::kNarrow>()
                     : row<16, kNarrowVecs, false, RowPath::kNarrow>();
    }
    if (config.options & kStaged) {
      if constexpr (std::is_same_v<T, W> && !kAdd) {
        if (config.options & kReadOnce) return row<16, 8, false, RowPath::kStagedOnce>();
      }
      return config.vecs_per_thread == 4 ? row<16, 4, false, RowPath::kStaged>()
                                         : row<16, 8, false, RowPath::kStaged>();
    }
    return config.vec_bytes == 16 ? wide<16>(config) : wide<32>(config);
  }
};

}  // namespace hp_norm

// The paths of the kernel, and what a thread of each may use.
#pragma once

#include <type_traits>

#include "access.cuh"

namespace hp_norm {

// How a row comes in and where it waits for its sum.
enum class RowPath {
  kWide,    // whole vectors, in registers
  kRows,    // the same with several rows a CTA
  kCached,  // as kWide, with the default cache policy
  kKept,    // as kWide, and the output stays in L2
  kNarrow,  // accesses of any width, in registers; several rows a CTA; every option
  kStaged,  // whole vectors, in shared memory: fewer registers, so that two long rows fit on an SM
  kStagedKept,  // as kStaged, and the output stays in L2
  kLean,        // as kKept, in fewer registers (plain norm in a cluster)
  kStagedOnce,  // as kStaged, and L2 gives x up first (plain norm)
};

template <RowAccess kAccess>
using Access = std::integral_constant<RowAccess, kAccess>;

// 64 registers leave room for a CTA of 1024 threads. Fewer, where a row has no use for them, make
// room for one more CTA on the SM, of this call or the next (H200, 2026-11-26: 40 instead of 48 at
// 1024 x 8192 of the plain norm 3 %; for the fused add in a cluster 32, so that a launch that fills
// the GPU fits beside the CTAs of a split product's reduction, and 48 for two vectors, 256 x 5120
// 5 %; the plain norm loses up to 6 % by 48 there, and gains 6 % where two CTAs of 640 threads fit
// by them, hence kLean). vecs: of 16 bytes.
constexpr int max_registers(RowPath path, int vecs, bool add, bool cluster, bool wide_weights) {
  if (path == RowPath::kNarrow || wide_weights) return 64;
  if (path == RowPath::kLean) return 48;
  if (cluster) return vecs == 1 ? (add ? 32 : 40) : vecs == 2 ? (add ? 48 : 56) : 64;
  switch (path) {
    case RowPath::kStaged:
    case RowPath::kStagedOnce:
    case RowPath::kStagedKept: return vecs == 8 && add ? 64 : 48;
    case RowPath::kRows: return vecs == 1 ? 40 : vecs == 2 ? 48 : 64;
    default: return vecs == 1 ? 32 : vecs == 2 ? 40 : 64;
  }
}

}  // namespace hp_norm

// The exchange of chunk sums between the CTAs of a cluster (sm_90 and later): every CTA pushes its
// sums into the shared memory of all of them, and waits until its own copy is complete.
//
// st.async counts its bytes on the receiver's mbarrier, so a CTA leaves as soon as it has what it
// needs; no CTA waits for another to read.
#pragma once

#include <cstdint>

namespace hp_norm {

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ uint64_t* cluster_mbarrier() {
  __shared__ uint64_t mbarrier;
  return &mbarrier;
}

__device__ __forceinline__ uint32_t in_cta(uint32_t address, int rank) {
  uint32_t remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
}
#endif

__device__ __forceinline__ int cluster_rank() {
#if __CUDA_ARCH__ >= 900
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}

__device__ __forceinline__ uint32_t cluster_id() {
#if __CUDA_ARCH__ >= 900
  uint32_t id;
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(id));
  return id;
#else
  return 0;
#endif
}

// Every thread calls it once, early. The barrier it arrives at is waited for in push, so that
// starting the cluster overlaps with loading the row. It arrives relaxed, since a release would
// wait for all of the GPU's memory: fence.mbarrier_init publishes the mbarrier, and what the CTA
// keeps for itself in shared memory before this the fence of the block orders.
__device__ __forceinline__ void cluster_sums_prepare(int chunks_per_row) {
#if __CUDA_ARCH__ >= 900
  if (threadIdx.x == 0) {
    const uint32_t mbarrier = shared_address(cluster_mbarrier());
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(mbarrier) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(mbarrier),
                 "r"(chunks_per_row * 4)
                 : "memory");
  }
  __threadfence_block();
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}

// Lane l brings the sum of the warp's chunk l % kVecs, which is chunk
// first_chunk + (l % kVecs) * warps of the row.
template <int kVecs>
__device__ __forceinline__ void cluster_sums_push(float* chunk_sums, float sum, int first_chunk,
                                                  int warps, int ctas, int lane) {
#if __CUDA_ARCH__ >= 900
  // Before this barrier a peer may not have started, or not have an mbarrier yet.
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  const uint32_t slot = shared_address(chunk_sums + first_chunk + (lane % kVecs) * warps);
  const uint32_t mbarrier = shared_address(cluster_mbarrier());
  const int rank = lane / kVecs;  // kVecs * ctas is at most 32
  if (rank < ctas) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
                     in_cta(slot, rank)),
                 "r"(__float_as_uint(sum)), "r"(in_cta(mbarrier, rank))
                 : "memory");
  }
#endif
}

// Returns when the chunk sums of the whole row are in this CTA's shared memory. It acquires for the
// CTA, which is the default: st.async counts its bytes when they are there. For the cluster it
// would empty L1 as well.
__device__ __forceinline__ void cluster_sums_wait() {
#if __CUDA_ARCH__ >= 900
  const uint32_t mbarrier = shared_address(cluster_mbarrier());
  uint32_t complete = 0;
  while (!complete) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(complete)
        : "r"(mbarrier)
        : "memory");
  }
#endif
}

}  // namespace hp_norm

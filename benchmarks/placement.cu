// Where a grid's clusters begin, for benchmarks/placement.py.
//
//   nvcc -std=c++20 -O3 -arch=sm_90 -shared -Xcompiler -fPIC -o placement.so \
//     benchmarks/placement.cu
//
// `probe` is launched as a matrix product is that has one CTA on every SM, in clusters of two, and
// writes down the SM of each. `stay` is any launch before it: CTAs that stay for a while and end.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int kProbeThreads = 384;
constexpr int kProbeSharedBytes = 216 << 10;  // no two on an SM
constexpr int kProbeCluster = 2;
constexpr int64_t kProbeNs = 3000;  // longer than it takes to launch them all

__device__ void stay_for(int64_t ns) {
  int64_t start, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  do {
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  } while (now - start < ns);
}

__global__ void probe_kernel(int32_t* sm_of_cta) {
  int32_t sm;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
  if (threadIdx.x == 0) sm_of_cta[blockIdx.x] = sm;
  stay_for(kProbeNs);
}

__global__ void stay_kernel(int64_t ns) { stay_for(ns); }

template <typename... Arguments>
int launch(void (*kernel)(Arguments...), int ctas, int threads, int shared_bytes, int cluster,
           void* stream, Arguments... arguments) {
  cudaLaunchAttribute attribute;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(ctas);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  if (cluster > 1) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    config.numAttrs = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace

// sm_of_cta: int32 [ctas]. Returns a cudaError_t, as the function below.
extern "C" int placement_probe(int32_t* sm_of_cta, int ctas, void* stream) {
  cudaFuncSetAttribute(probe_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       kProbeSharedBytes);
  return launch(probe_kernel, ctas, kProbeThreads, kProbeSharedBytes, kProbeCluster, stream,
                sm_of_cta);
}

extern "C" int placement_stay(int ctas, int threads, int cluster, int64_t ns, void* stream) {
  return launch(stay_kernel, ctas, threads, 0, cluster, stream, ns);
}

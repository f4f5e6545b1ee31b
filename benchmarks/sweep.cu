// Times every launch configuration of the bf16 kernel over a grid of shapes, straight from the
// kernel headers: no torch, no operator, a second of compilation for each experiment with the
// kernel itself.
//
//   nvcc -std=c++20 -O3 -arch=sm_90 -Icsrc/cuda benchmarks/sweep.cu -o sweep && ./sweep > sweep.csv
//   nvcc ... -DHP_NORM_SWEEP_ADD=false ...    # the plain norm
//
// Protocol of benchmarks/timing.py: below 512 tokens 64 calls a CUDA graph over 4 input sets, from
// 512 tokens up inputs rotate over 4 times L2; in place; the median of 5 replays.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "launch_rules.h"
#include "rms_norm.cuh"

#ifndef HP_NORM_SWEEP_ADD
#define HP_NORM_SWEEP_ADD true
#endif

namespace {

using namespace hp_norm;
using Element = __nv_bfloat16;
constexpr bool kAdd = HP_NORM_SWEEP_ADD;

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

template <int kVecs, bool kCluster, RowPath kPath>
const void* kernel() {
  return reinterpret_cast<const void*>(
      &rms_norm_kernel<Element, Element, 8, kVecs, kAdd, kCluster, kPath>);
}

template <bool kCluster>
const void* wide_kernel(int vecs) {
  switch (vecs) {
    case 1: return kernel<1, kCluster, RowPath::kWide>();
    case 2: return kernel<2, kCluster, RowPath::kWide>();
    default: return kernel<4, kCluster, RowPath::kWide>();
  }
}

const void* kernel_of(const LaunchConfig& config) {
  const int vecs = config.vecs_per_thread;
  if (config.options & kStaged) {
    return vecs == 4 ? kernel<4, false, RowPath::kStaged>() : kernel<8, false, RowPath::kStaged>();
  }
  return config.ctas_per_row > 1 ? wide_kernel<true>(vecs) : wide_kernel<false>(vecs);
}

__global__ void fill(Element* values, size_t count, unsigned seed) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < count;
       i += step) {
    unsigned hash = static_cast<unsigned>(i) * 2654435761u + seed;
    hash = (hash ^ (hash >> 15)) * 2246822519u;
    values[i] = __float2bfloat16((hash >> 16) / 32768.0f - 1.0f);
  }
}

struct Bench {
  cudaStream_t stream;
  cudaEvent_t start, stop;
  int num_sms, l2_bytes;
  Element* pool;
  Element* weight;
  size_t pool_elements = size_t{3} << 30;

  Bench() {
    check(cudaStreamCreate(&stream));
    check(cudaEventCreate(&start));
    check(cudaEventCreate(&stop));
    check(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, 0));
    check(cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, 0));
    check(cudaMalloc(&pool, pool_elements * sizeof(Element)));
    check(cudaMalloc(&weight, kMaxSharedChunks * 1024 * sizeof(Element)));
    fill<<<1024, 256>>>(pool, pool_elements, 1);
    fill<<<64, 256>>>(weight, kMaxSharedChunks * 1024, 7);
    check(cudaDeviceSynchronize());
  }

  void launch(Element* x, int num_tokens, int hidden_size, const LaunchConfig& config) {
    const LaunchShape shape = launch_shape(config, hidden_size * 2);
    Element* residual = x + static_cast<size_t>(num_tokens) * hidden_size;
    NormParams p{};
    p.x = p.out = x;
    p.residual = p.residual_out = residual;
    p.weight = weight;
    p.x_stride = p.residual_stride = p.out_stride = p.residual_out_stride = hidden_size;
    p.num_tokens = num_tokens;
    p.hidden_size = hidden_size;
    p.vecs_per_row = shape.vecs_per_row;
    p.ctas_per_row = config.ctas_per_row;
    p.padded_chunks = padded_chunks(shape.chunks_per_row);
    p.row_access_bytes = p.weight_access_bytes = 16;
    p.inverse_size = 1.0f / hidden_size;
    p.eps = 1e-6f;
    p.trigger_early = config.options & kTriggerEarly;
    if (config.options & kPrefetchResidual) {
      p.first_wave_rows = num_sms * kThreadsPerSm / (shape.threads_per_row * config.ctas_per_row);
    }
    if (config.options & kPrefetchAhead) {
      p.ahead_rows = static_cast<int>(ceil_div(kAheadBytes, 2 * hidden_size * (kAdd ? 2 : 1)));
    }
    cudaLaunchAttribute attributes[2];
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim = {static_cast<unsigned>(config.ctas_per_row), 1, 1};
    cudaLaunchConfig_t launch{};
    launch.gridDim = dim3(ceil_div(num_tokens, config.rows_per_cta) * config.ctas_per_row);
    launch.blockDim = dim3(shape.threads_per_row, config.rows_per_cta);
    launch.dynamicSmemBytes =
        sizeof(float) * p.padded_chunks * config.rows_per_cta + stage_bytes(config, shape, kAdd);
    launch.stream = stream;
    launch.attrs = attributes;
    launch.numAttrs = config.ctas_per_row > 1 ? 2 : 1;
    void* arguments[] = {&p};
    const void* kernel = kernel_of(config);
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(launch.dynamicSmemBytes)));
    check(cudaLaunchKernelExC(&launch, kernel, arguments));
  }

  // Microseconds per call.
  float time(int num_tokens, int hidden_size, const LaunchConfig& config) {
    const size_t set = 2 * static_cast<size_t>(num_tokens) * hidden_size;
    const size_t rotating = 4 * static_cast<size_t>(l2_bytes) / (set * sizeof(Element)) + 1;
    const size_t sets = std::min(num_tokens < 512 ? size_t{4} : rotating, pool_elements / set);
    const int calls = num_tokens < 512 ? 64 : std::max<int>(4, sets);
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < calls; ++i) launch(pool + i % sets * set, num_tokens, hidden_size, config);
    check(cudaStreamEndCapture(stream, &graph));
    check(cudaGraphInstantiate(&executable, graph, 0));
    std::vector<float> microseconds;
    for (int replay = 0; replay < 6; ++replay) {
      check(cudaEventRecord(start, stream));
      check(cudaGraphLaunch(executable, stream));
      check(cudaEventRecord(stop, stream));
      check(cudaEventSynchronize(stop));
      float milliseconds;
      check(cudaEventElapsedTime(&milliseconds, start, stop));
      if (replay > 0) microseconds.push_back(1e3f * milliseconds / calls);
    }
    check(cudaGraphExecDestroy(executable));
    check(cudaGraphDestroy(graph));
    std::nth_element(microseconds.begin(), microseconds.begin() + 2, microseconds.end());
    return microseconds[2];
  }
};

}  // namespace

int main() {
  Bench bench;
  for (int i = 0; i < 20; ++i) bench.time(4096, 4096, {16, 1, 1, 1, 0});
  std::printf("op,num_tokens,hidden_size,vecs_per_thread,rows_per_cta,ctas_per_row,options,us\n");
  for (const int num_tokens :
       {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384}) {
    for (const int hidden_size : {1024, 2048, 2560, 2880, 3072, 3584, 4096, 5120, 6144, 7168, 8192,
                                  12288, 14336, 16384, 18432, 20480, 24576, 28672, 32768}) {
      for (const int vecs : {1, 2, 4, 8}) {
        for (const int rows : {1, 2, 4}) {
          for (const int ctas : {1, 2, 4, 8}) {
            for (const int options : {0, 1, 2, 3, 4, 5, 6, 7, 32, 33, 34, 35, 36, 37, 38, 39}) {
              const LaunchConfig config{16, vecs, rows, ctas, options};
              if (!is_valid(config, hidden_size * 2)) continue;
              std::printf("%s,%d,%d,%d,%d,%d,%d,%.3f\n", kAdd ? "fused_add" : "plain", num_tokens,
                          hidden_size, vecs, rows, ctas, options,
                          bench.time(num_tokens, hidden_size, config));
            }
          }
        }
      }
    }
  }
  return 0;
}

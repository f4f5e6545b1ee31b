// What it is worth that a row comes back to the SM that had it in the call before.
//
//   nvcc -std=c++20 -O3 -arch=sm_90 -Icsrc/cuda benchmarks/locality.cu -o locality && ./locality
//
// The cached protocol of benchmarks/timing.py (64 calls a CUDA graph over 4 input sets that stay in
// L2) with a kernel that moves the bytes of a fused add: x and residual change places, one row a
// CTA, as programmatic dependents. CTAs are launched alone or in clusters, and take the
// same rows in every call or others; from a second run, the share of CTAs that were on the SM that
// had their row in the call before with the same set.
#include <cstdint>

#include "launch.cuh"
#include "reduce.cuh"

namespace {

using namespace hp_norm;
using namespace hp_norm::bench;

constexpr int kCalls = 64, kSets = 4, kReplays = 15, kMaxCtas = 512, kShift = 37;
constexpr size_t kPoolBytes = size_t{256} << 20;

// CTA b takes row (b + shift) % gridDim.x and writes its SM to `sms`, if there is one.
template <int kVecs>
__global__ void __launch_bounds__(1024) move(uint4* x, uint4* residual, unsigned shift, int* sms) {
  const unsigned row = (blockIdx.x + shift) % gridDim.x;
  if (sms != nullptr && threadIdx.x == 0) {
    asm volatile("mov.u32 %0, %%smid;" : "=r"(sms[row]));
  }
  wait_for_primary_grid();
  launch_dependent_grid();
  const size_t first = size_t{row} * blockDim.x * kVecs + threadIdx.x;
  uint4 x_vec[kVecs], residual_vec[kVecs];
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    x_vec[i] = x[first + i * blockDim.x];
    residual_vec[i] = residual[first + i * blockDim.x];
  }
#pragma unroll
  for (int i = 0; i < kVecs; ++i) residual[first + i * blockDim.x] = x_vec[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kVecs; ++i) x[first + i * blockDim.x] = residual_vec[i];
}

using Kernel = void (*)(uint4*, uint4*, unsigned, int*);

void launch(cudaStream_t stream, Kernel kernel, int ctas, int threads, unsigned cluster, uint4* x,
            uint4* residual, unsigned shift, int* sms) {
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(ctas);
  config.blockDim = dim3(threads);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  void* arguments[] = {&x, &residual, &shift, &sms};
  check(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments));
}

// The share of rows that were on the same SM as kSets calls before.
double came_back(const int* device_sms, int ctas) {
  std::vector<int> sms(size_t{kCalls} * kMaxCtas);
  check(cudaMemcpy(sms.data(), device_sms, sms.size() * sizeof(int), cudaMemcpyDeviceToHost));
  int same = 0;
  for (int call = kSets; call < kCalls; ++call) {
    for (int row = 0; row < ctas; ++row) {
      same += sms[call * kMaxCtas + row] == sms[(call - kSets) * kMaxCtas + row];
    }
  }
  return double(same) / ((kCalls - kSets) * ctas);
}

}  // namespace

int main() {
  cudaStream_t stream;
  uint4* pool;
  int* sms;
  check(cudaStreamCreate(&stream));
  check(cudaMalloc(&pool, kPoolBytes));
  check(cudaMemset(pool, 0, kPoolBytes));
  check(cudaMalloc(&sms, sizeof(int) * kCalls * kMaxCtas));
  std::printf("num_tokens,hidden_size,threads,vecs_per_thread,cluster,rows,us,came_back\n");
  for (const int num_tokens : {64, 128, 256}) {
    for (const int hidden_size : {4096, 6144, 7168, 8192, 12288}) {
      for (const int vecs : {2, 4}) {
        const int threads = hidden_size / 8 / vecs;
        if (threads > 1024) continue;
        for (const unsigned cluster : {1u, 2u, 4u}) {
          for (const bool same : {true, false}) {
            const auto graph_of_calls = [&](int* log) {
              return Graph(stream, [&] {
                const size_t elements = size_t(num_tokens) * hidden_size / 8;
                for (int call = 0; call < kCalls; ++call) {
                  uint4* x = pool + call % kSets * 2 * elements;
                  launch(stream, vecs == 2 ? move<2> : move<4>, num_tokens, threads, cluster, x,
                         x + elements, same ? 0 : call * kShift % num_tokens,
                         log == nullptr ? nullptr : log + call * kMaxCtas);
                }
              });
            };
            Graph timed = graph_of_calls(nullptr);
            timed.replay();
            std::vector<float> times;
            for (int i = 0; i < kReplays; ++i) times.push_back(timed.replay() / kCalls);
            graph_of_calls(sms).replay();
            std::printf("%d,%d,%d,%d,%u,%s,%.3f,%.2f\n", num_tokens, hidden_size, threads, vecs,
                        cluster, same ? "same" : "others", median(times),
                        came_back(sms, num_tokens));
          }
        }
      }
    }
  }
  return 0;
}

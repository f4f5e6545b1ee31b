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

struct Bench {
  cudaStream_t stream;
  uint4* pool;
  int* sms;  // [kCalls][kMaxCtas]

  Bench() {
    check(cudaStreamCreate(&stream));
    check(cudaMalloc(&pool, kPoolBytes));
    check(cudaMemset(pool, 0, kPoolBytes));
    check(cudaMalloc(&sms, sizeof(int) * kCalls * kMaxCtas));
  }

  Graph calls(int num_tokens, int hidden_size, int vecs, unsigned cluster, bool same, bool log) {
    return Graph(stream, [&] {
      const size_t elements = size_t(num_tokens) * hidden_size / 8;
      const KernelLaunch how{num_tokens, hidden_size / 8 / vecs, cluster, true};
      for (int call = 0; call < kCalls; ++call) {
        uint4* x = pool + call % kSets * 2 * elements;
        const unsigned shift = same ? 0 : call * kShift % num_tokens;
        launch_kernel(stream, vecs == 2 ? move<2> : move<4>, how, x, x + elements, shift,
                      log ? sms + call * kMaxCtas : nullptr);
      }
    });
  }

  void print(int num_tokens, int hidden_size, int vecs, unsigned cluster, bool same) {
    Graph timed = calls(num_tokens, hidden_size, vecs, cluster, same, false);
    timed.replay();
    std::vector<float> times;
    for (int i = 0; i < kReplays; ++i) times.push_back(timed.replay() / kCalls);
    calls(num_tokens, hidden_size, vecs, cluster, same, true).replay();
    std::printf("%d,%d,%d,%d,%u,%s,%.3f,%.2f\n", num_tokens, hidden_size, hidden_size / 8 / vecs,
                vecs, cluster, same ? "same" : "others", median(times), came_back(sms, num_tokens));
  }
};

}  // namespace

int main() {
  Bench bench;
  std::printf("num_tokens,hidden_size,threads,vecs_per_thread,cluster,rows,us,came_back\n");
  for (const int num_tokens : {64, 128, 256}) {
    for (const int hidden_size : {4096, 6144, 7168, 8192, 12288}) {
      for (const int vecs : {2, 4}) {
        for (const unsigned cluster : {1u, 2u, 4u}) {
          for (const bool same : {true, false}) {
            bench.print(num_tokens, hidden_size, vecs, cluster, same);
          }
        }
      }
    }
  }
  return 0;
}

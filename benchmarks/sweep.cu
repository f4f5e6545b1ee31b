// Times every launch configuration of the bf16 kernel over a grid of shapes, in seconds.
//
//   nvcc -std=c++20 -O3 -arch=sm_90 -Icsrc/cuda benchmarks/sweep.cu -o sweep && ./sweep > sweep.csv
//   nvcc ... -DHP_NORM_SWEEP_ADD=false ...    # the plain norm
//   ./sweep 128 256 > sweep.csv               # these numbers of tokens only
//
// Protocol of benchmarks/timing.py: below 512 tokens 64 calls a CUDA graph over up to 4 input sets
// that fit in L2, from 512 tokens up inputs rotate over 4 times L2; the fused add in place, the
// plain norm to other memory; the median of 5 replays. Below 512 tokens without
// triggers behind the loads, which benchmarks.choose does not take there, and requests ahead.
#include "launch.cuh"

#ifndef HP_NORM_SWEEP_ADD
#define HP_NORM_SWEEP_ADD true
#endif

namespace {

using namespace hp_norm;
using namespace hp_norm::bench;
constexpr bool kAdd = HP_NORM_SWEEP_ADD;

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
  int num_sms, l2_bytes;
  Element* pool;
  Element* weight;
  size_t pool_elements = size_t{3} << 30;

  Bench() {
    check(cudaStreamCreate(&stream));
    check(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, 0));
    check(cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, 0));
    check(cudaMalloc(&pool, pool_elements * sizeof(Element)));
    check(cudaMalloc(&weight, kMaxSharedChunks * 1024 * sizeof(Element)));
    fill<<<1024, 256>>>(pool, pool_elements, 1);
    fill<<<64, 256>>>(weight, kMaxSharedChunks * 1024, 7);
    check(cudaDeviceSynchronize());
  }

  // Microseconds per call.
  float time(int num_tokens, int hidden_size, const LaunchConfig& config) {
    const size_t rows = static_cast<size_t>(num_tokens) * hidden_size;
    const size_t set_bytes = (kAdd ? 2 : 1) * rows * sizeof(Element);
    // As in benchmarks/timing.py: fewer than 4 sets where 4 do not fit in L2.
    const size_t fitting = std::clamp<size_t>(l2_bytes / set_bytes, 1, 4);
    const size_t rotating = 4 * static_cast<size_t>(l2_bytes) / set_bytes + 1;
    const size_t sets = std::min(num_tokens < 512 ? fitting : rotating, pool_elements / 2 / rows);
    const int calls = num_tokens < 512 ? 64 : std::max<int>(4, sets);
    Graph graph(stream, [&] {
      for (int i = 0; i < calls; ++i) {
        // As in benchmarks/timing.py: all sets of x, and all of the residual elsewhere.
        Element* x = pool + i % sets * rows;
        Element* residual = kAdd ? x + pool_elements / 2 : nullptr;
        // In place; the plain norm, a function, writes to new memory: one block for all calls
        // where they stay in L2, one for each set where they do not.
        Element* out =
            kAdd ? x : pool + pool_elements / 2 + (num_tokens < 512 ? 0 : i % sets * rows);
        const Tensors tensors{x, residual, weight, out, residual};
        launch_norm<kAdd>(stream, tensors, num_tokens, hidden_size, config, num_sms, true);
      }
    });
    check(cudaCtxResetPersistingL2Cache());  // lines that the configuration before had kept
    graph.replay();
    std::vector<float> replays;
    for (int i = 0; i < 5; ++i) replays.push_back(graph.replay() / calls);
    return median(replays);
  }
};

std::vector<int> options_for(int num_tokens, int ctas) {
  const bool cached = num_tokens < 512;
  std::vector<int> found;
  for (const int path : {0, int{kStaged}, int{kCached}, int{kKeepOutput}, kStaged | kKeepOutput}) {
    for (const int trigger : {0, int{kTriggerEarly}, int{kTriggerAtEnd}}) {
      if (cached && trigger == 0) continue;
      for (const int requests :
           {0, int{kPrefetchResidual}, int{kPrefetchAhead}, kPrefetchResidual | kPrefetchAhead}) {
        if (requests & kPrefetchAhead && (cached || trigger == kTriggerAtEnd)) continue;
        found.push_back(path | trigger | requests);
        const int placed = ctas == 1 ? kPairCtas : kAdd ? kFillGpu : 0;
        if (cached && placed != 0) found.push_back(path | trigger | requests | placed);
      }
    }
  }
  return found;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<int> tokens;
  for (int i = 1; i < argc; ++i) tokens.push_back(std::atoi(argv[i]));
  if (argc == 1) tokens = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
  Bench bench;
  for (int i = 0; i < 20; ++i) bench.time(4096, 4096, {16, 1, 1, 1, 0});
  std::printf("op,num_tokens,hidden_size,vecs_per_thread,rows_per_cta,ctas_per_row,options,us\n");
  for (const int num_tokens : tokens) {
    for (const int hidden_size : {1024, 2048, 2560, 2880, 3072, 3584, 4096, 5120, 6144, 7168, 8192,
                                  12288, 14336, 16384, 18432, 20480, 24576, 28672, 32768}) {
      for (const int vecs : {1, 2, 4, 8}) {
        for (const int rows : {1, 2, 4, 8}) {
          for (const int ctas : {1, 2, 4, 8}) {
            for (const int options : options_for(num_tokens, ctas)) {
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

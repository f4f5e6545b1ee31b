// The floor of a call in a chain of calls, by the moment at which the next grid may start.
//
//   nvcc -std=c++20 -O3 -arch=sm_90 -Icsrc/cuda benchmarks/floor.cu -o floor && ./floor > floor.csv
//
// The cached protocol of benchmarks/timing.py (64 calls a CUDA graph over 4 input sets), with the
// kernels of least.cuh: a norm, the same bytes without a sum, nothing; as programmatic dependents
// that trigger at the start, early or at the end, and without programmatic launch.
#include "launch.cuh"
#include "least.cuh"

namespace {

using namespace hp_norm;
using namespace hp_norm::bench;

constexpr int kCalls = 64, kSets = 4, kReplays = 9;
constexpr size_t kPoolBytes = size_t{256} << 20, kWeightAt = size_t{200} << 20;

using Kernel = void (*)(uint4*, uint4*, const uint4*);

struct Candidate {
  const char* kernel;
  const char* trigger;
  Kernel function;
  bool dependent;
};

template <Trigger kTrigger>
void add_kernels(std::vector<Candidate>& candidates, const char* trigger, bool dependent) {
  candidates.push_back({"least", trigger, least_norm<kTrigger>, dependent});
  candidates.push_back({"move", trigger, move_rows<kTrigger>, dependent});
  candidates.push_back({"empty", trigger, empty_rows<kTrigger>, dependent});
}

}  // namespace

int main() {
  cudaStream_t stream;
  char* pool;
  check(cudaStreamCreate(&stream));
  check(cudaMalloc(&pool, kPoolBytes));
  check(cudaMemset(pool, 0x3c, kPoolBytes));
  const auto* weight = reinterpret_cast<const uint4*>(pool + kWeightAt);
  std::vector<Candidate> candidates;
  add_kernels<Trigger::kAtStart>(candidates, "start", true);
  add_kernels<Trigger::kEarly>(candidates, "early", true);
  add_kernels<Trigger::kAtEnd>(candidates, "end", true);
  add_kernels<Trigger::kAtEnd>(candidates, "not dependent", false);
  std::printf("num_tokens,hidden_size,kernel,trigger,us\n");
  for (const int num_tokens : {1, 2, 4, 8, 16, 32, 64, 128, 256}) {
    for (const int hidden_size : {1024, 2048, 4096, 8192}) {
      for (const Candidate& one : candidates) {
        const size_t vecs = size_t(num_tokens) * hidden_size / 8;
        Graph graph(stream, [&] {
          for (int i = 0; i < kCalls; ++i) {
            uint4* x = reinterpret_cast<uint4*>(pool) + i % kSets * 2 * vecs;
            launch_kernel(stream, one.function, {num_tokens, hidden_size / 8, 1, one.dependent}, x,
                          x + vecs, weight);
          }
        });
        graph.replay();
        std::vector<float> times;
        for (int i = 0; i < kReplays; ++i) times.push_back(graph.replay() / kCalls);
        std::printf("%d,%d,%s,%s,%.3f\n", num_tokens, hidden_size, one.kernel, one.trigger,
                    median(times));
      }
    }
  }
  return 0;
}

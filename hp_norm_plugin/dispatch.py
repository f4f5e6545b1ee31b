"""What torch is told of the operators in Python: shapes to compile with, a guard for autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from hp_norm_plugin import checks

# A torch.library.Library takes its registrations back when it is collected.
_libraries: list[torch.library.Library] = []


def complete() -> None:
    """Register the shapes and the guard; the library with the schemas must be loaded."""
    _register_fakes()
    _libraries.append(_guard_autograd())


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
        below = write_below_autograd if name.endswith("_") else call_below_autograd

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


def call_below_autograd(op: torch._ops.OpOverload, *arguments, **options):
    """Call an operator, past its guard."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments, **options)


def write_below_autograd(op: torch._ops.OpOverload, *arguments, **options):
    """Call an operator that writes to its first two arguments, past its guard."""
    call_below_autograd(op, *arguments, **options)
    # x and the residual: a graph of autograd that has saved one must not use it now.
    written = [tensor for tensor in arguments[:2] if not tensor.is_inference()]
    torch.autograd.graph.increment_version(written)

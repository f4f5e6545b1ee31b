"""The operators as functions.

To import this module loads the compiled libraries, and raises where it cannot. The contract of the
numbers, in steps, stands in `hp_norm_plugin.reference`; a result is the same to the last bit on a
CPU and on every GPU, for every number of tokens and every place of a row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, is_inference_mode_enabled
from torch.compiler import is_compiling, is_dynamo_compiling

from hp_norm_plugin import checks, library
from hp_norm_plugin.dispatch import call_below_autograd, write_below_autograd


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
    return functools.partial(write_below_autograd if in_place else call_below_autograd, op)


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


library.load_libraries()
_RMS_NORM = torch.ops.hp_norm.rms_norm.default
_FUSED_ADD_RMS_NORM = torch.ops.hp_norm.fused_add_rms_norm.default
_FUSED_ADD_RMS_NORM_IN_PLACE = torch.ops.hp_norm.fused_add_rms_norm_.default

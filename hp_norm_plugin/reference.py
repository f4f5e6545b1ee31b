"""The operator's contract in plain PyTorch, to the last bit, and an oracle in float64.

    1. h = float32(x) + float32(residual);  residual_out = round(h) to x's dtype
    2. rstd = 1 / sqrt(mean(h * h) + eps), float32, over the unrounded h
    3. y = h * rstd * (weight_offset + float32(weight)), float32, rounded once, an offset of 0 not
       being added; with round_before_weight, h * rstd is rounded to the weight's dtype and
       multiplied in that dtype
    4. no weight: y = round(h * rstd)

The mean is the sum times float32(1 / hidden_size). The sum is a balanced binary tree over adjacent
elements, zero-padded to a power of two, each partial sum rounded to float32. 1 / sqrt is correctly
rounded. Both are what the CPU and CUDA kernels compute, whatever their launch shape, so that
every implementation gives the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sum_of_squares(h: Tensor) -> Tensor:
    """The canonical sum over the last dimension of float32 `h` [..., hidden_size] -> [..., 1]."""
    squares = h * h
    padded = 1 << (h.shape[-1] - 1).bit_length()
    squares = torch.nn.functional.pad(squares, (0, padded - h.shape[-1]))
    while squares.shape[-1] > 1:
        squares = squares[..., 0::2] + squares[..., 1::2]
    return squares


def _normalize(
    h: Tensor,
    dtype: torch.dtype,
    weight: Tensor | None,
    eps: float,
    weight_offset: float,
    round_before_weight: bool,
) -> Tensor:
    def scalar(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float32, device=h.device)

    mean_square = sum_of_squares(h) * scalar(1.0 / h.shape[-1])
    rstd = (mean_square + scalar(eps)).double().sqrt().reciprocal().float()
    y = h * rstd
    if weight is None:
        return y.to(dtype)
    offset = scalar(weight_offset)
    factor = weight.float() if offset == 0 else weight.float() + offset
    if not round_before_weight:
        return (y * factor).to(dtype)
    rounded = weight.dtype
    return (y.to(rounded).float() * factor.to(rounded).float()).to(rounded).to(dtype)


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    *,
    weight_offset: float = 0.0,
    round_before_weight: bool = False,
) -> Tensor:
    """The contract of `hp_norm::rms_norm`; arguments and result as there."""
    return _normalize(x.float(), x.dtype, weight, eps, weight_offset, round_before_weight)


def fused_add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float,
    *,
    weight_offset: float = 0.0,
    round_before_weight: bool = False,
) -> tuple[Tensor, Tensor]:
    """The contract of `hp_norm::fused_add_rms_norm`; arguments and results as there."""
    h = x.float() + residual.float()
    y = _normalize(h, x.dtype, weight, eps, weight_offset, round_before_weight)
    return y, h.to(x.dtype)


def oracle(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    eps: float,
    *,
    weight_offset: float = 0.0,
) -> Tensor:
    """The exact formula in float64, unrounded: what every rounding order approximates."""
    h = x.double() if residual is None else x.double() + residual.double()
    y = h * (h.square().mean(-1, keepdim=True) + eps).rsqrt()
    return y if weight is None else y * (weight.double() + weight_offset)

"""The argument checks of csrc/tensor_checks.h for tensors without data (fake and meta tensors).

The texts are those of the C++ checks; tests/test_bad_input.py compares them case by case.
"""

from __future__ import annotations

import torch

from hp_norm_plugin import MAX_HIDDEN_SIZE

# From here on a float64 rounds to infinity: half a unit past the largest float32.
FLOAT32_END = 2.0**128 - 2.0**103
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def same_shape(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors have one shape; of sizes that Dynamo does not know, it is taken.

    What turns out otherwise is refused when the call runs.
    """
    if a.dim() != b.dim():
        return False
    sizes = list(zip(a.shape, b.shape, strict=True))
    if not any(isinstance(size, torch.SymInt) for pair in sizes for size in pair):
        return a.shape == b.shape
    from torch.fx.experimental.symbolic_shapes import guard_or_true

    return all(guard_or_true(m == n) for m, n in sizes)


def _rows_problem(argument: str, tensor: torch.Tensor) -> tuple[str, str, str] | None:
    shape, strides = list(tensor.shape), list(tensor.stride())
    if shape[-1] > 1 and strides[-1] != 1:
        return argument, "inner stride must be 1", str(strides[-1])
    # One leading dimension always flattens. The size comes last: Dynamo may not know it.
    if tensor.dim() < 3 or tensor.is_contiguous() or tensor.numel() == 0:
        return None
    row_stride, rows_below = None, 0
    for size, stride in zip(shape[-2::-1], strides[-2::-1], strict=True):
        if size == 1:
            continue
        if row_stride is None:
            row_stride, rows_below = stride, size
        elif stride != row_stride * rows_below:
            return (
                argument,
                "leading dimensions must flatten to rows without a copy",
                f"shape {shape} with strides {strides}",
            )
        else:
            rows_below *= size
    return None


def _x_problem(x: torch.Tensor) -> tuple[str, str, str] | None:
    if x.dtype not in DTYPES:
        return "x", "dtype must be bfloat16, float16 or float32", _name(x.dtype)
    if x.dim() < 1:
        return "x", "must have at least 1 dimension", str(x.dim())
    if not 1 <= x.shape[-1] <= MAX_HIDDEN_SIZE:
        return "x", f"hidden_size must be from 1 to {MAX_HIDDEN_SIZE}", str(x.shape[-1])
    return _rows_problem("x", x)


def _residual_problem(residual: torch.Tensor, x: torch.Tensor) -> tuple[str, str, str] | None:
    if residual.device != x.device:
        return "residual", f"device must be {x.device} like x", str(residual.device)
    if residual.dtype != x.dtype:
        return "residual", f"dtype must be {_name(x.dtype)} like x", _name(residual.dtype)
    if not same_shape(residual, x):
        return "residual", f"shape must be {list(x.shape)} like x", str(list(residual.shape))
    return _rows_problem("residual", residual)


def _weight_problem(weight: torch.Tensor, x: torch.Tensor) -> tuple[str, str, str] | None:
    if weight.device != x.device:
        return "weight", f"device must be {x.device} like x", str(weight.device)
    if weight.dtype not in (x.dtype, torch.float32):
        return "weight", f"dtype must be {_name(x.dtype)} like x or float32", _name(weight.dtype)
    if weight.dim() != 1 or weight.shape[0] != x.shape[-1]:
        return "weight", f"shape must be [{x.shape[-1]}]", str(list(weight.shape))
    if weight.shape[0] > 1 and weight.stride(0) != 1:
        return "weight", "inner stride must be 1", str(weight.stride(0))
    return None


def _scalar_problem(
    eps: float, weight_offset: float, has_weight: bool
) -> tuple[str, str, str] | None:
    if not 0 <= eps < FLOAT32_END:
        return "eps", "must be finite as a float32 and at least 0", f"{eps:g}"
    if not abs(weight_offset) < FLOAT32_END:
        return "weight_offset", "must be finite as a float32", f"{weight_offset:g}"
    if not has_weight and weight_offset != 0:
        return "weight_offset", "must be 0 without a weight", f"{weight_offset:g}"
    return None


def _overlap_problem(x: torch.Tensor, residual: torch.Tensor) -> tuple[str, str, str] | None:
    """The part of the in-place check that needs no address: rows that overlap themselves."""
    for argument, tensor in (("x", x), ("residual", residual)):
        if tensor.is_contiguous() or tensor.numel() == 0:
            continue
        rows = [s for n, s in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True) if n != 1]
        if rows and rows[-1] < tensor.shape[-1]:
            rule = "rows must not overlap when written in place"
            return argument, rule, f"row stride {rows[-1]}"
    return None


def problem(
    op: str,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    eps: float,
    weight_offset: float = 0.0,
) -> str | None:
    """The message with which `op` refuses these arguments, or None where it takes them.

    Looks at metadata alone, in the order of the C++ checks, so it serves fake tensors too.
    """
    found = _x_problem(x)
    if found is None and residual is not None:
        found = _residual_problem(residual, x)
    if found is None and weight is not None:
        found = _weight_problem(weight, x)
    if found is None:
        found = _scalar_problem(eps, weight_offset, weight is not None)
    if found is None and op.endswith("_"):
        found = _overlap_problem(x, residual)
    if found is None:
        return None
    argument, rule, value = found
    return f"hp_norm::{op}: {argument}: {rule}, got {value}"

"""Inputs, comparisons in units in the last place, and what an engine measures."""

from __future__ import annotations

import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

HAS_GPU = torch.cuda.is_available()
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def find_nvcc() -> str | None:
    """The CUDA compiler of PATH or of its usual place."""
    candidate = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    return candidate if Path(candidate).is_file() else None


def default_signals() -> None:
    """For a new process, which inherits what nohup and background jobs of a shell ignore."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@dataclass(frozen=True)
class Case:
    """One call: x, residual and weight, and the options of the operator."""

    x: Tensor
    residual: Tensor
    weight: Tensor | None
    eps: float = 1e-6
    weight_offset: float = 0.0
    round_before_weight: bool = False

    @property
    def options(self) -> dict:
        return {
            "weight_offset": self.weight_offset,
            "round_before_weight": self.round_before_weight,
        }

    def to(self, device: str) -> Case:
        """The same values in memory of their own."""
        weight = None if self.weight is None else self.weight.detach().clone().to(device)
        tensors = self.x.detach().clone().to(device), self.residual.detach().clone().to(device)
        return Case(*tensors, weight, self.eps, self.weight_offset, self.round_before_weight)


def make_case(num_tokens: int, hidden_size: int, dtype, weight_dtype="same", **options) -> Case:
    """Random rows of very different scale, and a weight away from one."""
    scale = 10.0 ** torch.empty(num_tokens, 1).uniform_(-2, 2)
    x = (torch.randn(num_tokens, hidden_size) * scale).to(dtype)
    residual = (torch.randn(num_tokens, hidden_size) * scale).to(dtype)
    if weight_dtype is None:
        return Case(x, residual, None, **options)
    weight = torch.empty(hidden_size).uniform_(0.25, 2.0) * torch.randn(hidden_size).sign()
    return Case(
        x, residual, weight.to(dtype if weight_dtype == "same" else weight_dtype), **options
    )


def make_denormal_case(num_tokens: int, hidden_size: int, dtype) -> Case:
    """Denormals in rows 1 and 2 (of 3 and more), in their sum, and in the weight."""
    tiny = torch.finfo(dtype).tiny
    case = make_case(num_tokens, hidden_size, dtype, eps=0.0)
    case.x[1] *= tiny
    case.residual[1] *= tiny
    case.x[2, ::33], case.residual[2, ::33] = tiny / 4, tiny / 8
    case.weight[5::7] = tiny / 2
    return case


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.int32 if values.dtype == torch.float32 else torch.int16)


def _ordered_bits(values: Tensor) -> Tensor:
    """Integers that count representable values, in the order of the values."""
    bits = _bits(values).to(torch.int64)
    lowest = -(1 << (8 * values.element_size() - 1))
    return torch.where(bits < 0, lowest - bits, bits)


def ulp_distance(actual: Tensor, expected: Tensor) -> Tensor:
    """How many representable values lie between; NaN equals NaN."""
    distance = (_ordered_bits(actual) - _ordered_bits(expected)).abs()
    both_nan = actual.isnan() & expected.isnan()
    one_nan = actual.isnan() ^ expected.isnan()
    distance = torch.where(both_nan, torch.zeros_like(distance), distance)
    return torch.where(one_nan, torch.full_like(distance, 1 << 40), distance)


def assert_same_bits(actual: Tensor, expected: Tensor, what: str = "output") -> None:
    """Every bit, except that any NaN equals any NaN; -0 and +0 differ."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape, what
    actual, expected = actual.detach(), expected.detach()
    assert actual.untyped_storage().data_ptr() != expected.untyped_storage().data_ptr() or (
        actual.numel() == 0
    ), "compared with itself"
    # Where the result is: the tests of every configuration compare thousands of results.
    if torch.equal(_bits(actual), _bits(expected.to(actual.device))):
        return
    actual, expected = actual.cpu(), expected.cpu()
    distance = ulp_distance(actual, expected)
    signs = (actual.signbit() != expected.signbit()) & ~expected.isnan()  # of zeros, too
    wrong = ((distance > 0) | signs).nonzero()
    assert wrong.numel() == 0, (
        f"{what}: {len(wrong)} of {distance.numel()} elements differ, first at "
        f"{wrong[0].tolist()}: {actual[tuple(wrong[0])]} instead of {expected[tuple(wrong[0])]}, "
        f"worst by {distance.max().item()} ULP"
    )


def runs(seconds_per_token: float, output_len: int = 3) -> dict:
    """Two repeats of an engine, of a second to the first token."""
    last = 1.0 + seconds_per_token * (output_len - 1)
    tokens = [[[1, 2]], [[1, 2]]]
    return {"first_token_s": [1.0, 1.0], "all_tokens_s": [last, last], "tokens": tokens}

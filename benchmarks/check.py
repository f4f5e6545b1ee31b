"""Compare a provider's result with the contract before it is timed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.provider import EPS, Call
from benchmarks.providers import CANDIDATE, OURS
from benchmarks.timing import InputSets

# Rows are independent, so the float32 temporaries of the reference need not cover all of them.
CHUNK_ELEMENTS = 2**26
_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


@dataclass(frozen=True)
class Tolerance:
    """How far a result may be from the contract.

    ``residual_ulp`` and ``output_ulp`` bound every element, ``fraction`` the share of output
    elements that differ at all.
    """

    residual_ulp: int
    output_ulp: int
    fraction: float


# Ours follows the contract; what is left is the rounding of the last float32 bits.
STRICT = Tolerance(residual_ulp=0, output_ulp=1, fraction=0.002)
# The peers round in four other orders, which differ in up to 34 % of elements by up to 2 ULP.
PEER = Tolerance(residual_ulp=1, output_ulp=2, fraction=0.5)
# A few elements of a tiny tensor are more than any share of it.
ALLOWED_ELEMENTS = 4


@dataclass(frozen=True)
class Difference:
    """The largest distance in ULP and how many of how many elements differ."""

    max_ulp: int = 0
    elements: int = 0
    total: int = 0

    def __add__(self, other: Difference) -> Difference:
        return Difference(
            max(self.max_ulp, other.max_ulp),
            self.elements + other.elements,
            self.total + other.total,
        )


def ulp_distance(a: Tensor, b: Tensor) -> Tensor:
    """Distance of two tensors of one dtype in units in the last place, as int64.

    Both zeros are one value; a NaN is far from every number.
    """
    bits = _BITS[a.dtype]
    lowest = torch.iinfo(bits).min

    def ordered(tensor: Tensor) -> Tensor:
        value = tensor.contiguous().view(bits).long()
        return torch.where(value < 0, lowest - value, value)

    return (ordered(a) - ordered(b)).abs()


def difference(actual: Tensor, expected: Tensor) -> Difference:
    """Compare two tensors of one shape and dtype."""
    distance = ulp_distance(actual, expected)
    return Difference(int(distance.max()), int(distance.count_nonzero()), distance.numel())


def run(call: Call, sets: InputSets) -> tuple[Tensor, Tensor | None]:
    """Make one call on pristine inputs; return the output and the new residual."""
    x = sets.x0.clone()
    residual = None if sets.residual0 is None else sets.residual0.clone()
    outputs = call(x, residual, sets.weight)
    if outputs is None:
        return x, residual
    return outputs if isinstance(outputs, tuple) else (outputs, None)


def against_contract(call: Call, sets: InputSets) -> tuple[Difference, Difference]:
    """Differences of output and residual from the reference."""
    from hp_norm_plugin import reference

    out, residual_out = run(call, sets)
    in_out, in_residual = Difference(), Difference()
    rows = max(1, CHUNK_ELEMENTS // out.shape[-1])
    for first in range(0, out.shape[0], rows):
        part = slice(first, first + rows)
        if sets.residual0 is None:
            expected = reference.rms_norm(sets.x0[part], sets.weight, EPS)
        else:
            expected, expected_residual = reference.fused_add_rms_norm(
                sets.x0[part], sets.residual0[part], sets.weight, EPS
            )
            in_residual += difference(residual_out[part], expected_residual)
        in_out += difference(out[part], expected)
    return in_out, in_residual


def failure(provider: str, call: Call, sets: InputSets) -> str:
    """Why the provider's result is not acceptable; the empty text when it is."""
    is_ours = provider == OURS or provider.startswith(CANDIDATE)
    tolerance = STRICT if is_ours else PEER
    out, residual = against_contract(call, sets)
    if residual.max_ulp > tolerance.residual_ulp:
        return (
            f"wrong residual: {residual.elements} of {residual.total} elements differ, "
            f"by up to {residual.max_ulp} ULP"
        )
    allowed = max(ALLOWED_ELEMENTS, tolerance.fraction * out.total)
    if out.max_ulp > tolerance.output_ulp or out.elements > allowed:
        return (
            f"wrong output: {out.elements} of {out.total} elements differ, "
            f"by up to {out.max_ulp} ULP"
        )
    return ""

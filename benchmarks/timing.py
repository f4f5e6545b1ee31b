"""What is timed: which inputs a call sees, and how many calls one replay holds.

Two protocols.  ``cached``: 64 calls over up to 4 input sets that stay in L2, as in a decode step,
where the layer before has just written the row.  ``cold``: the input sets rotate over 4 times the
L2, so that every call reads from DRAM, as in a prefill.  Below 512 tokens ``cached`` is the
default, from 512 up ``cold``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.provider import Call
from benchmarks.shapes import Case

CACHED, COLD = "cached", "cold"
COLD_FROM_TOKENS = 512
CACHED_CALLS, CACHED_SETS = 64, 4
COLD_L2_MULTIPLE = 4
# A replay starts about 2 us late; at 4 GB, a millisecond of work on an H200, that is 0.2 %.
COLD_REPLAY_BYTES, COLD_MAX_CALLS = 4 * 10**9, 256
# For the estimate of memory: providers that write to new memory (of the plain norm all that move
# bytes do), one to spare, and the float32 temporaries of the check.
FUNCTIONAL_PROVIDERS = {"fused_add": 4, "plain": 8}
CHECK_BYTES_PER_ELEMENT = 48
CPU_CACHE_BYTES = 32 * 2**20


def protocol_for(num_tokens: int) -> str:
    """The protocol that a token count is judged by unless told otherwise."""
    return CACHED if num_tokens < COLD_FROM_TOKENS else COLD


@dataclass(frozen=True)
class Plan:
    """How many input sets a case rotates over and how many calls one replay makes.

    ``evict_bytes`` is what has to be written before a timed replay to push the inputs out of L2,
    where the sets themselves are too small to do that.
    """

    protocol: str
    num_sets: int
    calls: int
    evict_bytes: int = 0

    @property
    def keep_outputs(self) -> bool:
        """Whether each call of a functional provider writes to memory of its own."""
        return self.protocol == COLD

    def bytes_needed(self, case: Case) -> int:
        """Device memory for inputs, their pristine copy, every graph's outputs and the check."""
        outputs = FUNCTIONAL_PROVIDERS[case.op] * (self.calls if self.keep_outputs else 1)
        check = CHECK_BYTES_PER_ELEMENT * min(case.num_tokens * case.hidden_size, 2**26)
        return (self.num_sets + outputs + 3) * case.input_bytes + self.evict_bytes + check


def plan(case: Case, protocol: str, l2_bytes: int, replay_bytes: int = COLD_REPLAY_BYTES) -> Plan:
    """Choose the number of input sets and calls for a case on a device with that much L2."""
    if protocol == CACHED:
        fitting = max(1, l2_bytes // case.input_bytes)
        return Plan(CACHED, min(CACHED_SETS, fitting), CACHED_CALLS)
    target = COLD_L2_MULTIPLE * l2_bytes
    # Two at least: a call must never read what the call before it has just written.
    wanted_sets = max(2, math.ceil(target / case.input_bytes))
    num_sets = min(wanted_sets, COLD_MAX_CALLS)
    calls = min(COLD_MAX_CALLS, math.ceil(replay_bytes / case.traffic_bytes))
    evict_bytes = target if num_sets < wanted_sets else 0
    return Plan(COLD, num_sets, num_sets * max(1, round(calls / num_sets)), evict_bytes)


class InputSets:
    """The inputs that the calls rotate over, and the pristine values that they are reset to.

    In-place calls feed on their own results: the residual grows by about the weight with every
    call.  Resetting before each measurement bounds that to two replays, so values stay finite and
    far from denormal in every dtype.
    """

    def __init__(self, case: Case, plan: Plan, device: torch.device, seed: int = 0) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        rows = (case.num_tokens, case.hidden_size)

        def normal(shape: Sequence[int]) -> Tensor:
            options = {"device": device, "dtype": case.torch_dtype, "generator": generator}
            return torch.randn(shape, **options)

        self.x0 = normal(rows)
        self.residual0 = normal(rows) if case.op == "fused_add" else None
        # Not all ones: a kernel that forgets the weight must fail its check.
        self.weight = normal(rows[1:]).mul_(0.25).add_(1)
        self.num_sets = plan.num_sets
        self.x = self.x0.new_empty(self.num_sets, *rows)
        self.residual = None if self.residual0 is None else torch.empty_like(self.x)
        self._evictor = self.x0.new_empty(plan.evict_bytes, dtype=torch.uint8)
        self.reset()

    def reset(self) -> None:
        """Write the pristine values into every set."""
        self.x.copy_(self.x0.expand_as(self.x))
        if self.residual is not None:
            self.residual.copy_(self.residual0.expand_as(self.residual))

    def evict(self) -> None:
        """Push the inputs out of L2, where rotating over them does not."""
        self._evictor.zero_()

    def call(self, call: Call, index: int) -> object:
        """Run one call on the set whose turn it is; return what the call returned."""
        turn = index % self.num_sets
        residual = None if self.residual is None else self.residual[turn]
        return call(self.x[turn], residual, self.weight)

"""How a call is timed: which inputs it sees, how many calls one replay holds, and the clock.

Two protocols.  ``cached``: 64 calls over up to 4 input sets that stay in L2, as in a decode step,
where the layer before has just written the row.  ``cold``: the input sets rotate over 4 times the
L2, so that every call reads from DRAM, as in a prefill.  Below 512 tokens ``cached`` is the
default, from 512 up ``cold``.

On a GPU the calls of one provider are captured in one CUDA graph, and the time of a call is the
time of a replay, between two events, over the number of calls.  Nothing is allocated, cloned or
launched from Python between the events.  Functional calls write to memory of the graph's own
pool: fresh memory for each call when cold, the same block for all calls when cached.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from benchmarks import l2, stats
from benchmarks.provider import Call
from benchmarks.shapes import Case

CACHED, COLD = "cached", "cold"
COLD_FROM_TOKENS = 512
CACHED_CALLS, CACHED_SETS = 64, 4
COLD_L2_MULTIPLE = 4
# A replay starts about 2 us late; at 4 GB, a millisecond of work on an H200, that is 0.2 %.
COLD_REPLAY_BYTES, COLD_MAX_CALLS = 4 * 10**9, 256
# For the estimate of memory: providers that write to new memory, and float32 temporaries.
FUNCTIONAL_PROVIDERS, CHECK_BYTES_PER_ELEMENT = 4, 48
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
        outputs = FUNCTIONAL_PROVIDERS * (self.calls if self.keep_outputs else 1)
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


class Replay(Protocol):
    """A prepared run of ``plan.calls`` calls."""

    def __call__(self) -> None:
        """Run the calls."""


class Clock(Protocol):
    """Prepares replays and reads the time that they took."""

    def prepare(self, call: Call, sets: InputSets, plan: Plan) -> Replay:
        """Make a replay of the plan's calls, after one call that compiles what has to be."""

    def timed(self, replay: Replay) -> Callable[[], float]:
        """Run a replay; the function returned gives its time in microseconds, maybe later."""

    def synchronize(self) -> None:
        """Wait for everything that was started."""

    def forget(self) -> None:
        """Wait, and take back what the last provider asked a cache to keep."""

    def release(self) -> None:
        """Give back the memory of replays that are no longer referenced."""


def captured(
    stream: torch.cuda.Stream, warm_up: Callable[[], object], run: Callable[[], object]
) -> Replay:
    """A CUDA graph of what ``run`` puts on a stream, after ``warm_up``, which compiles."""
    graph = torch.cuda.CUDAGraph()
    # Not torch.cuda.graph(): it empties the allocator's cache, at every one of the captures.
    with torch.cuda.stream(stream):
        warm_up()
        stream.synchronize()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            run()
        finally:
            graph.capture_end()
    return graph.replay


class GraphClock:
    """CUDA graphs for the replays, CUDA events for the time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)

    def prepare(self, call: Call, sets: InputSets, plan: Plan) -> Replay:
        """Capture the calls in a CUDA graph."""
        torch.cuda.synchronize(self.device)
        kept = []

        def calls() -> None:
            for index in range(plan.calls):
                outputs = sets.call(call, index)
                if plan.keep_outputs:
                    kept.append(outputs)

        return captured(self._stream, lambda: sets.call(call, 0), calls)

    def timed(self, replay: Replay) -> Callable[[], float]:
        """Queue a replay between two events; nothing waits for it here."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        replay()
        end.record()
        return lambda: start.elapsed_time(end) * 1e3

    def synchronize(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize(self.device)

    def forget(self) -> None:
        """Wait for the device, and make every line of L2 an ordinary one."""
        torch.cuda.synchronize(self.device)
        l2.reset_persisting()

    def release(self) -> None:
        """Free the pools of graphs that are gone; the allocator keeps them otherwise."""
        torch.cuda.empty_cache()


class CpuClock:
    """A Python loop for the replays, in inference mode as in a server; ``perf_counter``'s time."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now

    def prepare(self, call: Call, sets: InputSets, plan: Plan) -> Replay:
        """Loop over the calls."""

        @torch.inference_mode()
        def replay() -> None:
            for index in range(plan.calls):
                sets.call(call, index)

        with torch.inference_mode():
            sets.call(call, 0)
        return replay

    def timed(self, replay: Replay) -> Callable[[], float]:
        """Run a replay and remember its time."""
        start = self.now()
        replay()
        elapsed = (self.now() - start) * 1e6
        return lambda: elapsed

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def forget(self) -> None:
        """Nothing is kept."""

    def release(self) -> None:
        """Nothing to give back."""


def measure(
    replays: dict[str, Replay],
    sets: InputSets,
    plan: Plan,
    clock: Clock,
    repeats: int,
    while_running: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Time every replay ``repeats`` times, in balanced order; microseconds per call by name.

    Each measurement makes the clock forget what the provider before asked its cache to keep, resets
    the inputs, replays once untimed, which fills the cache that the protocol wants and keeps the
    device busy until the timed replay is queued, and replays timed.
    ``while_running`` is called once, while a replay more of each puts the device under load.
    """
    pending: dict[str, list[Callable[[], float]]] = {name: [] for name in replays}
    for order in stats.balanced_orders(list(replays), repeats):
        for name in order:
            clock.forget()
            sets.reset()
            replays[name]()
            sets.evict()
            pending[name].append(clock.timed(replays[name]))
    for replay in replays.values():
        replay()
    while_running()
    clock.synchronize()
    return {name: [read() / plan.calls for read in reads] for name, reads in pending.items()}

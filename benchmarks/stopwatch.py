"""The clocks: how calls are prepared and run, and what a replay of them takes.

On a GPU the calls of one provider are captured in one CUDA graph, and the time of a call is the
time of a replay, between two events, over the number of calls.  Nothing is allocated, cloned or
launched from Python between the events.  Functional calls write to memory of the graph's own
pool: fresh memory for each call when cold, the same block for all calls when cached.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

from benchmarks import l2, stats
from benchmarks.provider import Call
from benchmarks.timing import InputSets, Plan


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

"""What each kernel of a CUDA graph takes until the next one starts, gaps and overlaps included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch.autograd.profiler_util import EventList

from benchmarks.provider import one_line

REPLAYS = 5
LEAST_US = 1.0


def recorded(run: Callable[[], None]) -> EventList:
    """What the profiler records of the GPU while `run`, and all that it launches, runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    return profiler.events()


def of(replay: Callable[[], None], layers: int) -> dict[str, float]:
    """Profile a graph of so many layers; microseconds a layer by kernel name."""
    from hp_norm_plugin.vllm.probe import until_next

    summed: Counter[str] = Counter()
    for _ in range(REPLAYS):
        # A profile for each replay: the gap between two of them belongs to no kernel.
        summed.update(until_next(recorded(replay)))
    return {name: us / (REPLAYS * layers) for name, us in summed.items()}


def show(console: Console, case: str, profiles: dict[str, dict[str, float]]) -> None:
    """Print a line per kernel that takes a microsecond anywhere, and a column per provider."""
    longest = Counter[str]()
    for one in profiles.values():
        longest |= Counter(one)
    table = Table("kernel", *profiles, title=f"{case}, us a layer until the next kernel starts")
    for name, most in longest.most_common():
        if most >= LEAST_US:
            times = (f"{one[name]:.2f}" if name in one else "" for one in profiles.values())
            table.add_row(one_line(name, 60), *times)
    console.print(table)

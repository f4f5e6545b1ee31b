"""One cell: bind every provider to the case, check its result, time it, write down the rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks import check, environment, stats, stopwatch, timing
from benchmarks.provider import Provider, one_line
from benchmarks.providers import COPY, EMPTY, OURS
from benchmarks.records import FAILED, OK, SKIPPED, Row
from benchmarks.shapes import Case

CPU_REPLAY_BYTES = 2 * 10**8
# A row's relative interquartile range where the run has the GPU to itself is below 0.13, but for
# one row in 500; beside another process's kernels most are above 0.3 (H200, 2026-11-26).
GPU_STEADY_SPREAD = 0.15
UNSTEADY = "unsteady: does another process use this GPU?"
# Ratios of a few percent are judged, so a cell is measured again above this. Not for the empty
# kernel, by which nothing is judged: it was above this in one cell of eight, the others in 2 rows
# of 1995 (H200, 2026-11-28).
GPU_CALM_SPREAD = 0.05
MEASURED_AGAIN = 2  # at the most

Untimed = dict[str, tuple[str, str]]  # by provider without a time: its row's status, and the reason


@dataclass
class Bench:
    """What every cell of a run needs; ``protocol`` None means by number of tokens."""

    device: torch.device
    environment: environment.Environment
    clock: stopwatch.Clock
    clocks: environment.Clocks
    repeats: int
    protocol: str | None = None
    steady_spread: float = math.inf  # a row above it is marked
    calm_spread: float = math.inf  # a cell with a kernel above it is measured again
    free_bytes: Callable[[torch.device], int] = environment.free_bytes

    @classmethod
    def on(cls, device: torch.device, repeats: int, protocol: str | None = None) -> Bench:
        """A bench on a device, with the clock that fits it."""
        on_gpu = device.type == "cuda"
        clock = stopwatch.GraphClock(device) if on_gpu else stopwatch.CpuClock()
        clocks = environment.Clocks(device)
        spreads = (GPU_STEADY_SPREAD, GPU_CALM_SPREAD) if on_gpu else (math.inf, math.inf)
        env = environment.describe(device)
        return cls(device, env, clock, clocks, repeats, protocol, *spreads)

    def is_steady(self, samples: Sequence[float]) -> bool:
        """Whether nothing else seems to have run on the device meanwhile."""
        return stats.relative_iqr(samples) <= self.steady_spread

    def plan(self, case: Case) -> timing.Plan:
        """The plan for a case under this bench's protocol."""
        protocol = self.protocol or timing.protocol_for(case.num_tokens)
        replay = timing.COLD_REPLAY_BYTES if self.device.type == "cuda" else CPU_REPLAY_BYTES
        return timing.plan(case, protocol, self.environment.l2_bytes, replay)


def rule_of(case: Case, device: torch.device) -> str:
    """The launch rule that our operator takes for a case; the CPU has none."""
    if device.type != "cuda":
        return ""
    import hp_norm_plugin

    shape = (case.num_tokens, case.hidden_size, case.torch_dtype)
    return hp_norm_plugin.explain(*shape, device, add=case.op == "fused_add").describe()


def run(
    bench: Bench,
    case: Case,
    providers: Sequence[Provider],
    unavailable: Mapping[str, str] | None = None,
) -> list[Row]:
    """Measure one case; one row per provider, in the order given, the unavailable ones last."""
    plan = bench.plan(case)
    untimed: Untimed = {name: (SKIPPED, reason) for name, reason in (unavailable or {}).items()}
    names = [provider.name for provider in providers]
    times: dict[str, list[float]] = {}
    clocks: list[tuple[int | None, int | None]] = [(None, None)]
    needed, free = plan.bytes_needed(case), bench.free_bytes(bench.device)
    if needed > free:
        text = f"not enough memory: needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        untimed |= dict.fromkeys(names, (SKIPPED, text))
    else:
        try:
            times, without = _time(bench, case, providers, plan, clocks)
            untimed |= without
        except torch.OutOfMemoryError as error:  # somebody else may have taken it meanwhile
            untimed |= dict.fromkeys(names, _no_memory(error))
        bench.clock.release()
    return _rows(bench, case, plan, providers, times, untimed, clocks[-1])


def _time(
    bench: Bench,
    case: Case,
    providers: Sequence[Provider],
    plan: timing.Plan,
    clocks: list[tuple[int | None, int | None]],
) -> tuple[dict[str, list[float]], Untimed]:
    """Times by provider and who has none; appends to ``clocks``, SM and memory in MHz."""
    sets = timing.InputSets(case, plan, bench.device)
    replays, untimed = _prepare(bench, case, providers, sets, plan)
    if not replays:
        return {}, untimed
    attempts = []
    for _ in range(1 + MEASURED_AGAIN):
        attempts.append(
            stopwatch.measure(
                replays, sets, plan, bench.clock, bench.repeats,
                while_running=lambda: clocks.append(bench.clocks.read()),
            )
        )  # fmt: skip
        if _worst_spread(attempts[-1]) <= bench.calm_spread:
            break
    return min(attempts, key=_worst_spread), untimed


def _worst_spread(times: Mapping[str, Sequence[float]]) -> float:
    """Return the largest spread of a kernel with work to do."""
    spreads = (stats.relative_iqr(samples) for name, samples in times.items() if name != EMPTY)
    return max(spreads, default=0.0)


def _no_memory(error: Exception) -> tuple[str, str]:
    return SKIPPED, one_line(f"not enough memory: {error}")


def _prepare(
    bench: Bench,
    case: Case,
    providers: Sequence[Provider],
    sets: timing.InputSets,
    plan: timing.Plan,
) -> tuple[dict[str, stopwatch.Replay], Untimed]:
    """Check and prepare each provider; what raises or is wrong is left out, with the reason."""
    replays, untimed = {}, {}
    for provider in providers:
        try:
            call = provider.bind(case)
            wrong = check.failure(provider.name, call, sets) if provider.is_norm else ""
            if wrong:
                untimed[provider.name] = FAILED, wrong
                continue
            replays[provider.name] = bench.clock.prepare(call, sets, plan)
        except torch.OutOfMemoryError as error:
            untimed[provider.name] = _no_memory(error)
        except Exception as error:  # whatever a peer raises, the other rows still run
            untimed[provider.name] = FAILED, one_line(f"{type(error).__name__}: {error}")
    return replays, untimed


def _rows(
    bench: Bench,
    case: Case,
    plan: timing.Plan,
    providers: Sequence[Provider],
    times: Mapping[str, Sequence[float]],
    untimed: Untimed,
    clocks: tuple[int | None, int | None],
) -> list[Row]:
    versions = {provider.name: provider.version for provider in providers}
    medians = {name: statistics.median(samples) for name, samples in times.items()}
    copy = medians.get(COPY)

    def row(name: str) -> Row:
        us = medians.get(name)
        moves_bytes = us is not None and name != EMPTY
        unsteady = moves_bytes and not bench.is_steady(times[name])
        status, reason = untimed.get(name, (OK, UNSTEADY if unsteady else ""))
        env = bench.environment
        return Row(
            commit=env.commit,
            date=env.date,
            device=env.device,
            sm_clock_mhz=clocks[0],
            mem_clock_mhz=clocks[1],
            driver=env.driver,
            cuda=env.cuda,
            torch=env.torch,
            provider=name,
            provider_version=versions.get(name, ""),
            op=case.op,
            dtype=case.dtype,
            num_tokens=case.num_tokens,
            hidden_size=case.hidden_size,
            protocol=plan.protocol,
            us=us,
            us_spread=stats.relative_iqr(times[name]) if us is not None else None,
            gb_per_s=case.traffic_bytes / us / 1e3 if moves_bytes else None,
            ratio_to_copy=copy / us if moves_bytes and copy is not None else None,
            rule=rule_of(case, bench.device) if name == OURS and us is not None else "",
            status=status,
            reason=reason,
        )

    return [row(name) for name in dict.fromkeys([*versions, *untimed])]

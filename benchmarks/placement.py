"""``python -m benchmarks.placement``: at which GPC a product's grid begins, and what that costs.

The GPU deals the clusters of a grid out to its GPCs in turn, beginning behind the one that the
grids before ended at. A product with more tiles than SMs gives some SMs a tile more than others,
and which GPCs those share depends on where it began (docs/notes/2026-11-26-first-gpc.md).

Prints what a product takes by the GPC that it begins at, and, for each launch configuration of the
norm before it, where it begins and what it takes. Needs an H100 or H200, and placement.cu compiled.
"""

from __future__ import annotations

import argparse
import ctypes
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import torch
from rich.table import Table

from benchmarks import stopwatch, terminal

GPCS = 8
# Launches that leave the next grid at one GPC whatever came before: CTAs and CTAs a cluster. Each
# did in 216 of 216 cases on three H200s, 2026-11-26.
LEADS = {0: (264, 2), 1: (8, 8), 2: (160, 2), 3: (384, 8), 4: (32, 2), 5: (330, 2), 6: (256, 2)}
LEAD_THREADS, LEAD_NS = 128, 1200
# The probe's first clusters fill up the GPCs that have a pair of SMs more; then the rounds begin.
FIRST_OF_A_ROUND = 4
MATRICES = 4  # in turn, so that none is in L2


def first_gpc(sm_of_cluster: Sequence[int]) -> int:
    """The GPC at which the rounds begin, from the SM ids of the probe's clusters in their order."""
    return sm_of_cluster[FIRST_OF_A_ROUND] % (2 * GPCS) // 2


class Launches:
    """The launches of benchmarks/placement.cu, on one stream."""

    def __init__(self, library: Path, stream: torch.cuda.Stream) -> None:
        self._library = ctypes.CDLL(str(library.resolve()))
        self._stream = ctypes.c_void_p(stream.cuda_stream)
        self.sms = torch.cuda.get_device_properties(stream.device).multi_processor_count

    def probe(self, sm_of_cta: torch.Tensor) -> None:
        """Launch the probe, which writes its SM ids: int32 [SMs]."""
        pointer = ctypes.c_void_p(sm_of_cta.data_ptr())
        self._check(self._library.placement_probe(pointer, self.sms, self._stream))

    def stay(self, ctas: int, threads: int, cluster: int, ns: int) -> None:
        """Launch CTAs that stay for so many nanoseconds."""
        self._check(
            self._library.placement_stay(
                ctas, threads, cluster, ctypes.c_int64(ns), False, self._stream
            )
        )

    def anything(self, rng: random.Random) -> None:
        """Up to three launches of any kind, so that what follows may begin anywhere."""
        for _ in range(rng.randint(1, 3)):
            cluster = rng.choice([1, 1, 2, 4, 8])
            ctas = rng.randint(1, 500) if cluster == 1 else rng.randint(1, 60) * cluster
            self.stay(ctas, rng.choice([128, 256, 512]), cluster, rng.choice([0, 500, 2000]))

    @staticmethod
    def _check(error: int) -> None:
        if error:
            raise RuntimeError(f"placement.cu: a launch failed with CUDA error {error}")


class Products:
    """What stands before and behind a norm in a model, with matrices of its own for each place."""

    def __init__(self, num_tokens: int, hidden: int, columns: int) -> None:
        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device="cuda", dtype=torch.bfloat16)

        def matrices(columns: int) -> list[torch.Tensor]:
            return [(normal(columns, hidden) / hidden**0.5).t() for _ in range(MATRICES)]

        self._output, self._gate_up = matrices(hidden), matrices(columns)
        self._x, self._wide = normal(num_tokens, hidden), normal(num_tokens, columns)
        self.y, self.residual = normal(num_tokens, hidden), normal(num_tokens, hidden)
        self.weight = torch.ones(hidden, device="cuda", dtype=torch.bfloat16)

    def output(self, number: int) -> None:
        """The product whose result the norm takes."""
        torch.mm(self._x, self._output[number % MATRICES], out=self.y)

    def gate_up(self, number: int) -> None:
        """The product that takes the norm's result."""
        torch.mm(self.y, self._gate_up[number % MATRICES], out=self._wide)


def microseconds_behind(marker: str, run: Callable[[], None]) -> list[float]:
    """Of each kernel that `run` launches behind one whose name has `marker`: its microseconds."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    on_gpu = torch.autograd.DeviceType.CUDA
    kernels = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in profiler.events()
        if event.device_type == on_gpu
    )
    return [
        end - start
        for (_, _, before), (start, end, name) in zip(kernels, kernels[1:], strict=False)
        if marker in before and marker not in name
    ]


def by_first_gpc(launches: Launches, products: Products, repeats: int) -> dict[int, float]:
    """Microseconds of gate and up by the GPC that its grid begins at."""
    rng = random.Random(0)
    order = [lead for _ in range(repeats) for lead in rng.sample(list(LEADS), len(LEADS))]

    def run() -> None:
        for number, lead in enumerate(order):
            ctas, cluster = LEADS[lead]
            launches.anything(rng)
            launches.stay(ctas, LEAD_THREADS, cluster, LEAD_NS)
            products.gate_up(number)

    times = defaultdict(list)
    for lead, us in zip(order, microseconds_behind("stay_kernel", run), strict=True):
        times[lead].append(us)
    return {lead: fmean(times[lead]) for lead in LEADS}


def behind_norm(
    launches: Launches,
    stream: torch.cuda.Stream,
    products: Products,
    norm: Callable[[Products], None],
    repeats: int,
) -> tuple[Counter[int], float]:
    """How often a grid begins at which GPC behind a norm, and the mean of gate and up there.

    In CUDA graphs, since only what is launched without gaps overlaps as in a model.
    """
    seen = torch.empty(repeats, launches.sms, device="cuda", dtype=torch.int32)

    def graph(last: Callable[[int], None]) -> Callable[[], None]:
        def run() -> None:
            rng = random.Random(1)
            for number in range(repeats):
                launches.anything(rng)
                products.output(number)
                norm(products)
                last(number)

        return stopwatch.captured(stream, run, run)

    graph(lambda number: launches.probe(seen[number]))()
    firsts = Counter(first_gpc(row[::2]) for row in seen.tolist())
    return firsts, fmean(microseconds_behind("rms_norm_kernel", graph(products.gate_up)))


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.placement", description=__doc__)
    parser.add_argument("library", type=Path, help="benchmarks/placement.cu, compiled")
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=28672)
    parser.add_argument("--configs", nargs="*", default=[], help="as benchmarks.tune names them")
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args(arguments)
    console = terminal.console()
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        console.print("no H100 or H200 here, and other GPUs have other GPCs", style="red")
        return 2
    import hp_norm_plugin
    from benchmarks import tune
    from hp_norm_plugin import rules

    def norm(products: Products) -> None:
        hp_norm_plugin.fused_add_rms_norm_(products.y, products.residual, products.weight, 1e-6)

    def forced(name: str) -> Callable[[Products], None]:
        config = tune.config_of(name)

        def call(products: Products) -> None:
            with rules.forced(config):
                norm(products)

        return call

    norms = {"the rule's": norm, **{name: forced(name) for name in args.configs}}
    stream = torch.cuda.Stream()
    launches = Launches(args.library, stream)
    shape = f"{args.hidden} to {args.columns}"
    first = Table("tokens", *(f"GPC {gpc}" for gpc in LEADS), title=f"{shape}, us by first GPC")
    behind = Table("tokens", "norm", "begins at GPC: times", "us", title=f"{shape} behind a norm")
    for num_tokens in args.tokens:
        products = Products(num_tokens, args.hidden, args.columns)
        with torch.cuda.stream(stream):
            products.gate_up(0)
            stream.synchronize()
            times = by_first_gpc(launches, products, args.repeats)
            first.add_row(str(num_tokens), *(f"{us:.2f}" for us in times.values()))
            for name, call in norms.items():
                firsts, us = behind_norm(launches, stream, products, call, args.repeats)
                places = ", ".join(f"{gpc}: {count}" for gpc, count in sorted(firsts.items()))
                behind.add_row(str(num_tokens), name, places, f"{us:.2f}")
    console.print(first)
    console.print(behind)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m benchmarks.placement``: at which GPC a product's grid begins, and what that costs.

The GPU deals the clusters of a grid out to its GPCs in turn, beginning behind the one that the
grids before ended at. A product with more tiles than SMs gives some SMs a tile more than others,
and which GPCs those share depends on where it began (docs/notes/2026-11-26-first-gpc.md).

Prints what a product takes by the GPC that it begins at, and where it begins and what it takes
behind a norm: with each `first_gpc`, and with each launch configuration named. Needs an H100 or
H200, and placement.cu compiled.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import torch
from rich.table import Table
from torch import Tensor

from benchmarks import decoder, providers, step_profile, stopwatch, terminal, tune
from benchmarks.provider import Call
from benchmarks.shapes import Case, positive_int
from hp_norm_plugin import first_gpc
from hp_norm_plugin.first_gpc import GPCS
from hp_norm_plugin.vllm import probe

# Launches that leave the next grid at one GPC whatever came before: CTAs and CTAs a cluster. Each
# of the first seven did in 216 of 216 cases on three H200s, 2026-11-26; 0 may leave it at 7.
LEADS = {
    0: (264, 2), 1: (8, 8), 2: (160, 2), 3: (384, 8), 4: (32, 2), 5: (330, 2), 6: (256, 2),
    7: (556, 4),
}  # fmt: skip
LEAD_THREADS, LEAD_NS = 128, 1200
# The probe's first clusters fill up the GPCs that have a pair of SMs more; then the rounds begin.
FIRST_OF_A_ROUND = 4
MATRICES = 4  # in turn, so that none is in L2


def began_at(sm_of_cluster: Sequence[int]) -> int:
    """The GPC at which the rounds begin, from the SM ids of the probe's clusters in their order."""
    return sm_of_cluster[FIRST_OF_A_ROUND] % (2 * GPCS) // 2


class Launches:
    """The launches of benchmarks/placement.cu, on one stream."""

    def __init__(self, library: Path, stream: torch.cuda.Stream) -> None:
        self._library = ctypes.CDLL(str(library.resolve()))
        self.stream = stream
        self.sms = torch.cuda.get_device_properties(stream.device).multi_processor_count

    def probe(self, sm_of_cta: Tensor) -> None:
        """Launch the probe, which writes its SM ids: int32 [SMs]."""
        self._launch("placement_probe", ctypes.c_void_p(sm_of_cta.data_ptr()), self.sms)

    def stay(self, ctas: int, threads: int, cluster: int, ns: int) -> None:
        """Launch CTAs that stay for so many nanoseconds."""
        self._launch("placement_stay", ctas, threads, cluster, ctypes.c_int64(ns))

    def anything(self, rng: random.Random) -> None:
        """Up to three launches of any kind, so that what follows may begin anywhere."""
        for _ in range(rng.randint(1, 3)):
            cluster = rng.choice([1, 1, 2, 4, 8])
            ctas = rng.randint(1, 500) if cluster == 1 else rng.randint(1, 60) * cluster
            self.stay(ctas, rng.choice([128, 256, 512]), cluster, rng.choice([0, 500, 2000]))

    def _launch(self, name: str, *arguments: object) -> None:
        error = self._library[name](*arguments, ctypes.c_void_p(self.stream.cuda_stream))
        if error:
            raise RuntimeError(f"{name}: a launch failed with CUDA error {error}")


class Products:
    """What stands before and behind a norm in a model, with matrices of its own for each place."""

    def __init__(self, case: Case, columns: int) -> None:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, device="cuda", dtype=case.torch_dtype)

        rows, hidden = case.num_tokens, case.hidden_size
        self._output = [decoder.matrix(normal, hidden, hidden) for _ in range(MATRICES)]
        self._gate_up = [decoder.matrix(normal, hidden, columns) for _ in range(MATRICES)]
        self._x, self._wide = normal(rows, hidden), normal(rows, columns)
        self.y, self.residual = normal(rows, hidden), normal(rows, hidden)
        self.weight = normal(hidden) * 0.25 + 1

    def output(self, number: int) -> None:
        """The product whose result the norm takes."""
        torch.mm(self._x, self._output[number % MATRICES], out=self.y)

    def gate_up(self, number: int) -> None:
        """The product that takes the norm's result."""
        torch.mm(self.y, self._gate_up[number % MATRICES], out=self._wide)


def times_behind(marker: str, kernels: Sequence[tuple[float, float, str]]) -> list[float]:
    """How long each kernel takes that is behind one whose name has `marker`."""
    return [
        end - start
        for (_, _, before), (start, end, name) in itertools.pairwise(kernels)
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
    kernels = probe.kernels(step_profile.recorded(run))
    for lead, us in zip(order, times_behind("stay_kernel", kernels), strict=True):
        times[lead].append(us)
    return {lead: fmean(times[lead]) for lead in LEADS}


def behind_norm(
    launches: Launches,
    products: Products,
    norm: Call,
    repeats: int,
    last: Callable[[int], None],
) -> Callable[[], None]:
    """Capture a product, the norm and what is `last`, so many times, each behind any launches.

    In a CUDA graph, since only what is launched without gaps overlaps as in a model.
    """

    def run() -> None:
        rng = random.Random(1)
        for number in range(repeats):
            launches.anything(rng)
            products.output(number)
            norm(products.y, products.residual, products.weight)
            last(number)

    return stopwatch.captured(launches.stream, run, run)


def firsts_behind_norm(
    launches: Launches, products: Products, norm: Call, repeats: int
) -> Counter[int]:
    """How often a grid begins at which GPC behind a norm."""
    seen = torch.empty(repeats, launches.sms, device="cuda", dtype=torch.int32)

    def probe_last(number: int) -> None:
        launches.probe(seen[number])

    behind_norm(launches, products, norm, repeats, probe_last)()
    return Counter(began_at(row[::2]) for row in seen.tolist())


def time_behind_norm(launches: Launches, products: Products, norm: Call, repeats: int) -> float:
    """Mean microseconds of gate and up behind a norm."""
    replay = behind_norm(launches, products, norm, repeats, products.gate_up)
    kernels = probe.kernels(step_profile.recorded(replay))
    return fmean(times_behind("rms_norm_kernel", kernels))


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.placement", description=__doc__)
    parser.add_argument("library", type=Path, help="benchmarks/placement.cu, compiled")
    parser.add_argument("--tokens", nargs="+", type=positive_int, default=[1, 8, 32])
    parser.add_argument("--hidden", type=positive_int, default=4096)
    parser.add_argument("--columns", type=positive_int, default=28672)
    parser.add_argument("--configs", nargs="*", default=[], help="as benchmarks.tune names them")
    parser.add_argument("--first-gpcs", nargs="*", type=int, default=list(range(GPCS)),
                        help="of the norm as its rules launch it")  # fmt: skip
    parser.add_argument("--repeats", type=positive_int, default=40)
    args = parser.parse_args(arguments)
    console = terminal.console()
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        console.print("no H100 or H200 here, and other GPUs have other GPCs", style="red")
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    ours = providers.load(providers.OURS, device)
    norms = [(f"{ours.name}, first GPC {gpc}", gpc, ours) for gpc in args.first_gpcs]
    others = [tune.as_provider(tune.config_of(name)) for name in args.configs]
    norms += [(norm.name, 0, norm) for norm in others]
    launches = Launches(args.library, torch.cuda.Stream(device))
    shape = f"{args.hidden} to {args.columns}"
    first = Table("tokens", *(f"GPC {gpc}" for gpc in LEADS), title=f"{shape}, us by first GPC")
    behind = Table("tokens", "norm", "begins at GPC: times", "us", title=f"{shape} behind a norm")
    for num_tokens in args.tokens:
        case = Case("fused_add", "bf16", num_tokens, args.hidden)
        products = Products(case, args.columns)
        with torch.cuda.stream(launches.stream):
            products.gate_up(0)
            launches.stream.synchronize()
            times = by_first_gpc(launches, products, args.repeats)
            first.add_row(str(num_tokens), *(f"{us:.2f}" for us in times.values()))
            for name, gpc, norm in norms:
                first_gpc.set_first_gpc(gpc, device)
                call = norm.bind(case)
                firsts = firsts_behind_norm(launches, products, call, args.repeats)
                us = time_behind_norm(launches, products, call, args.repeats)
                places = ", ".join(f"{gpc}: {count}" for gpc, count in sorted(firsts.items()))
                behind.add_row(str(num_tokens), name, places, f"{us:.2f}")
    console.print(first)
    console.print(behind)
    return 0


if __name__ == "__main__":
    sys.exit(main())

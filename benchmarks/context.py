"""``python -m benchmarks.context``: what a norm adds to a decoder layer.

The grid of ``benchmarks.run`` chains norms to norms, which is how kernels are compared. In a model
a norm stands between matrix products, which launch differently, fill the SMs and push the residual
and the norm's weight out of L2. Here a CUDA graph runs the four products of a Llama-shaped layer
(qkv, output, gate and up, down) and its two norms, once with each provider and once with no norm
at all; half the difference is what a norm adds.

Every product writes to the same buffers, on one stream and so with one workspace. Graphs of the
same calls still differ, with ``--past`` by up to 0.8 us a norm, with where the memory lies that
each has of its own (docs/gpu/2026-11-26-h200-addresses.txt). So each chain is captured several
times, all of them in a random order, and the noise is the standard error between its graphs.

Inductor is timed as it stands and writing over x and the residual, as its code does in a model.
``--profile`` prints what each kernel of a layer takes until the next one starts: what a norm does
to the product behind it shows there. ``--past`` adds attention over so many tokens and the gate of
the MLP, as a decode step has them, which push more code and data out of the caches.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import (
    cell,
    environment,
    peers,
    providers,
    records,
    stats,
    step_profile,
    stopwatch,
    terminal,
    tune,
)
from benchmarks.decoder import LAYERS, NORMS_PER_LAYER, Chain
from benchmarks.provider import Call, Outputs, Provider, one_line
from benchmarks.shapes import DTYPES, Case, positive_int

GRAPHS_PER_PROVIDER = 4
NO_NORM = "products only"
PROTOCOL = "context"


@dataclass(frozen=True)
class Added:
    """What one provider adds to a layer: microseconds a norm, and how sure that is."""

    name: str
    us: float
    noise: float


def measure(
    chain: Chain, calls: dict[str, Call], repeats: int, clock: stopwatch.Clock
) -> tuple[float, list[Added]]:
    """The time of half a layer without its norm, and what each provider's norm adds to it."""
    norms_by_name = {NO_NORM: None, **calls}
    keys = list(itertools.product(norms_by_name, range(GRAPHS_PER_PROVIDER)))
    random.Random(0).shuffle(keys)
    graphs = {(name, copy): chain.capture(norms_by_name[name]) for name, copy in keys}
    pending: dict[tuple[str, int], list[Callable[[], float]]] = {key: [] for key in graphs}
    for order in stats.balanced_orders(list(graphs), repeats):
        for key in order:
            chain.reset()
            graphs[key]()  # keeps the device busy until the timed replay is queued
            chain.reset()
            pending[key].append(clock.timed(graphs[key]))
    clock.synchronize()
    norms = LAYERS * NORMS_PER_LAYER

    def per_norm(key: tuple[str, int]) -> float:
        return statistics.median(read() for read in pending[key]) / norms

    def mean_and_error(name: str) -> tuple[float, float]:
        copies = [per_norm((name, copy)) for copy in range(GRAPHS_PER_PROVIDER)]
        return statistics.fmean(copies), statistics.stdev(copies) / len(copies) ** 0.5

    alone, alone_error = mean_and_error(NO_NORM)
    found = []
    for name in calls:
        us, error = mean_and_error(name)
        found.append(Added(name, us - alone, math.hypot(error, alone_error)))
    return alone, found


def without_dependent_launch(ours: Provider) -> Provider:
    """Our operator, launched only when the kernel before has ended."""
    from hp_norm_plugin import rules

    def bind(case: Case) -> Call:
        call = ours.bind(case)

        def norm(x: Tensor, residual: Tensor | None, weight: Tensor) -> Outputs:
            rules.limit_dependent_launch(0)
            try:
                return call(x, residual, weight)
            finally:
                rules.limit_dependent_launch(2**62)

        return norm

    return replace(ours, name=f"{ours.name}, no PDL", bind=bind)


def overwriting(inductor: Provider) -> Provider:
    """Inductor's code for the formula, compiled to write over x and the residual.

    Bound behind Inductor's own, which has Dynamo forget the case before.
    """

    def norm(x: Tensor, residual: Tensor, weight: Tensor) -> None:
        y, h = peers.native(x, residual, weight)
        x.copy_(y)
        residual.copy_(h)

    def bind(_case: Case) -> Call:
        return torch.compile(norm, dynamic=False, fullgraph=True)

    return replace(inductor, name=f"{inductor.name}, in place", bind=bind)


def _row(
    env: environment.Environment,
    device: torch.device,
    case: Case,
    provider: Provider,
    added: Added,
    past: int,
) -> records.Row:
    return records.Row(
        commit=env.commit, date=env.date, device=env.device, sm_clock_mhz=None, mem_clock_mhz=None,
        driver=env.driver, cuda=env.cuda, torch=env.torch, provider=provider.name,
        provider_version=provider.version, op=case.op, dtype=case.dtype,
        num_tokens=case.num_tokens, hidden_size=case.hidden_size,
        protocol=f"{PROTOCOL}, {past} past" if past else PROTOCOL,
        us=added.us, us_spread=added.noise / max(added.us, 1e-3), gb_per_s=None, ratio_to_copy=None,
        rule=cell.rule_of(case, device) if provider.name.startswith(providers.OURS) else "",
        status=records.OK, reason="",
    )  # fmt: skip


def run_case(
    case: Case,
    loaded: Sequence[Provider],
    env: environment.Environment,
    device: torch.device,
    repeats: int,
    clock: stopwatch.Clock,
    console: Console,
    with_profile: bool = False,
    past: int = 0,
) -> list[records.Row]:
    """Measure one shape, print its table and return its rows; who raises is left out, by name."""
    chain = Chain(case, device, past)
    calls: dict[str, Call] = {}
    for provider in loaded:
        try:
            call = provider.bind(case)
            call(chain.x.clone(), chain.residual.clone(), chain.layers[0].norms[0])
            calls[provider.name] = call
        except Exception as error:  # whatever a peer raises, the others still run
            text = one_line(f"{provider.name}: {type(error).__name__}: {error}")
            console.print(text, style="red", markup=False)
    alone, found = measure(chain, calls, repeats, clock)
    table = Table(
        "provider", "added us", "noise", "of the time", title=f"{case}, products {alone:.2f} us"
    )
    for added in sorted(found, key=lambda one: one.us):
        share = added.us / (alone + added.us)
        table.add_row(added.name, f"{added.us:.2f}", f"{added.noise:.2f}", f"{share:.1%}")
    console.print(table)
    if with_profile:
        norms = {NO_NORM: None, **calls}
        profiles = {
            name: step_profile.of(chain.capture(norm), LAYERS) for name, norm in norms.items()
        }
        step_profile.show(console, str(case), profiles)
    by_name = {provider.name: provider for provider in loaded}
    return [_row(env, device, case, by_name[added.name], added, past) for added in found]


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.context", description=__doc__)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--tokens", nargs="+", type=positive_int, default=[1, 8, 32, 128, 512])
    parser.add_argument("--hidden", nargs="+", type=positive_int, default=[2048, 4096, 8192])
    parser.add_argument("--providers", nargs="*", default=[providers.OURS, *providers.PEERS])
    parser.add_argument("--configs", default=None, help="also time configurations so named")
    parser.add_argument("--options", nargs="+", default=[], help="in every subset of these")
    parser.add_argument("--profile", action="store_true", help="times of the products, too")
    parser.add_argument(
        "--past", type=int, default=0, help="tokens to attend to: with attention and the gate"
    )
    parser.add_argument("--repeats", type=positive_int, default=11)
    parser.add_argument("--out", type=Path, required=True, help="CSV to append to")
    args = parser.parse_args(arguments)
    console = terminal.console()
    if not torch.cuda.is_available():
        console.print("no CUDA device here; a chain of products needs one", style="red")
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    env, clock = environment.describe(device), stopwatch.GraphClock(device)
    loaded, unavailable = providers.load_all(args.providers, device)
    for reason in unavailable.values():
        console.print(f"skipped: {reason}", markup=False, highlight=False)
    ours = next((one for one in loaded if one.name == providers.OURS), None)
    if ours is not None:
        loaded.insert(1, without_dependent_launch(ours))
    loaded += [overwriting(one) for one in loaded if one.name == "inductor"]
    writer = records.Writer(args.out)
    try:
        for hidden_size in args.hidden:
            for num_tokens in args.tokens:
                case = Case("fused_add", args.dtype, num_tokens, hidden_size)
                configs: list[Provider] = []
                if args.configs is not None:
                    configs = tune.candidates(case, device, args.options, args.configs)
                every = [*loaded, *configs]
                rows = run_case(
                    case, every, env, device, args.repeats, clock, console, args.profile, args.past
                )
                writer.write(rows)
    except ValueError as error:
        console.print(str(error), style="red", markup=False)
        return 2
    finally:
        writer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

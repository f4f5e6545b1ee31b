"""``python -m benchmarks.tune``: time every launch configuration that can serve a shape.

Each configuration is a provider of its own, so it is checked and timed like any other: its result
must meet the contract as strictly as the operator's, and the order is balanced.  The rows go to a
CSV; the summary names, per cell, the best configurations and what they gain over the rule in use.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

import hp_norm_plugin
from benchmarks import cell, providers, records, shapes, terminal
from benchmarks.provider import EPS, Call, Outputs, Provider
from benchmarks.providers import CANDIDATE, COPY, OURS
from benchmarks.records import OK, Row
from benchmarks.shapes import positive_int
from hp_norm_plugin import rules
from hp_norm_plugin.rules import Config

NAME = re.compile(rf"(?:{CANDIDATE})?" r"(\d+)B x(\d+), (\d+) rows?, (\d+) CTAs?(.*)")
# Candidates that are timed in turn, each with graphs and outputs of its own: cold, the plain norm
# writes up to 2 GB of new memory a replay.
AT_A_TIME = 32


@dataclass(frozen=True)
class Result:
    """One configuration's time in a cell, in microseconds, and the rule's time over it."""

    name: str
    us: float
    gain: float


def name_of(config: Config) -> str:
    """A name that says everything: ``candidate:16B x2, 4 rows, 1 CTA, trigger_early``."""
    rows, ctas = config.rows_per_cta, config.ctas_per_row
    parts = [f"{config.vec_bytes}B x{config.vecs_per_thread}"]
    parts.append(f"{rows} row{'s' * (rows > 1)}")
    parts.append(f"{ctas} CTA{'s' * (ctas > 1)}")
    return CANDIDATE + ", ".join([*parts, *config.option_names()])


def config_of(name: str) -> Config:
    """The configuration that ``name_of`` gives this name, or the summary without its prefix."""
    *sizes, options = NAME.fullmatch(name).groups()
    names = [option for option in options.split(", ") if option]
    return rules.Config(*map(int, sizes), sum(rules.OPTIONS[option] for option in names))


def with_options(configs: Iterable[Config], names: Sequence[str]) -> list[Config]:
    """Every configuration with every subset of the named options.

    Raises
    ------
    ValueError
        For an option that does not exist.

    """
    for name in names:
        if name not in rules.OPTIONS:
            raise ValueError(f"options: must be of {', '.join(rules.OPTIONS)}, got {name}")
    bits = [rules.OPTIONS[name] for name in names]
    subsets = [
        sum(chosen)
        for count in range(len(bits) + 1)
        for chosen in itertools.combinations(bits, count)
    ]
    found = [
        replace(config, options=config.options | subset) for config in configs for subset in subsets
    ]
    return list(dict.fromkeys(found))


def as_provider(config: Config) -> Provider:
    """The operator, forced to one configuration."""

    def bind(case: shapes.Case) -> Call:
        def plain(x: Tensor, _: Tensor | None, weight: Tensor) -> Outputs:
            with rules.forced(config):
                return hp_norm_plugin.rms_norm(x, weight, EPS)

        def fused_add(x: Tensor, residual: Tensor | None, weight: Tensor) -> None:
            with rules.forced(config):
                hp_norm_plugin.fused_add_rms_norm_(x, residual, weight, EPS)

        return plain if case.op == "plain" else fused_add

    return Provider(name_of(config), "", bind)


def candidates(
    case: shapes.Case, device: torch.device, options: Sequence[str], match: str
) -> list[Provider]:
    """The configurations that can hold a case's rows and whose name the pattern finds."""
    configs = rules.candidates(case.hidden_size, case.torch_dtype, rules.sm_of(device))
    row_bytes = case.row_bytes
    found = [c for c in with_options(configs, options) if c.is_valid(row_bytes)]
    return [provider for provider in map(as_provider, found) if re.search(match, provider.name)]


def groups(beside: Sequence[Provider], found: Sequence[Provider]) -> list[list[Provider]]:
    """The candidates, so many at a time, and with each group what is timed beside them."""
    starts = range(0, max(len(found), 1), AT_A_TIME)
    return [[*beside, *found[start : start + AT_A_TIME]] for start in starts]


def ranking(rows: Iterable[Row]) -> list[Result]:
    """The configurations of one group of a cell that have a time, fastest first."""
    timed = {row.provider: row.us for row in rows if row.status == OK}
    rule = timed.get(OURS, float("nan"))
    found = [
        Result(name.removeprefix(CANDIDATE), us, rule / us)
        for name, us in timed.items()
        if name.startswith(CANDIDATE)
    ]
    return sorted(found, key=lambda result: result.us)


def print_ranking(
    console: Console, case: shapes.Case, timed: Sequence[Sequence[Row]], top: int
) -> None:
    """Print the best configurations of a cell's groups beside the rule in use, and who failed."""
    rows = [row for group in timed for row in group]
    rule = next((row for row in rows if row.provider == OURS), None)
    text = f"{rule.us:.4g} us, {rule.rule}" if rule and rule.us else "no time"
    console.print(f"{case}: rule in use {text}", markup=False, highlight=False)
    results = [result for group in timed for result in ranking(group)]
    for result in sorted(results, key=lambda result: result.us)[:top]:
        console.print(
            f"    {result.us:8.4g} us  {result.gain:5.3f}x  {result.name}",
            markup=False,
            highlight=False,
        )
    for row in rows:
        if row.status != OK:
            console.print(f"    {row.provider}: {row.reason}", style="red", markup=False)


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__)
    parser.add_argument("--op", nargs="+", choices=shapes.OPS, default=["fused_add"])
    parser.add_argument("--dtype", nargs="+", choices=tuple(shapes.DTYPES), default=["bf16"])
    parser.add_argument("--tokens", nargs="+", type=positive_int, default=list(shapes.NUM_TOKENS))
    parser.add_argument("--hidden", nargs="+", type=positive_int, default=list(shapes.HIDDEN_SIZES))
    parser.add_argument("--options", nargs="+", default=[], help="try every subset of these")
    parser.add_argument("--match", default="", help="only names that this pattern finds")
    parser.add_argument("--providers", nargs="*", default=[OURS, COPY], help="timed beside them")
    parser.add_argument("--protocol", choices=("cached", "cold"))
    parser.add_argument("--repeats", type=positive_int, default=7)
    parser.add_argument("--top", type=positive_int, default=5, help="how many to print per cell")
    parser.add_argument("--out", type=Path, required=True, help="CSV to append to")
    args = parser.parse_args(arguments)
    console = terminal.console()
    if not torch.cuda.is_available():
        console.print("no CUDA device here, there is nothing to tune", style="red")
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    bench = cell.Bench.on(device, args.repeats, args.protocol)
    beside, unavailable = providers.load_all(args.providers, device)
    writer = records.Writer(args.out)
    try:
        for case in shapes.grid(args.op, args.dtype, args.tokens, args.hidden):
            found = candidates(case, device, args.options, args.match)
            timed = [cell.run(bench, case, g, unavailable) for g in groups(beside, found)]
            writer.write([row for rows in timed for row in rows])
            print_ranking(console, case, timed, args.top)
    except ValueError as error:
        console.print(str(error), style="red", markup=False)
        return 2
    finally:
        writer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``make bench``: time every provider over the grid and append the rows to a CSV.

The whole grid, both operators in bf16 and fp16, on one GPU: ``python -m benchmarks.run``.  Part of
it: ``--op``, ``--dtype``, ``--tokens``, ``--hidden``, ``--shard K/N``.  ``--resume`` goes on where
a run was cut short.  The CPU operator against vLLM's and torch's own: ``--device cpu``.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.logging import RichHandler

from benchmarks import (
    cell,
    compile_ahead,
    environment,
    providers,
    records,
    results,
    shapes,
    terminal,
    timing,
)
from benchmarks.shapes import positive_int


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parse.add_argument("--op", nargs="+", choices=shapes.OPS, help="default: both")
    parse.add_argument(
        "--dtype", nargs="+", choices=tuple(shapes.DTYPES), help="default: bf16 and fp16"
    )
    parse.add_argument("--tokens", nargs="+", type=positive_int, help="default: 1 to 16384")
    parse.add_argument("--hidden", nargs="+", type=positive_int, help="default: 1024 to 32768")
    parse.add_argument(
        "--founding", action="store_true",
        help="4096 tokens at every multiple of 1024; default: the fused add in bf16",
    )  # fmt: skip
    parse.add_argument(
        "--quick", action="store_true", help="a dozen shapes, to see it work; default likewise"
    )
    parse.add_argument("--providers", nargs="+", help=f"of {', '.join(providers.NAMES)}")
    parse.add_argument(
        "--protocol", choices=("cached", "cold"), help="default: cached below 512 tokens"
    )
    parse.add_argument("--shard", help="K/N: this part of the hidden sizes")
    parse.add_argument("--repeats", type=positive_int, default=11, help="measurements of a cell")
    parse.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parse.add_argument("--threads", type=positive_int, help="of torch, on the CPU")
    parse.add_argument("--out", type=Path, help="CSV to append to")
    parse.add_argument("--resume", action="store_true", help="skip cells that --out already has")
    parse.add_argument(
        "--compile-seconds", type=float, default=150, help="limit of compiling ahead; 0: do not"
    )
    parse.add_argument(
        "--time-limit", type=float, help="stop before a cell that starts after so many seconds"
    )
    return parse


def device_of(name: str) -> torch.device:
    """The device to measure on.

    Raises
    ------
    ValueError
        There is none of that name here.

    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cuda", "cpu"):
        raise ValueError(f"--device: must be cuda, cuda:1 or cpu, got {name}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device here; the CPU operator: --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device: must be one of {torch.cuda.device_count()}, got {name}")
    return device


def wanted(args: argparse.Namespace) -> tuple[Sequence[str], Sequence[str]]:
    """Operators and dtypes: all that there are bounds for, or one of each in a small run."""
    small = args.founding or args.quick
    ops = args.op or (["fused_add"] if small else shapes.OPS)
    return ops, args.dtype or (["bf16"] if small else ["bf16", "fp16"])


def cases_of(args: argparse.Namespace, device: torch.device) -> list[shapes.Case]:
    """The cells that the arguments ask for.

    Raises
    ------
    ValueError
        If the shard is not of the form K/N.

    """
    tokens, hidden = shapes.NUM_TOKENS, shapes.HIDDEN_SIZES
    if device.type == "cpu":
        tokens, hidden = shapes.CPU_NUM_TOKENS, shapes.CPU_HIDDEN_SIZES
    if args.quick:
        tokens, hidden = shapes.QUICK_NUM_TOKENS, shapes.QUICK_HIDDEN_SIZES
    if args.founding:
        tokens, hidden = (shapes.FOUNDING_NUM_TOKENS,), shapes.FOUNDING_HIDDEN_SIZES
    hidden = args.hidden or hidden
    if args.shard:
        hidden = shapes.shard(hidden, *shapes.parse_shard(args.shard))
    return list(shapes.grid(*wanted(args), args.tokens or tokens, hidden))


def default_out(env: environment.Environment, args: argparse.Namespace) -> Path:
    """``<date>-<device>-<ops>-<dtypes>.csv`` under benchmarks/results."""
    device = results.short_name(env.device).lower()
    ops, dtypes = wanted(args)
    return results.RESULTS / f"{env.date[:10]}-{device}-{'-'.join([*ops, *dtypes])}.csv"


def without_finished(
    cases: Sequence[shapes.Case], out: Path, protocol: str | None = None
) -> list[shapes.Case]:
    """The cells that a CSV has no row of yet under a protocol; None: the default one of each."""
    if not out.exists():
        return list(cases)
    frame = records.read([out])
    key = ["op", "dtype", "num_tokens", "hidden_size", "protocol"]
    finished = {(shapes.Case(*row[:4]), row[4]) for row in frame[key].itertuples(index=False)}
    return [
        case
        for case in cases
        if (case, protocol or timing.protocol_for(case.num_tokens)) not in finished
    ]


@torch.no_grad()
def run(args: argparse.Namespace, console: Console) -> int:
    """Run what the arguments ask for; 0 when every cell was reached."""
    try:
        device = device_of(args.device)
        cases = cases_of(args, device)
    except ValueError as error:
        console.print(str(error), style="red", markup=False)
        return 2
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
        device = torch.device("cuda", torch.cuda.current_device())
    if args.threads:
        torch.set_num_threads(args.threads)
    names = args.providers or providers.default_names(device)
    bench = cell.Bench.on(device, args.repeats, args.protocol)
    out = args.out or default_out(bench.environment, args)
    if args.resume:
        cases = without_finished(cases, out, args.protocol)
    started = time.monotonic()
    loaded, unavailable = providers.load_all(names, device)
    for reason in unavailable.values():
        console.print(f"skipped: {reason}", markup=False, highlight=False)
    console.print(f"{bench.environment.device}, commit {bench.environment.commit}, to {out}")
    reporter = terminal.Reporter(console)
    if args.compile_seconds > 0:
        total = len(compile_ahead.tasks(loaded, cases))
        with reporter.phase("compiling ahead", total):
            compile_ahead.run(
                loaded,
                cases,
                device,
                args.compile_seconds,
                advance=lambda name, done, total: reporter.step(
                    done, f"{name}, {time.monotonic() - started:.0f} s", done % 20 == 0
                ),
            )
    # Everything imported so far stays; collecting it again and again would cost a second a cell.
    gc.collect()
    gc.freeze()
    rows, left = _measure(args, bench, cases, loaded, unavailable, out, started, reporter)
    frame = pd.DataFrame([asdict(row) for row in rows], columns=records.COLUMNS)
    terminal.print_results(console, frame)
    console.print(f"{len(rows)} rows in {out}, {time.monotonic() - started:.0f} s")
    if left:
        console.print(f"time limit: {left} cells left, run again with --resume", style="yellow")
    return 1 if left else 0


def _measure(
    args: argparse.Namespace,
    bench: cell.Bench,
    cases: Sequence[shapes.Case],
    loaded: Sequence[providers.Provider],
    unavailable: dict[str, str],
    out: Path,
    started: float,
    reporter: terminal.Reporter,
) -> tuple[list[records.Row], int]:
    """Measure the cases; the rows, and how many cases the time limit left out."""
    rows: list[records.Row] = []
    writer = records.Writer(out)
    try:
        with reporter.phase("measuring", len(cases)):
            for index, case in enumerate(cases):
                if args.time_limit and time.monotonic() - started > args.time_limit:
                    return rows, len(cases) - index
                measured = cell.run(bench, case, loaded, unavailable)
                writer.write(measured)
                rows += measured
                reporter.step(index + 1, terminal.summary_of(measured))
    finally:
        writer.close()
    return rows, 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    console = terminal.console()
    handler = RichHandler(console=console, show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    return run(parser().parse_args(arguments), console)


if __name__ == "__main__":
    sys.exit(main())

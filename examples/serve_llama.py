#!/usr/bin/env python3
"""Serve a model with vLLM, with and without hp_norm_plugin, and compare.

    python examples/serve_llama.py                      # the default comparison for this machine
    python examples/serve_llama.py --model Qwen3-8B     # an architecture of examples/models
    python examples/serve_llama.py --model /path/to/checkpoint --batch-sizes 1 32

    python examples/serve_llama.py server               # vllm serve, driven by vllm bench serve
    python examples/serve_llama.py tokens               # do greedy tokens agree, off against on
    python examples/serve_llama.py cache                # starts in one compile cache, on and off
    python examples/serve_llama.py swap                 # one engine, its graphs swapped

Engines with the plugin off and on are alive at the same time and measured in turn, there and back:
off, on, on, off. Exits with 0 when the operator ran (cache: when no setting ran the other's graph;
tokens only compares), 1 when it did not, 2 when something could not start, 130 when it was
interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from rich.console import Console
from serving import agreement, cache, memory, models, offline, report, server, swap
from serving.arguments import parse
from serving.child_process import EngineError


def has_gpu() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def keep(args: argparse.Namespace, result: dict) -> Path:
    """Write what a mode found, and what it was asked for; returns the file."""
    path = Path(args.out) / f"serve_llama_{args.mode}.json"
    # Where it is written says nothing about the result, and is the machine's own business.
    asked = {name: value for name, value in vars(args).items() if name != "out"}
    report.write_json(path, {**result, "arguments": asked})
    return path


def check_out(out: str) -> None:
    """Raise ValueError when nothing can be written to `out`: before a run of minutes, not after."""
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise ValueError(f"--out: {out} cannot be written to ({error.strerror})") from None


def draw(args: argparse.Namespace, console: Console, title: str, bars: dict) -> None:
    """Draw what a mode found, or say why there is no chart."""
    if not report.chart(Path(args.out) / f"serve_llama_{args.mode}.png", title, bars):
        console.print("no chart: matplotlib is not installed", style="yellow")


def run_kept(
    mode: ModuleType,
    model: models.Model,
    args: argparse.Namespace,
    console: Console,
    show: Callable[[dict], None],
) -> dict:
    """Run a mode that hands over what it has so far; when it is cut off, `show` that.

    Minutes of measuring are not lost with what was cut off, whoever ended it.
    """
    found: dict = {}

    def keep_so_far(so_far: dict) -> None:
        found.update(so_far, path=keep(args, so_far))

    try:
        return mode.run(model, args, keep_so_far)
    except (EngineError, KeyboardInterrupt, SystemExit):
        if "rows" in found:
            with contextlib.suppress(OSError):  # the terminal may be what was lost
                show(found)
                console.print(f"written to {found['path']}", highlight=False)
        raise


def run_offline(model: models.Model, args: argparse.Namespace, console: Console) -> dict:
    """Compare times, tokens and kernels: of engines, or of one with its graphs swapped."""
    mode = swap if args.mode == "swap" else offline
    where = "GPU" if args.gpu else "CPU"

    def show(found: dict) -> None:
        report.print_offline(console, f"{model.name}, {where}: what was measured", found)

    result = run_kept(mode, model, args, console, show)
    ran, sentence = offline.verdict(result)
    state = result["state"]["on"]
    title = f"{model.name}, vLLM {state['vllm']}, {where}: plugin off against on"
    report.print_offline(console, title, result)
    draw(args, console, title, report.offline_bars(result))
    console.print(state["reason"], highlight=False)
    if args.one_cache:
        console.print(offline.graphs(result), highlight=False)
    return {**result, "ok": ran or args.may_stand_aside, "verdict": sentence}


def run_server(model: models.Model, args: argparse.Namespace, console: Console) -> dict:
    """Compare two servers under load."""

    def show(found: dict) -> None:
        title = f"{model.name}, vllm serve: what was measured"
        report.print_server(console, title, found, server.METRICS)

    result = run_kept(server, model, args, console, show)
    ran, sentence = server.verdict(result)
    state = result["state"]["on"]
    title = f"{model.name}, vllm serve: plugin off against on"
    report.print_server(console, title, result, server.METRICS)
    bars = report.server_bars(result, server.METRICS)
    draw(args, console, title, bars)
    console.print(state["reason"], highlight=False)
    return {**result, "ok": ran or args.may_stand_aside, "verdict": sentence}


def run_tokens(model: models.Model, args: argparse.Namespace, console: Console) -> dict:
    """Compare greedy tokens."""
    result = agreement.run(model, args)
    agreement.show(console, result)
    return {**result, "ok": True, "verdict": agreement.verdict(result)}


def run_cache(model: models.Model, args: argparse.Namespace, console: Console) -> dict:
    """Start several times in one compile cache."""
    result = cache.run(model, args)
    cache.show(console, result)
    apart, sentence = cache.verdict(result, args.gpu, args.may_stand_aside)
    return {**result, "ok": apart, "verdict": sentence}


def end_by_signals() -> None:
    """Have a plain kill and a lost terminal end the engines as Ctrl-C does: by an exception."""

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup's wish
            signal.signal(number, leave)


def main(argv: list[str] | None = None) -> int:
    """Run one mode and return the exit status."""
    # A log is not a terminal, and the brackets of a path or a name are no markup.
    console = Console(width=None if sys.stdout.isatty() else 140, markup=False)
    args = parse(argv, has_gpu())
    modes = {
        "offline": run_offline,
        "server": run_server,
        "tokens": run_tokens,
        "cache": run_cache,
        "swap": run_offline,
    }
    end_by_signals()
    try:
        if not args.gpu:
            console.print("no GPU: comparing on the CPU, where a small model's times are noise")
        memory.check(args)
        model = models.resolve(args.model)
        check_out(args.out)
        result = modes[args.mode](model, args, console)
    except (EngineError, ValueError) as error:
        # A log's brackets are no markup, and its lines are to stay whole.
        Console(stderr=True, soft_wrap=True).print(
            str(error), style="red", markup=False, highlight=False
        )
        return 2
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; engines ended")
        return 130
    path = keep(args, result)
    console.print(f"{result['verdict']}\nwritten to {path}", highlight=False)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Serve a model with vLLM, with and without hp_norm_plugin, and compare.

    python examples/serve_llama.py                      # the default comparison for this machine
    python examples/serve_llama.py --model Qwen3-8B     # an architecture of examples/models
    python examples/serve_llama.py --model /path/to/checkpoint --batch-sizes 1 32

    python examples/serve_llama.py server               # vllm serve, driven by vllm bench serve
    python examples/serve_llama.py tokens               # do greedy tokens agree, off against on
    python examples/serve_llama.py cache                # starts in one compile cache, on and off
    python examples/serve_llama.py swap                 # one engine, its graphs swapped

Engines with the plugin off and on are alive at the same time and measured in turn. Exits with 0
when the operator ran (cache: when no setting ran the other's graph), 1 when it did not, 2 when
something could not start.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from rich.console import Console
from serving import agreement, cache, models, offline, report, server, swap
from serving.client import EngineError

from hp_norm_plugin.vllm import policy


class Variant(argparse.Action):
    """Collects `NAME VARIABLE=VALUE ...` as the variables of each name."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Add one variant."""
        name, *settings = values
        if not settings or not all("=" in setting for setting in settings):
            got = " ".join(values)
            parser.error(f"--variant: must be NAME VARIABLE=VALUE [VARIABLE=VALUE ...], got {got}")
        engine = offline.more_of(offline.OFF, [name]) or offline.more_of(offline.ON, [name])
        if engine or name in namespace.variants:
            parser.error(f"--variant: the name must be new, got {name}")
        variables = dict(setting.split("=", 1) for setting in settings)
        namespace.variants = {**namespace.variants, name: variables}


def parse(argv: list[str] | None, gpu: bool) -> argparse.Namespace:
    """Parse the command line; the defaults depend on whether there is a GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    modes = ["offline", "server", "tokens", "cache", "swap"]
    add("mode", nargs="?", choices=modes, default="offline")
    add(
        "--model",
        default="Llama-3.1-8B" if gpu else "tiny-llama",
        help="a name of examples/models, a directory, or a hub name",
    )
    add("--plugin", default="auto", choices=["auto", "ir", "layer"], help="HP_NORM_PLUGIN when on")
    add("--batch-sizes", type=int, nargs="+", default=[1, 8, 32, 128] if gpu else [1, 4])
    add("--input-len", type=int, default=128 if gpu else 16)
    add("--output-len", type=int, default=129 if gpu else 17)
    add("--prefill-batch", type=int, default=8 if gpu else 2, help="0: no prefill measurement")
    add("--prefill-len", type=int, default=1024 if gpu else 128)
    add("--repeats", type=int, default=6 if gpu else 3, help="pairs off, on of each workload")
    add("--warmup", type=int, default=1, help="pairs before them that are not counted")
    add("--quantization", default=None, help="vLLM's, such as fp8 (online)")
    add(
        "--may-stand-aside",
        action="store_true",
        help="exit with 0 when the plugin leaves every norm to vLLM, too",
    )
    add("--enforce-eager", action="store_true", help="no compilation, no CUDA graphs")
    add(
        "--engines", type=int, default=1,
        help="offline: of each setting; equal ones differ by 1 %%. swap: compilations of each",
    )  # fmt: skip
    add(
        "--variant",
        dest="variants",
        nargs="+",
        action=Variant,
        default={},
        metavar=("NAME", "VARIABLE=VALUE"),
        help="offline: another engine, plugin on, with these variables; may be given again",
    )
    add(
        "--one-cache",
        action="store_true",
        help="offline, swap: one new compile cache, as on a user's machine; the first fills it",
    )
    add("--profile-all", action="store_true", help="profile every engine at every batch size")
    add("--memory", type=float, default=0.45, help="gpu_memory_utilization of each engine")
    add("--kv-cache-gib", type=float, default=12.0 if gpu else 0.5)
    add("--max-model-len", type=int, default=None)
    add("--seed", type=int, default=0)
    add("--seeds", type=int, default=3, help="tokens: how many prompts")
    add("--port", type=int, default=8731, help="server: this port and the next are used")
    add("--request-rates", type=float, nargs="*", help="server: instead of concurrencies")
    add("--num-prompts", type=int, default=64 if gpu else 8, help="server: requests of one drive")
    add("--starts", type=int, default=5 if gpu else 3, help="cache: on, off, on, off, on")
    add("--out", default="serve_llama_out", help="directory for the JSON and the logs")
    args = parser.parse_args(argv)
    args.gpu = gpu
    args.batch_sizes = list(dict.fromkeys(args.batch_sizes))
    if args.output_len < 2:
        parser.error("--output-len: must be at least 2, got " + str(args.output_len))
    if args.mode == "swap" and (args.plugin == "layer" or args.enforce_eager or args.variants):
        parser.error("swap: needs the IR adapter and compilation, and has no --variant")
    if args.mode == "swap" and args.quantization in policy.WEIGHT_ONLY_QUANTIZATION:
        rule = "must be one that the plugin leaves alone (vLLM decides on fusions when it starts)"
        parser.error(f"swap: --quantization: {rule}, got {args.quantization}")
    if min(args.batch_sizes) < 1 or args.repeats < 1 or args.engines < 1:
        parser.error("--batch-sizes, --repeats and --engines: must be at least 1")
    return args


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


def draw(args: argparse.Namespace, console: Console, title: str, bars: dict) -> None:
    """Draw what a mode found, or say why there is no chart."""
    if not report.chart(Path(args.out) / f"serve_llama_{args.mode}.png", title, bars):
        console.print("no chart: matplotlib is not installed", style="yellow")


def run_offline(model: models.Model, args: argparse.Namespace, console: Console) -> dict:
    """Compare times, tokens and kernels: of engines, or of one with its graphs swapped."""
    mode = swap if args.mode == "swap" else offline
    result = mode.run(model, args, lambda so_far: keep(args, so_far))
    ran, sentence = offline.verdict(result)
    state = result["state"]["on"]
    where = "GPU" if args.gpu else "CPU"
    title = f"{model.name}, vLLM {state['vllm']}, {where}: plugin off against on"
    report.print_offline(console, title, result)
    if result.get("replayed"):
        report.print_replayed(console, result["replayed"])
    if result.get("watched"):
        report.print_watched(console, result["watched"])
    draw(args, console, title, report.offline_bars(result))
    console.print(state["reason"], highlight=False)
    if args.one_cache:
        console.print(offline.graphs(result), highlight=False)
    return {**result, "ok": ran or args.may_stand_aside, "verdict": sentence}


def run_server(model: models.Model, args: argparse.Namespace, console: Console) -> dict:
    """Compare two servers under load."""
    result = server.run(model, args)
    ran, sentence = server.verdict(result)
    state = result["proof"]["on"]["state"]
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


def main(argv: list[str] | None = None) -> int:
    """Run one mode and return the exit status."""
    console = Console() if sys.stdout.isatty() else Console(width=140)  # a log is not a terminal
    args = parse(argv, has_gpu())
    modes = {
        "offline": run_offline,
        "server": run_server,
        "tokens": run_tokens,
        "cache": run_cache,
        "swap": run_offline,
    }
    # A plain kill must end the engines as Ctrl-C does: through the context managers.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        result = modes[args.mode](models.resolve(args.model), args, console)
    except (EngineError, ValueError) as error:
        Console(stderr=True).print(f"[red]{error}[/red]", highlight=False)
        return 2
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; engines ended")
        return 130
    path = keep(args, result)
    console.print(f"{result['verdict']}\nwritten to {path}", highlight=False)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())

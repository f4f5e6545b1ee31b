"""Do the greedy tokens agree? Off against itself, off against on, and in which rounding order."""

from __future__ import annotations

import argparse
import contextlib
import statistics
from typing import Any

from rich.console import Console
from rich.table import Table

from serving import offline, stats
from serving.children import alone, progress_bar
from serving.models import Model

PLANS = {
    "off": {"HP_NORM_PLUGIN": "0"},
    "once": {"HP_NORM_ROUNDING": "once"},
    "before_weight": {"HP_NORM_ROUNDING": "before_weight"},
}


def run(model: Model, args: argparse.Namespace) -> dict[str, Any]:
    """Generate and score on three engines: plugin off, and on in both rounding orders.

    Generated text diverges for good at its first different token, so beside it every engine scores
    the same text (what "off" generated): the share of positions whose most likely token differs,
    and how far its log-probability moved.

    Returns
    -------
    dict
        `comparisons`, each with the pair's names, the shares and distances.

    """
    plans = {
        name: {"HP_NORM_PLUGIN": args.plugin, **variables} for name, variables in PLANS.items()
    }
    args.memory = min(args.memory, 0.9 / len(plans))
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(progress_bar())
        engines = offline.start(stack, model, args, progress, plans)
        task = progress.add_task("generating and scoring", total=len(plans) + 1)
        seen: dict[str, dict[str, Any]] = {}
        # The second run of "off" shows the noise of vLLM itself.
        for name in (*plans, "off again"):
            engine = engines[name.removesuffix(" again")]
            with alone(engine, args):
                texts = _generate(engine, args)
                basis = seen["off"]["texts"] if seen else texts
                scores = [engine.ask("score", tokens=text) for text in basis]
            seen[name] = {"texts": texts, "scores": scores}
            progress.update(task, advance=1)
    rows = [_compare(name, seen["off"], seen[name]) for name in ("off again", *list(plans)[1:])]
    return {"comparisons": rows}


def _generate(engine: Any, args: argparse.Namespace) -> list[list[int]]:
    """Generate `output_len` tokens for each of the seeds."""
    texts = []
    for seed in range(args.seed, args.seed + args.seeds):
        work = {"batch": 1, "input_len": args.input_len, "output_len": args.output_len}
        texts += engine.ask("measure", seed=seed, **work)["tokens"]
    return texts


def _compare(name: str, off: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    generated = stats.same_tokens(off["texts"], other["texts"])
    best, moved = [], []
    for a, b in zip(off["scores"], other["scores"], strict=True):
        best += [x == y for x, y in zip(a["best"], b["best"], strict=True)]
        moved += [abs(x - y) for x, y in zip(a["logprobs"], b["logprobs"], strict=True)]
    return {
        "against_off": name,
        "generated_tokens": generated["tokens"],
        "generated_differ": 1.0 - generated["share_equal"],
        "sequences_equal": f"{generated['sequences_equal']} of {generated['sequences']}",
        "scored_positions": len(best),
        "scored_differ": 1.0 - sum(best) / len(best),
        "logprob_moved_mean": statistics.fmean(moved),
        "logprob_moved_max": max(moved),
    }


def verdict(result: dict[str, Any]) -> str:
    """Name the rounding order whose log-probabilities are nearest to vLLM's own."""
    orders = [row for row in result["comparisons"] if row["against_off"] in PLANS]
    nearest = min(orders, key=lambda row: row["logprob_moved_mean"])
    return f"nearest to vLLM's default path: rounding {nearest['against_off']}"


def show(console: Console, result: dict[str, Any]) -> None:
    """Print one row per comparison."""
    table = Table(title="greedy tokens against plugin off", title_justify="left")
    table.add_column("")
    for heading in ("generated differ", "equal texts", "scored differ", "logprob moved", "max"):
        table.add_column(heading, justify="right")
    for row in result["comparisons"]:
        table.add_row(
            row["against_off"],
            f"{row['generated_differ']:.2%}",
            row["sequences_equal"],
            f"{row['scored_differ']:.2%}",
            f"{row['logprob_moved_mean']:.5f}",
            f"{row['logprob_moved_max']:.4f}",
        )
    console.print(table)

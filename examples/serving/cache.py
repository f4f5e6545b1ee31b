"""Starts in one compile cache: no setting may run the other's graph, or compile its own twice.

Where the plugin takes no norm of a model, the graph is the same, and one is enough.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from serving import comparison, kernel_profile, offline, stats
from serving.children import alone, progress_bar
from serving.models import Model

# The first two fill the cache; from the third on, each must find what its setting compiled.
ORDER = (comparison.ON, comparison.OFF, comparison.ON, comparison.OFF, comparison.ON)


def run(model: Model, args: argparse.Namespace) -> dict[str, Any]:
    """Start an engine `args.starts` times in a new cache, and look at each.

    Returns
    -------
    dict
        `starts`: the plugin's setting, the cache directory, how many graphs were compiled and how
        many were loaded, calls of the operator a decode step, and the greedy tokens.

    """
    starts = []
    with tempfile.TemporaryDirectory(prefix="hp_norm_cache_") as root:
        for number, setting in enumerate(ORDER[: args.starts], 1):
            plugin = "0" if setting == comparison.OFF else args.plugin
            variables = {"HP_NORM_PLUGIN": plugin, "VLLM_CACHE_ROOT": root}
            with contextlib.ExitStack() as stack:
                progress = stack.enter_context(progress_bar())
                name = f"start{number}_{setting}"
                engine = offline.start(stack, model, args, progress, {name: variables})[name]
                with alone(engine, args):
                    starts.append(_look(engine, setting, args))
    return {"starts": starts}


def _look(engine: Any, setting: str, args: argparse.Namespace) -> dict[str, Any]:
    work = {"batch": 1, "input_len": args.input_len, "seed": args.seed}
    length = kernel_profile.output_len(args.output_len)
    state = engine.ask("state")
    tokens = engine.ask("measure", output_len=length, **work)["tokens"]
    profile = engine.ask("profile", output_len=length, **work)
    return {
        "plugin": setting,
        # The key is a folder on the way; on a GPU the last is `backbone`, whatever the key.
        "cache_dir": state["cache_dir"],
        "compiled": state["compile"].get("num_aot_compiles"),
        "loaded": state["compile"].get("num_aot_artifacts_loaded"),
        "saved": state["compile"].get("num_aot_artifacts_saved"),
        "start_seconds": state["start_seconds"],
        "hp_norm_per_step": stats.norm_share(profile)["hp_norm_per_step"],
        "tokens": tokens,
    }


def verdict(result: dict[str, Any], gpu: bool, may_stand_aside: bool = False) -> tuple[bool, str]:
    """Return whether the cache kept the settings apart, and one sentence.

    A model of which the plugin takes no norm has the same graph with it and without: where that is
    allowed, the settings must share it. On a CPU vLLM never loads what it saved, so only the keys
    and the calls are judged there.
    """
    starts = result["starts"]
    aside = may_stand_aside and not any(start["hp_norm_per_step"] for start in starts)
    dirs: dict[str, set[str]] = {comparison.OFF: set(), comparison.ON: set()}
    for start in starts:
        dirs[start["plugin"]].add(start["cache_dir"])
        ran = start["hp_norm_per_step"] > 0
        if ran != (start["plugin"] == comparison.ON) and not aside:
            return False, f"plugin {start['plugin']}: {start['hp_norm_per_step']:g} calls a step"
    if not all(len(found) == 1 for found in dirs.values()):
        return False, "one setting had two keys: it would compile again"
    shared = bool(dirs[comparison.OFF] & dirs[comparison.ON])
    if shared and not aside:
        return False, "both settings have one key: one would run the other's graph"
    if aside and not shared:
        return False, "the settings have two keys for one graph: it would be compiled again"
    later = starts[1 if shared else 2 :]
    again = [start for start in later if start["loaded"] != 1 or start["compiled"]]
    if gpu and again:
        return False, f"{len(again)} later starts did not load their graph"
    keys = "one key for both settings" if shared else "one key for each setting"
    whose = "the first one's" if shared else "its own"
    loaded = f"; each later start loaded {whose} graph" if gpu and later else ""
    return True, f"{len(starts)} starts, {keys}{loaded}"


def show(console: Console, result: dict[str, Any]) -> None:
    """Print one row per start."""
    table = Table(title="starts in one compile cache", title_justify="left")
    for heading in ("plugin", "key", "compiled", "loaded", "start s", "operator a step"):
        table.add_column(heading, justify="right")
    for start in result["starts"]:
        table.add_row(
            start["plugin"],
            _key(start["cache_dir"]),
            str(start["compiled"]),
            str(start["loaded"]),
            f"{start['start_seconds']:.1f}",
            f"{start['hp_norm_per_step']:g}",
        )
    console.print(table)


def _key(cache_dir: str) -> str:
    """Return the start of the key in the name of a cache folder, to tell it by eye."""
    parts = Path(cache_dir).parts
    return next((part for part in parts if any(map(str.isdigit, part))), cache_dir)[:12]

"""One engine whose graphs are swapped: compiled without the plugin and with it, in turn.

Two engines of one graph differ by up to 2 %, and more where they wait for the host. Here both
settings have the same weights, KV cache and processes.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving import comparison, offline
from serving.children import alone, progress_bar
from serving.client import EngineClient
from serving.models import Model
from serving.swap_worker import WORKER_EXTENSION

# Turns of each compilation, and replays of a turn.
ROUNDS, REPLAYS = 10, 20


class Compilation:
    """An engine with one of its compilations, asked as an engine is.

    What the graphs of its decode steps took while it was measured is in `watched`, by the batch.
    """

    def __init__(self, engine: EngineClient, name: str) -> None:
        self.name = name
        self.pause, self.resume = engine.pause, engine.resume
        self.watched: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self._engine = engine

    def ask(self, do: str, **arguments: Any) -> Any:
        """Run one command in the engine, with this compilation."""
        self._engine.ask("use", name=self.name)
        # One token is a prefill alone, which has no graph of a decode step.
        if do != "measure" or arguments["output_len"] == 1:
            return self._engine.ask(do, **arguments)
        self._engine.ask("watch", batch=arguments["batch"])
        result = self._engine.ask(do, **arguments)
        self.watched[arguments["batch"]].append(self._engine.ask("watched"))
        return result


def there_and_back(times: int) -> list[str]:
    """Return the compilations of each setting in the order in which they are made.

    On, off, off-2, on-2: of one graph the second that was made took 0.5 % longer than the fourth at
    batch 1, on three cards (H200, 2026-12-01, docs/served.md), which in the order on, off, on-2,
    off-2 was all on one side. The engine starts with the plugin, so the first is on.
    """
    there, back = (comparison.ON, comparison.OFF), (comparison.OFF, comparison.ON)
    return [
        comparison.named(setting, number)
        for number in range(1, times + 1)
        for setting in (there if number % 2 else back)
    ]


def run(
    model: Model, args: argparse.Namespace, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Start one engine with the plugin, compile its model in each setting, measure, compare.

    `args.engines` compilations of each setting, each in a compile cache of its own unless
    `args.one_cache`. Returns and raises what `offline.run` does, with `replayed` and `watched`: the
    CUDA graphs of decode steps back to back, and in the engine, a row a batch each.
    """
    names = there_and_back(args.engines)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(progress_bar())
        # The folders go when the engine, which writes to them, is gone.
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hp_norm_cache_")))
        caches = {name: str(root / ("one" if args.one_cache else name)) for name in names}
        variables = {"HP_NORM_PLUGIN": args.plugin, "VLLM_CACHE_ROOT": caches[comparison.ON]}
        plans = {comparison.ON: variables}
        engine = offline.start(stack, model, args, progress, plans, WORKER_EXTENSION)[comparison.ON]
        task = progress.add_task("compiling", total=len(names))
        with alone(engine, args):
            engine.ask("keep", name=comparison.ON)
            for place, name in enumerate(names[1:], start=1):
                progress.update(task, advance=1, description=f"compiling, plugin {name}")
                with_plugin = bool(comparison.more_of(comparison.ON, [name]))
                # A pair, off and on, lies in one place, the next pair in another: of one graph,
                # compilations in places of their own differed by 0.5 %, always in the same
                # direction (H200, 2026-12-01, docs/served.md).
                engine.ask(
                    "compile", name=name, with_plugin=with_plugin, cache_root=caches[name],
                    new_pool=place % 2 == 0,
                )  # fmt: skip
        progress.update(task, visible=False)
        # Measured in turn without the plugin and with it.
        offs, ons = (comparison.more_of(one, names) for one in (comparison.OFF, comparison.ON))
        order = [name for pair in zip(offs, ons, strict=True) for name in pair]
        compilations = {name: Compilation(engine, name) for name in order}
        batches = args.batch_sizes if args.gpu else []
        replayed = [row for batch in batches if (row := _replay(compilations, batch, args))]

        def with_graphs(so_far: dict[str, Any]) -> dict[str, Any]:
            watched = [row for batch in batches if (row := _watched(compilations, batch, args))]
            return {**so_far, "replayed": replayed, "watched": watched}

        keep({"replayed": replayed})
        measured = offline.look(
            compilations, args, progress, lambda so_far: keep(with_graphs(so_far))
        )
    return with_graphs(measured)


def _watched(
    compilations: dict[str, Compilation], batch: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Compare decode steps as the engine ran them: the CUDA graph, and the rest of a step.

    Empty where a step of that size has no graph, or was not measured yet.
    """
    turns = {name: c.watched[batch][args.warmup :] for name, c in compilations.items()}
    if not all(each and all("graph_s" in turn for turn in each) for each in turns.values()):
        return {}
    row: dict[str, Any] = {"batch": batch, "raw": turns}
    for what in ("graph", "rest", "step"):
        row |= comparison.compare(
            what, {name: [turn[f"{what}_s"] for turn in each] for name, each in turns.items()}
        )
    return row


def _replay(
    compilations: dict[str, Compilation], batch: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Compare decode steps: the CUDA graphs of each compilation, back to back.

    Empty where a step of that size has none.
    """
    first = next(iter(compilations.values()))
    seconds = first.ask(
        "replay", names=list(compilations), batch=batch, input_len=args.input_len,
        output_len=args.output_len, seed=args.seed, rounds=ROUNDS, replays=REPLAYS,
    )  # fmt: skip
    if not all(seconds.values()):
        return {}
    return {"batch": batch, **comparison.compare("step", seconds), "raw": seconds}

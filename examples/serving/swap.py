"""One engine whose graphs are swapped: compiled without the plugin and with it, in turn.

Two engines of one graph differ by up to 1 % by where their weights lie in memory, and more where
they wait for the host. Here both settings have the same weights, KV cache and processes.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable
from typing import Any

from serving import offline
from serving.children import alone, progress_bar
from serving.client import EngineClient
from serving.models import Model
from serving.swap_worker import WORKER_EXTENSION

# Turns of each compilation, and replays of a turn.
ROUNDS, REPLAYS = 10, 20


class Compilation:
    """An engine with one of its compilations, asked as an engine is."""

    def __init__(self, engine: EngineClient, name: str) -> None:
        self.name = name
        self.pause, self.resume = engine.pause, engine.resume
        self._engine = engine

    def ask(self, do: str, **arguments: Any) -> Any:
        """Run one command in the engine, with this compilation."""
        self._engine.ask("use", name=self.name)
        return self._engine.ask(do, **arguments)


def run(
    model: Model, args: argparse.Namespace, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Start one engine with the plugin, compile its model in each setting, measure, compare.

    `args.engines` compilations of each setting, each in a compile cache of its own unless
    `args.one_cache`. Returns and raises what `offline.run` does.
    """
    args.worker_extension = WORKER_EXTENSION
    pair = (offline.ON, offline.OFF)
    names = [*pair, *(f"{name}-{n}" for n in range(2, args.engines + 1) for name in pair)]
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(progress_bar())

        def new_cache() -> str:
            return stack.enter_context(tempfile.TemporaryDirectory(prefix="hp_norm_cache_"))

        root = new_cache()
        variables = {"HP_NORM_PLUGIN": args.plugin, "VLLM_CACHE_ROOT": root}
        plans = {offline.ON: variables}
        engine = offline.start(stack, model, args, progress, plans)[offline.ON]
        task = progress.add_task("compiling", total=len(names))
        with alone(engine, args):
            engine.ask("keep", name=offline.ON)
            for name in names[1:]:
                progress.update(task, advance=1, description=f"compiling, plugin {name}")
                with_plugin = bool(offline.more_of(offline.ON, [name]))
                cache = root if args.one_cache else new_cache()
                engine.ask("compile", name=name, with_plugin=with_plugin, cache_root=cache)
        progress.update(task, visible=False)
        # Measured in turn without the plugin and with it.
        order = [name for pair in zip(names[1::2], names[::2], strict=True) for name in pair]
        compilations = {name: Compilation(engine, name) for name in order}
        batches = args.batch_sizes if args.gpu else []
        replayed = [_replay(compilations, batch, args) for batch in batches]
        keep({"replayed": replayed})
        measured = offline.look(
            compilations, args, progress, lambda so_far: keep({**so_far, "replayed": replayed})
        )
    return {**measured, "replayed": replayed}


def _replay(
    compilations: dict[str, Compilation], batch: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Compare decode steps on the GPU alone: the CUDA graphs of each compilation, replayed."""
    first = next(iter(compilations.values()))
    first.ask("measure", batch=batch, input_len=args.input_len, seed=args.seed, output_len=17)
    names = list(compilations)
    seconds = first.ask("replay", names=names, num_tokens=batch, rounds=ROUNDS, replays=REPLAYS)
    return {"batch": batch, **offline.compare("step", seconds), "raw": seconds}

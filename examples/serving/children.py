"""The processes that load a model, engines and servers: started, and let run, alike."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from serving.client import EngineClient
from serving.server_process import Server

START_TIMEOUT = 900.0

Child = TypeVar("Child", EngineClient, Server)


def progress_bar() -> Progress:
    """Return the progress display that every mode uses."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, transient=True)


def start_all(
    stack: contextlib.ExitStack,
    children: Iterable[Child],
    args: argparse.Namespace,
    progress: Progress,
) -> dict[str, Child]:
    """Start each child by drawing it from `children`, and return them by name, ready.

    On a GPU machine all load at once, with `--one-cache` all but the first, which compiles. On a
    CPU one after the other, each paused once it is ready: an idle engine still polls there, and
    takes from the others what they need.
    """
    task = progress.add_task("starting", total=None)
    started: dict[str, Child] = {}
    waited: set[str] = set()
    for child in children:
        started[child.name] = stack.enter_context(child)
        if not args.gpu or (args.one_cache and not waited):
            _wait(child, progress, task)
            waited.add(child.name)
        if not args.gpu:
            child.pause()
    for child in started.values():
        if child.name not in waited:
            _wait(child, progress, task)
    progress.update(task, visible=False)
    return started


def _wait(child: EngineClient | Server, progress: Progress, task: Any) -> None:
    started = time.monotonic()

    def tick() -> None:
        seconds = time.monotonic() - started
        progress.update(task, description=f"loading {child.kind} {child.name} ({seconds:.0f} s)")

    child.wait_until_ready(START_TIMEOUT, tick)


@contextlib.contextmanager
def alone(child: Child, args: argparse.Namespace) -> Iterator[Child]:
    """Let one child run; on a CPU the others stay paused meanwhile."""
    if args.gpu:
        yield child
        return
    child.resume()
    try:
        yield child
    finally:
        child.pause()

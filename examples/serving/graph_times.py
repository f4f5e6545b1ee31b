"""What the CUDA graph of a decode step takes: alone, and while its engine runs, with the rest."""

from __future__ import annotations

import itertools
import statistics
from typing import Any, Self

import torch


def back_to_back(graph: torch.cuda.CUDAGraph, replays: int) -> float:
    """Replay a graph again and again; returns the seconds of one replay."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()  # the next is queued while it runs
    start.record()
    for _ in range(replays):
        graph.replay()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / replays / 1e3


class GraphTimes:
    """CUDA events before and behind every replay of one CUDA graph.

    What a graph takes back to back is not what it takes in the engine: it was up to 3 % more, or
    the same (H200, 2026-11-28, docs/notes/2026-11-28-steps-taken-apart.md).
    """

    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        self._graph = graph
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._replay = torch.cuda.CUDAGraph.replay

    def start(self) -> Self:
        """Time every replay from here on."""

        def timed(graph: torch.cuda.CUDAGraph) -> None:
            if graph is not self._graph:
                return self._replay(graph)
            before, behind = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            self._replay(graph)
            behind.record()
            self._events.append((before, behind))

        torch.cuda.CUDAGraph.replay = timed
        return self

    def stop(self) -> dict[str, Any]:
        """Time no more.

        Returns
        -------
        dict
            `steps` that were timed; where there are two at least, the median seconds of the graph
            (`graph_s`), from its end to the beginning of the next one (`rest_s`), and of both
            (`step_s`).

        """
        torch.cuda.CUDAGraph.replay = self._replay
        torch.cuda.synchronize()
        steps = len(self._events)
        if steps < 2:
            return {"steps": steps}
        pairs = list(itertools.pairwise(self._events))
        seconds = {
            "graph_s": [before.elapsed_time(behind) for before, behind in self._events],
            "rest_s": [behind.elapsed_time(after) for (_, behind), (after, _) in pairs],
            "step_s": [before.elapsed_time(after) for (before, _), (after, _) in pairs],
        }
        return {
            "steps": steps,
            **{what: statistics.median(each) / 1e3 for what, each in seconds.items()},
        }

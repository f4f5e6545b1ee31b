"""At which GPC of the GPU the product behind a norm begins: set it, and find a good one.

A GPU deals a grid's clusters out to its GPCs in turn, beginning where the grid before ended, and a
matrix product with more tiles than SMs takes up to 12 % longer from some beginnings than from
others. Which ones is a matter of the single card. A norm whose rule has `fill_gpu` decides the
beginning: it is GPC 0 or 7 unless this module sets another
(docs/notes/2026-11-27-a-gpc-for-each-card.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hp_norm_plugin import library, ops, rules

GPCS = 8
MAX_DEVICES = 64  # that the CUDA library knows
# GPC 0 is not among them: the launch that leads there leads to GPC 7 where the grid before began at
# GPC 7, the others lead where they should (four H200s, 2026-11-27).
CANDIDATES = range(1, GPCS)
ROUNDS = 12  # 4 ms each: with 5, an engine that started beside another saw 182 us in one GPC


def set_first_gpc(gpc: int, device: torch.device | int) -> None:
    """Have the grid behind this process's filled norms begin at a GPC.

    What a CUDA graph has captured stays as it is. No result changes by it.

    Parameters
    ----------
    gpc
        0 to 7, in the order in which the GPU deals clusters out; 0, the default, is 0 or 7.
    device
        A CUDA device with an index below `MAX_DEVICES`, or the index.

    Raises
    ------
    ValueError
        For another GPC or device.
    RuntimeError
        Where the CUDA library is not loaded, with the reason.

    """
    if not 0 <= gpc < GPCS:
        raise ValueError(f"set_first_gpc: gpc: must be 0 to {GPCS - 1}, got {gpc}")
    index = device.index if isinstance(device, torch.device) else device
    on_cuda = isinstance(device, int) or device.type == "cuda"
    if not on_cuda or index is None or not 0 <= index < MAX_DEVICES:
        rule = f"must be a CUDA device with an index below {MAX_DEVICES}"
        raise ValueError(f"set_first_gpc: device: {rule}, got {device}")
    status = library.library_status()
    if not status.cuda_loaded:
        raise RuntimeError(f"set_first_gpc: {status.cuda_error}")
    library.native_library(library.CUDA_LIBRARY).hp_norm_set_first_gpc(index, gpc)


def is_set_by(
    num_tokens: int, hidden_size: int, dtype: torch.dtype, device: torch.device | str
) -> bool:
    """Return whether such a norm decides where the grid behind it begins; see `rules.explain`."""
    return "fill_gpu" in rules.explain(num_tokens, hidden_size, dtype, device).config.option_names()


@dataclass(frozen=True)
class Step:
    """What gives a norm of a model its x, and what takes its output."""

    before: Callable[[], Tensor]
    behind: Callable[[Tensor], object]


def times(steps: Sequence[Step], residual: Tensor) -> dict[int, float]:
    """Microseconds of a step, its norm included, by the GPC that `set_first_gpc` names.

    Leaves the device as `set_first_gpc(0, ...)` does.

    Parameters
    ----------
    steps
        They run in turn and are to have matrices of their own, more than L2 holds.
    residual : Tensor [num_tokens, hidden_size]
        On a CUDA device; not mutated. Rows for which `is_set_by` is true.

    Returns
    -------
    dict
        One for each of `CANDIDATES`.

    """
    weight = torch.ones_like(residual[0])

    def run(gpc: int) -> None:
        set_first_gpc(gpc, residual.device)
        for step in steps:
            out, _ = ops.fused_add_rms_norm(step.before(), residual, weight, 1e-6)
            step.behind(out)

    try:
        measured = graph_times(run, CANDIDATES)
        return {gpc: us / len(steps) for gpc, us in zip(CANDIDATES, measured, strict=True)}
    finally:
        set_first_gpc(0, residual.device)


@functools.cache
def _stream(device_index: int) -> torch.cuda.Stream:
    """Return the stream to time on: one, since cuBLAS keeps a workspace for each (32 MiB).

    It is not freed, which could only be done together with those that other graphs point to.
    """
    return torch.cuda.Stream(device_index)


def graph_times(run: Callable[[int], None], numbers: Iterable[int]) -> list[float]:
    """Microseconds of `run(n)` for each n, the least of `ROUNDS`.

    In CUDA graphs: where a model is loaded the host is busy, and its launches come with gaps. The
    least, since what other processes do on the GPU only adds.
    """
    stream = _stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    graphs = []
    with torch.cuda.stream(stream):
        for number in numbers:
            run(number)  # what is compiled, loaded or tuned on a first call
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                run(number)
            graphs.append(graph)
        least = [math.inf] * len(graphs)
        for _ in range(ROUNDS):
            events = [torch.cuda.Event(enable_timing=True) for _ in range(len(graphs) + 1)]
            events[0].record()
            for graph, event in zip(graphs, events[1:], strict=True):
                graph.replay()
                event.record()
            stream.synchronize()
            spans = zip(least, events[:-1], events[1:], strict=True)
            least = [min(us, 1e3 * start.elapsed_time(end)) for us, start, end in spans]
    return least

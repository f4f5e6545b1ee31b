"""Has the graph for few tokens run first with many, so that Inductor times its kernels there.

Inductor times the launches of a graph's own kernels (gate of the MLP, rotary embedding, norms of
the heads) when the graph first runs, and keeps the fastest. The graph of the range that
`token_ranges` adds would first run when vLLM captures its largest CUDA graph, of 32 tokens: there a
kernel takes 2 us and the choice is chance, another one in each engine
(docs/notes/2026-11-27-a-graph-that-runs-first-with-many.md). So when vLLM measures its memory, with
the largest batch, the graph for few tokens runs once, too, and chooses as the only graph of an
engine without the plugin does. A graph of Inductor's takes any number of tokens: its range only
says when vLLM calls it.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Sequence
from typing import Any

from hp_norm_plugin.vllm import token_ranges

logger = logging.getLogger("vllm.hp_norm")

BACKEND = "vllm.compilation.piecewise_backend"
# What remains of it where anything fails.
TIMED_WITH_FEW = "the kernels of a graph for few tokens are timed when it is captured"
_RAN = "_hp_norm_graph_for_few_tokens_ran"


def with_many_tokens(vllm_config: Any) -> None:
    """Have a model's graphs for few tokens run first with its first batch of many; again a no-op.

    Parameters
    ----------
    vllm_config
        vLLM's `VllmConfig`; nothing happens where `token_ranges` does not split its graphs.

    """
    if token_ranges.applies(vllm_config):
        _wrap(importlib.import_module(BACKEND).PiecewiseBackend)


def _wrap(backend: type) -> None:
    """Wrap the class whose instances, one for each piece of a model, pick a range's graph."""
    original = backend.__call__
    if getattr(original, "runs_few_first", False):
        return

    @functools.wraps(original)
    def call(self: Any, *args: Any) -> Any:
        if not getattr(self, _RAN, False):
            setattr(self, _RAN, True)
            try:
                _run_few(self, args)
            except Exception:
                logger.exception("hp_norm: %s", TIMED_WITH_FEW)
        return original(self, *args)

    call.runs_few_first = True  # type: ignore[attr-defined]
    backend.__call__ = call  # type: ignore[method-assign]


def _run_few(backend: Any, args: Sequence[Any]) -> None:
    """Run a piece's graphs for few tokens on what a call with many takes, and drop the outputs.

    Only where vLLM runs the model on nothing, to measure its memory: a piece may write over its
    inputs. They are run one after the other, so that the most memory in use is no more than that
    of one of them.
    """
    from vllm.forward_context import get_forward_context, is_forward_context_available

    on_nothing = is_forward_context_available() and get_forward_context().attn_metadata is None
    if not on_nothing or not backend.sym_shape_indices:
        return
    if args[backend.sym_shape_indices[0]] <= token_ranges.LAST:
        return
    for span, entry in backend.range_entries.items():
        if span.start < span.end <= token_ranges.LAST and entry.compiled:
            entry.runnable(*args)

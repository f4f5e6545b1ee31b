"""The numbers of tokens for which a compiled graph keeps Inductor's norm.

vLLM compiles ranges of token numbers apart, so a graph for some of them can keep what another
replaces. Only vLLM's IR is lowered once for each range; the layer adapter is traced once for all.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

from hp_norm_plugin import settings
from hp_norm_plugin.vllm import policy

# Decode steps of so many tokens in models narrower than WIDE take up to 1 % longer with the
# operator: the product behind a norm that is a kernel of its own loses more than the norm gains.
# H200, 2026-11-26, means of 2 to 3 engines, 4096 wide: 1 to 32 tokens 0.1 to 1.1 % shorter, 64 and
# 128 0.6 to 1.1 % longer, 256 and 512 0.6 to 1 % shorter; 8192 wide: 32 to 128 tokens 0.2 to 1.1 %
# shorter, 256 1.0 +- 0.8 % longer (docs/notes/2026-11-26-token-ranges.md).
FIRST, LAST = 33, 256
WIDE = 8192

_PASSES = "vllm.compilation.passes.inductor_pass"


def keeps_inductor(first: int, last: int, hidden_size: int, scope: str) -> bool:
    """Return whether graphs for `first` to `last` tokens keep Inductor's norm.

    Parameters
    ----------
    first, last
        Numbers of tokens, both included.
    hidden_size
        Of the norm's input.
    scope
        The value of `HP_NORM_SCOPE`.

    """
    return scope != "all" and hidden_size < WIDE and FIRST <= first and last <= LAST


def applies(vllm_config: Any) -> bool:
    """Return whether a model's graph is to be split, so that the range keeps Inductor's norm.

    Parameters
    ----------
    vllm_config
        vLLM's `VllmConfig`, on a platform where the operator runs.

    """
    from vllm.platforms import current_platform

    model = vllm_config.model_config
    scope = settings.read_flag(settings.SCOPE).value
    return (
        current_platform.is_cuda()
        and model is not None
        and keeps_inductor(FIRST, LAST, model.get_hidden_size(), scope)
        and policy.uses_inductor(vllm_config)
        and policy.stand_aside(vllm_config) is None
        and not policy.converts_weights(model)
        and hasattr(vllm_config.compilation_config, "compile_ranges_endpoints")
        and importlib.util.find_spec(_PASSES) is not None
    )


def split(vllm_config: Any) -> None:
    """Have vLLM compile the range apart, beside what the user or vLLM splits; again is a no-op.

    Called before vLLM completes the ranges: it adds its own ends to these and drops those past
    the largest batch. Does nothing where `applies` says no.
    """
    if not applies(vllm_config):
        return
    compilation = vllm_config.compilation_config
    ends = {*(compilation.compile_ranges_endpoints or ()), FIRST - 1, LAST}
    compilation.compile_ranges_endpoints = sorted(ends)


def why_left(num_tokens: int, hidden_size: int, scope: str) -> str | None:
    """Return why a call of this size keeps Inductor's norm in a compiled graph, or None."""
    if keeps_inductor(num_tokens, num_tokens, hidden_size, scope):
        return f"Inductor's norm ({FIRST} to {LAST} tokens, narrower than {WIDE})"
    return None


def describe(vllm_config: Any, adapter: str | None) -> list[str]:
    """Return the words on the range for a log line: none where nothing is left to Inductor."""
    if adapter != "ir" or not applies(vllm_config):
        return []
    return [f"calls of {FIRST} to {LAST} tokens left to Inductor"]


def left_to_inductor(hidden_size: int, scope: str) -> bool:
    """Return whether the graph being lowered is for numbers of tokens that keep Inductor's norm.

    `hidden_size` and `scope` as for `keeps_inductor`.
    """
    # Dynamo traces a graph for every number of tokens, and must not see the rest.
    if torch.compiler.is_dynamo_compiling():
        return False
    try:
        compiled = importlib.import_module(_PASSES).get_pass_context().compile_range
    except (ImportError, AttributeError, AssertionError):  # nothing is being lowered
        return False
    return keeps_inductor(compiled.start, compiled.end, hidden_size, scope)

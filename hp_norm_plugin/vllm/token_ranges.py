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

# Steps of more tokens than LAST in models narrower than WIDE take as long with the operator, or up
# to 1 % longer: the product behind a norm that is a kernel of its own loses what the norm gains.
# One range for all of them, since Inductor times a graph's launches when it first runs: up to the
# largest batch that is where vLLM measures memory, as without the plugin; a range that ended at 256
# tokens was timed where its kernels take 3 us, and lost up to 1.7 % by what it drew. Llama-3.1-8B,
# H200, 2026-11-26, means of 2 engines: 1.009 +- 0.008, 1.000, 1.001 and 0.998 of off at 64, 128 and
# 256 tokens and prefill, with a range of 33 to 256 of its own 1.006, 1.004, 1.008 and 0.997; of 3
# engines 0.996 +- 0.002 at 128 and 1.001 +- 0.002 at prefill
# (docs/notes/2026-11-26-token-ranges.md).
LAST = 32
WIDE = 8192

_PASSES = "vllm.compilation.passes.inductor_pass"


def keeps_inductor(first: int, hidden_size: int, scope: str) -> bool:
    """Return whether graphs for `first` and more tokens keep Inductor's norm.

    Parameters
    ----------
    first
        The smallest number of tokens.
    hidden_size
        Of the norm's input.
    scope
        The value of `HP_NORM_SCOPE`.

    """
    return scope != "all" and hidden_size < WIDE and first > LAST


def applies(vllm_config: Any) -> bool:
    """Return whether a model's graph is to be split, so that the upper range keeps Inductor's norm.

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
        and keeps_inductor(LAST + 1, model.get_hidden_size(), scope)
        and policy.uses_inductor(vllm_config)
        and policy.stand_aside_as_provider(vllm_config) is None
        and not policy.fuses_all_reduce(vllm_config)
        and hasattr(vllm_config.compilation_config, "compile_ranges_endpoints")
        and importlib.util.find_spec(_PASSES) is not None
    )


def split(vllm_config: Any) -> None:
    """Have vLLM compile the ranges apart, beside what the user or vLLM splits; again is a no-op.

    Called before vLLM completes the ranges: it adds its own ends to these and drops those past
    the largest batch. Does nothing where `applies` says no.
    """
    if not applies(vllm_config):
        return
    compilation = vllm_config.compilation_config
    ends = {*(compilation.compile_ranges_endpoints or ()), LAST}
    compilation.compile_ranges_endpoints = sorted(ends)


def why_left(num_tokens: int, hidden_size: int, scope: str) -> str | None:
    """Return why a call of this size keeps Inductor's norm in a compiled graph, or None."""
    if keeps_inductor(num_tokens, hidden_size, scope):
        return f"Inductor's norm (more than {LAST} tokens, narrower than {WIDE})"
    return None


def describe(vllm_config: Any, adapter: str | None) -> list[str]:
    """Return the words on the ranges for a log line: none where nothing is left to Inductor."""
    if adapter != "ir" or not applies(vllm_config):
        return []
    return [f"calls of more than {LAST} tokens left to Inductor"]


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
    return keeps_inductor(compiled.start, hidden_size, scope)

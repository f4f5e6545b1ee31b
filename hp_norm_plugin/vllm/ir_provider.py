"""The operator as a provider of vLLM's IR ops (vLLM 0.21 to 0.33).

vLLM lowers its IR nodes after its fusion passes, so whatever those fuse (all-reduce + norm,
norm + quantisation, q/k norm + rope) never comes here; what is left does. A provider is chosen by
priority: ours is put first by wrapping the platform's default, and steps back call by call
through `supports_args`.

The plugin imports this module only where vLLM has its IR. It has no `from __future__ import
annotations`: vLLM infers the op schema from the annotations.
"""

import functools
import logging
from typing import Any

import torch
from torch import Tensor

from hp_norm_plugin import settings
from hp_norm_plugin.vllm import announce, policy, token_ranges
from hp_norm_plugin.vllm.host import IR_OPS

logger = logging.getLogger("vllm.hp_norm")

# Two names for two situations, because a provider may not look at global state and vLLM passes
# only the priority list on to its workers: the first steps back where Inductor does better by
# fusing, the second is for graphs that nothing else would fuse.
COMPILED = "hp_norm"
EAGER = "hp_norm_eager"

_round_before_weight = policy.round_before_weight()
_scope = settings.read_flag(settings.SCOPE).value


def rms_norm(
    x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> Tensor:
    """Provider of `vllm.ir.ops.rms_norm`: a new tensor of x's shape [..., hidden_size].

    `supports_args` has excluded a variance_size, and what else `policy` declines.
    """
    return torch.ops.hp_norm.rms_norm.default(
        x, weight, epsilon, round_before_weight=_round_before_weight
    )


def fused_add_rms_norm(
    x: Tensor,
    x_residual: Tensor,
    weight: Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Provider of `vllm.ir.ops.fused_add_rms_norm`: x becomes the output, x_residual the new one.

    Both are [..., hidden_size], the weight is [hidden_size] or None.

    vLLM lowers it with a clone of both inputs and then removes the clones of what is not used
    again, inputs of a piece of the graph included, so that a layer's norms work on two buffers. A
    functional operator would write to new memory in every call and leave the old as dirty lines
    in L2, which the next product pays to write back: docs/notes/2026-11-24-cold-code.md.
    """
    torch.ops.hp_norm.fused_add_rms_norm_.default(
        x, x_residual, weight, epsilon, round_before_weight=_round_before_weight
    )
    return x, x_residual


def _in_graph(x, residual, weight, variance_size):
    if token_ranges.left_to_inductor(x.shape[-1], _scope):
        return False
    return policy.decline_compiled(x, residual, weight, variance_size, _scope) is None


def _takes_compiled(x, weight, epsilon, variance_size=None):
    return _in_graph(x, None, weight, variance_size)


def _takes_eager(x, weight, epsilon, variance_size=None):
    return policy.decline(x, None, weight, variance_size) is None


def _takes_fused_compiled(x, x_residual, weight, epsilon, variance_size=None):
    return _in_graph(x, x_residual, weight, variance_size)


def _takes_fused_eager(x, x_residual, weight, epsilon, variance_size=None):
    return policy.decline(x, x_residual, weight, variance_size) is None


def register_providers(*, supported: bool, state: str | None = None) -> None:
    """Register both providers of both ops; again is a no-op.

    Parameters
    ----------
    supported
        Whether the operator can run in this process. With False the providers exist all the
        same: another process may have put them in the priority list that reaches this one, where
        vLLM skips an unsupported provider but asserts on an unknown one.
    state
        `compile_cache.graph_state`: what a graph with the operator depends on.

    """
    from vllm import ir

    plain, fused = ir.ops.rms_norm, ir.ops.fused_add_rms_norm
    plans = (
        (plain, COMPILED, rms_norm, _takes_compiled),
        (plain, EAGER, rms_norm, _takes_eager),
        (fused, COMPILED, fused_add_rms_norm, _takes_fused_compiled),
        (fused, EAGER, fused_add_rms_norm, _takes_fused_eager),
    )
    for op, provider, function, supports_args in plans:
        if provider in op.impls:
            continue
        kwargs = {"inplace": True} if op is fused else {}
        register = op.register_impl(
            provider, supported=supported, supports_args=supports_args, **kwargs
        )
        impl = register(function)
        if state is not None and hasattr(impl, "uuid"):
            # What the keys of vLLM and of torch's own caches have of a provider, which is else this
            # file alone.
            uuid = f"{impl.uuid()}-{state}"
            impl.uuid = lambda uuid=uuid: uuid


def are_in_key() -> bool:
    """Return whether the installed vLLM asks the providers of a model for its compile-cache key."""
    from vllm import ir

    return hasattr(ir.ops.fused_add_rms_norm.impls[COMPILED], "uuid")


def put_first() -> None:
    """Wrap the platform's default priority so that the operator is asked first.

    A user's own `ir_op_priority` still precedes it: vLLM appends the platform's default to it.
    """
    from vllm.platforms import current_platform

    original = current_platform.get_default_ir_op_priority
    if getattr(original, "puts_hp_norm_first", False):
        return

    @functools.wraps(original)
    def with_hp_norm(vllm_config: Any) -> Any:
        priority = original(vllm_config)
        announce()
        try:
            if policy.stand_aside_as_provider(vllm_config) is None:
                provider = COMPILED if policy.uses_inductor(vllm_config) else EAGER
                for name in IR_OPS:
                    setattr(priority, name, [provider, *getattr(priority, name)])
        except Exception:
            logger.exception("hp_norm: a model could not be decided on; vLLM's own norm runs in it")
            return original(vllm_config)
        try:
            token_ranges.split(vllm_config)
        except Exception:
            logger.exception(
                "hp_norm: numbers of tokens could not be split; the operator runs at all of them"
            )
        return priority

    with_hp_norm.puts_hp_norm_first = True  # type: ignore[attr-defined]
    type(current_platform).get_default_ir_op_priority = staticmethod(with_hp_norm)

"""The operator inside vLLM's norm layers, through `CustomOp.register_oot`.

`RMSNormLayer` is the adapter for a vLLM without IR ops. `GemmaRMSNormLayer` serves both adapters:
Gemma converts its weight to float32 and adds one before every call, which the operator does on the
way (`weight_offset`), and only a layer sees the weight as it is stored.

This module is imported only where an adapter needs it: it imports vLLM's layers.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from vllm.config import get_current_vllm_config
from vllm.model_executor import custom_op
from vllm.model_executor.layers import layernorm

from hp_norm_plugin import settings
from hp_norm_plugin.vllm import policy

_round_before_weight = policy.round_before_weight()
_scope = settings.read_flag(settings.SCOPE).value

Output = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class _OnOperator:
    """What the two layers share: when they stand aside, and the call of the operator.

    `__init__` changes between vLLM versions and is not overridden; `dispatch_forward` is what it
    calls once the configuration is known. A layer that stands aside as a whole becomes one of
    vLLM's own class again, so that its graph is the one that vLLM has without the plugin.
    """

    hp_norm_host: type  # vLLM's own class
    # None in a copy of a layer that stood aside: copying looks the class up again, and calls no
    # __init__.
    hp_norm_compiled: bool | None = None

    def dispatch_forward(self, *args: Any, **kwargs: Any) -> Any:
        vllm_config = get_current_vllm_config()
        if self._stands_aside(vllm_config):
            self.__class__ = self.hp_norm_host
            return self.dispatch_forward(*args, **kwargs)
        self.hp_norm_compiled = policy.uses_inductor(vllm_config)
        return super().dispatch_forward(*args, **kwargs)  # type: ignore[misc]

    def _stands_aside(self, vllm_config: Any) -> bool:
        return policy.stand_aside_as_layer(vllm_config) is not None

    def _declines(self, x: torch.Tensor, residual: torch.Tensor | None) -> bool:
        if self.hp_norm_compiled is None:
            return True
        size = getattr(self, "variance_size_override", None)
        weight = self._hp_norm_weight(residual)
        if self.hp_norm_compiled:
            return policy.decline_compiled(x, residual, weight, size, _scope) is not None
        return policy.decline(x, residual, weight, size) is not None

    def forward_cuda(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Output:
        """Run the operator, or vLLM's own code where it is better or must run.

        Parameters
        ----------
        x, residual
            [..., hidden_size] each, of one dtype; both may be overwritten in eager mode.

        Returns
        -------
        Tensor, or a pair of them with a residual
            The output, and the sum of x and the residual, shaped as x.

        """
        if self._declines(x, residual):
            return super().forward_cuda(x, residual)  # type: ignore[misc]
        return self._hp_norm(x, residual)

    def forward_cpu(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Output:
        """As `forward_cuda`, on a CPU."""
        if self._declines(x, residual):
            return super().forward_cpu(x, residual)  # type: ignore[misc]
        return self._hp_norm(x, residual)

    def forward_native(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Output:
        """As `forward_cuda`; this is what runs under Inductor, where custom_ops is "none"."""
        if self._declines(x, residual):
            return super().forward_native(x, residual)  # type: ignore[misc]
        return self._hp_norm(x, residual)


class RMSNormLayer(_OnOperator, layernorm.RMSNorm):
    """vLLM's RMSNorm on the operator."""

    hp_norm_host = layernorm.RMSNorm

    def _hp_norm_weight(self, residual: torch.Tensor | None) -> torch.Tensor | None:
        passed = "pass_weight" if residual is None else "pass_weight_add"
        return self.weight.data if getattr(self, passed, True) else None

    def _hp_norm(self, x: torch.Tensor, residual: torch.Tensor | None) -> Output:
        ops = torch.ops.hp_norm
        weight, eps = self._hp_norm_weight(residual), self.variance_epsilon
        if residual is None:
            return ops.rms_norm.default(x, weight, eps, round_before_weight=_round_before_weight)
        if self.hp_norm_compiled:
            return ops.fused_add_rms_norm.default(
                x, residual, weight, eps, round_before_weight=_round_before_weight
            )
        # vLLM's own kernel overwrites both as well; its callers do not use them again.
        ops.fused_add_rms_norm_.default(
            x, residual, weight, eps, round_before_weight=_round_before_weight
        )
        return x, residual


class GemmaRMSNormLayer(_OnOperator, layernorm.GemmaRMSNorm):
    """vLLM's GemmaRMSNorm on the operator, which adds the one to the weight itself.

    In a graph compiled by Inductor it stays there (`policy.CONVERTED_WEIGHT`).
    """

    hp_norm_host = layernorm.GemmaRMSNorm

    def _hp_norm_weight(self, residual: torch.Tensor | None) -> torch.Tensor | None:
        return self.weight.data

    def _stands_aside(self, vllm_config: Any) -> bool:
        inductors = policy.uses_inductor(vllm_config) and _scope != "all"
        return inductors or super()._stands_aside(vllm_config)

    def _hp_norm(self, x: torch.Tensor, residual: torch.Tensor | None) -> Output:
        ops = torch.ops.hp_norm
        # Gemma rounds once, after the weight.
        if residual is None:
            return ops.rms_norm.default(x, self.weight.data, self.variance_epsilon, weight_offset=1)
        return ops.fused_add_rms_norm.default(
            x, residual, self.weight.data, self.variance_epsilon, weight_offset=1
        )


def replace_layer(name: str, cls: type) -> bool:
    """Register `cls` in place of vLLM's layer class `name`; again is a no-op.

    A plugin that comes later may take the place over.

    Parameters
    ----------
    name
        The class name that vLLM looks up, such as "RMSNorm".
    cls
        A subclass of it.

    Returns
    -------
    bool
        False when another plugin has replaced that layer already.

    """
    owner = custom_op.op_registry_oot.get(name)
    if owner is not None:
        return owner is cls
    # register_oot renames the class to `name`, after which +rms_norm and -rms_norm in custom_ops
    # would no longer match it.
    known_as = cls.name
    custom_op.CustomOp.register_oot(cls, name=name)
    cls.name = known_as
    _yield_to_later()
    return True


def _yield_to_later() -> None:
    """Have a plugin that replaces a layer after us take the place over; again is a no-op.

    vLLM asserts on a second class of one name, within that plugin, and the server would end by it.
    """
    original = custom_op.CustomOp.register_oot.__func__
    if getattr(original, "yields_hp_norm", False):
        return
    signature = inspect.signature(original)

    @functools.wraps(original)
    def register_oot(cls: type, *args: Any, **kwargs: Any) -> Any:
        name = signature.bind(cls, *args, **kwargs).arguments.get("name") or cls.__name__
        if custom_op.op_registry_oot.get(name) in (RMSNormLayer, GemmaRMSNormLayer):
            del custom_op.op_registry_oot[name]
        return original(cls, *args, **kwargs)

    register_oot.yields_hp_norm = True  # type: ignore[attr-defined]
    custom_op.CustomOp.register_oot = classmethod(register_oot)

"""Which norms run on the operator: the rules, each with its reason.

Every function looks at configuration or tensor metadata only: they are called with fake tensors
while a graph is compiled, and Dynamo traces through `decline`.
"""

from __future__ import annotations

from typing import Any

import torch

from hp_norm_plugin import MAX_HIDDEN_SIZE, settings
from hp_norm_plugin.checks import DTYPES, same_shape
from hp_norm_plugin.vllm import quantization

# A norm without a residual below this width is a per-head norm (q_norm and k_norm of Qwen3: 128,
# Gemma 3: 256) or a latent one (kv_a_layernorm of DeepSeek: 512). Inductor fuses those with the
# split before and the rotary embedding after them; as a kernel of their own they would be two
# more launches a layer.
MIN_PLAIN_HIDDEN_SIZE = 1024


def uses_inductor(vllm_config: Any) -> bool:
    """Return whether the model's graph is compiled by Inductor, as vLLM's platforms decide it."""
    compilation = vllm_config.compilation_config
    mode = compilation.mode
    return compilation.backend == "inductor" and mode is not None and int(mode) != 0


def stand_aside_always() -> str | None:
    """Return why every model of this process keeps vLLM's own norm, or None."""
    import vllm.envs as envs

    if getattr(envs, "VLLM_BATCH_INVARIANT", False):
        return "batch-invariant mode (VLLM_BATCH_INVARIANT) runs vLLM's own kernels"
    return None


def stand_aside(vllm_config: Any) -> str | None:
    """Return why a whole model keeps vLLM's own norm, or None when it may run on the operator.

    Parameters
    ----------
    vllm_config
        vLLM's `VllmConfig`, after its defaults were applied.

    """
    for word in ("-rms_norm", "-gemma_rms_norm"):
        if word in vllm_config.compilation_config.custom_ops:
            return f"custom_ops has {word}"
    return stand_aside_always() or quantization.may_fuse(vllm_config)


# Gemma hands in float(weight) + 1: Inductor computes it inside the norm, and fuses the norm after a
# block with the add + norm before the next one.
CONVERTED_WEIGHT = "converted weight (Inductor folds it into the norm)"

# Architectures of vLLM 0.26 to 0.33 whose norms are all GemmaRMSNorm, by the beginnings of their
# names: not Gemma3n and Gemma4, whose weights are as they are stored.
CONVERTING = (
    "GemmaFor",
    "GemmaModel",
    "Gemma2",
    "Gemma3For",
    "Gemma3Model",
    "Gemma3Text",
    "Qwen3Next",
    "Qwen3_5",
    "Rnj1",
    "Step3p5",
    "AliceAI",
)


def converts_weights(model_config: Any) -> bool:
    """Return whether a model hands converted weights to all its norms, which then stay."""
    names = getattr(model_config.hf_config, "architectures", None) or ()
    return any(name.startswith(CONVERTING) for name in names)


def fuses_all_reduce(vllm_config: Any) -> bool:
    """Return whether vLLM is to fuse the norms behind an all-reduce with it.

    Under tensor parallelism those are all but the first of a model, up to a number of tokens that
    is vLLM's business.
    """
    pass_config = vllm_config.compilation_config.pass_config
    return vllm_config.parallel_config.tensor_parallel_size > 1 and bool(
        getattr(pass_config, "fuse_allreduce_rms", False)
    )


def native_is_first(vllm_config: Any) -> bool:
    """Return whether vLLM's native norm, which takes every call, comes before the operator.

    The user may say so, and the configuration of a draft model has the list of its target's.
    """
    priority = getattr(getattr(vllm_config, "kernel_config", None), "ir_op_priority", None)
    for name in getattr(priority, "fused_add_rms_norm", ()):
        if name == "native" or name.startswith("hp_norm"):
            return name == "native"
    return False


def stand_aside_as_provider(vllm_config: Any) -> str | None:
    """Return `stand_aside`'s reason, or why no norm would come to the operator.

    A model that nothing was put first for has the graph, and the key of it, that it would have
    without the plugin. So has its draft model.
    """
    if native_is_first(vllm_config):
        return "ir_op_priority has native first"
    reason = stand_aside(vllm_config)
    scope = settings.read_flag(settings.SCOPE).value
    if reason is None and scope != "all" and uses_inductor(vllm_config):
        model = vllm_config.model_config
        if model is not None and converts_weights(model):
            return CONVERTED_WEIGHT
    return reason


def stand_aside_as_layer(vllm_config: Any) -> str | None:
    """Return `stand_aside`'s reason, or the fusion that an opaque node in the graph would block.

    The nodes of the IR adapter appear after vLLM's fusion passes ran.
    """
    reason = stand_aside(vllm_config)
    if reason is None and fuses_all_reduce(vllm_config):
        return "all-reduce + norm fusion under tensor parallelism"
    return reason


def round_before_weight() -> bool:
    """Return the rounding order: the user's, or that of what a user has without us.

    vLLM's native code writes "round, then times weight", but Inductor, which compiles it by
    default, keeps float32 between the two, so one rounding is the nearest; so is vLLM's C kernel in
    eager mode (tests/vllm/test_vllm_rounding.py measures it).
    """
    return settings.read_flag(settings.ROUNDING).value == "before_weight"


def decline(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    variance_size: int | None,
) -> str | None:
    """Return why the kernel cannot take this call, or None.

    Parameters
    ----------
    x, residual
        The inputs, shape [..., hidden_size]; residual is None for the plain norm.
    weight
        Shape [hidden_size], x's dtype or float32, or None.
    variance_size
        vLLM's `variance_size_override`: the mean is taken over that many elements only.

    """
    if variance_size is not None:
        return "variance_size_override"
    if x.dtype not in DTYPES:
        return "dtype"
    if weight is not None and (
        (weight.dtype != x.dtype and weight.dtype != torch.float32)
        or weight.shape != x.shape[-1:]
        or weight.stride(-1) != 1
    ):
        return "weight"
    if x.dim() < 2 or x.shape[-1] > MAX_HIDDEN_SIZE:
        return "shape"
    if not _rows_flatten(x):
        return "strides"
    if residual is not None and (
        residual.dtype != x.dtype or not same_shape(residual, x) or not _rows_flatten(residual)
    ):
        return "residual"
    return None


def decline_compiled(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    variance_size: int | None,
    scope: str,
) -> str | None:
    """Return why a norm in a graph compiled by Inductor stays there, or None.

    Parameters
    ----------
    x, residual, weight, variance_size
        As for `decline`.
    scope
        The value of `HP_NORM_SCOPE`.

    """
    weight_dtype = None if weight is None else weight.dtype
    return decline(x, residual, weight, variance_size) or better_in_inductor(
        x.shape[-1], x.dtype, weight_dtype, residual is not None, scope
    )


def better_in_inductor(
    hidden_size: int,
    dtype: torch.dtype,
    weight_dtype: torch.dtype | None,
    has_residual: bool,
    scope: str,
) -> str | None:
    """Return why a norm that the kernel could take is faster where Inductor fuses it, or None.

    Parameters
    ----------
    hidden_size, dtype
        Of the norm's input.
    weight_dtype
        Of the weight as it is handed in; None without one.
    has_residual
        Whether the norm adds a residual.
    scope
        The value of `HP_NORM_SCOPE`.

    """
    if scope == "all":
        return None
    if not has_residual:
        if scope == "fused":
            return f"no residual ({settings.SCOPE.name}=fused)"
        if hidden_size < MIN_PLAIN_HIDDEN_SIZE:
            return f"{hidden_size} wide (Inductor fuses it with its neighbours)"
    if weight_dtype is not None and weight_dtype != dtype:
        return CONVERTED_WEIGHT
    return None


def _rows_flatten(x: torch.Tensor) -> bool:
    """Whether x is rows of unit stride, beside each other, that flatten without a copy."""
    if x.stride(-1) != 1:
        return False
    return (x.dim() == 2 and x.stride(0) >= x.shape[-1]) or x.is_contiguous()

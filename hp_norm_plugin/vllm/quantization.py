"""What vLLM's quantisation configurations say of the inputs of a model's products.

A model is decided on before it is built, so the configuration alone can tell. What it does not tell
counts as quantised inputs: there vLLM may fuse the norm with the quantisation, and the operator
would make the model slower.
"""

from __future__ import annotations

from typing import Any

# Quantisation of weights alone leaves the norm's output in bf16 or fp16, so there is no
# norm + quantisation to fuse. For other methods there may be, and it is worth more: of a decode
# step of Llama-3.1-8B in online FP8 at batch 1, two kernels a norm would by an estimate take 0.5 %
# longer (H200, 2026-12-01, docs/notes/2026-12-01-norms-that-do-more.md).
WEIGHTS_ALONE = frozenset(
    {
        "awq",
        "auto_awq",
        "awq_marlin",
        "auto_gptq",
        "gptq",
        "gptq_marlin",
        "bitsandbytes",
        "gguf",
        "moe_wna16",
        "int8_per_channel_weight_only",
    }
)

# vLLM's variables that have the kernels of weight-only methods quantise their inputs after all.
INPUT_VARIABLES = ("VLLM_MARLIN_INPUT_DTYPE", "VLLM_HUMMING_INPUT_QUANT_CONFIG")


def may_fuse(vllm_config: Any) -> str | None:
    """Return that vLLM may fuse a model's norms with a quantisation behind them, or None.

    Parameters
    ----------
    vllm_config
        vLLM's `VllmConfig`, its `quant_config` filled in.

    """
    model = vllm_config.model_config
    method = None if model is None else model.quantization
    if method is None:
        return None
    config = getattr(vllm_config, "quant_config", None)
    weights_alone = str(method) in WEIGHTS_ALONE or (
        str(method) == "compressed-tensors" and _packs_weights_alone(config)
    )
    if weights_alone and not _inputs_are_asked_for(config):
        return None
    return f"{method} quantisation may fuse with the norm"


def _inputs_are_asked_for(config: Any) -> bool:
    """Return whether the user has inputs quantised beside what the checkpoint says.

    Parameters
    ----------
    config
        vLLM's `QuantizationConfig`, or None.

    """
    import vllm.envs as envs

    # vLLM 0.32 quantises layers while it loads them, where a checkpoint has left them as they are.
    online = getattr(config, "online_quantization_config", None)
    return online is not None or any(getattr(envs, name, None) for name in INPUT_VARIABLES)


def _packs_weights_alone(config: Any) -> bool:
    """Return whether compressed-tensors has nothing but packed integer weights (W4A16, W8A16).

    They run on the kernels of AWQ and GPTQ. Its other formats without input activations (FP8, NVFP4
    and MXFP4 weights) were not measured, and its transforms put kernels behind the norm.

    Parameters
    ----------
    config
        vLLM's `CompressedTensorsConfig`, or None where there is none to look at.

    """
    schemes = getattr(config, "target_scheme_map", None)
    if not schemes or getattr(config, "transform_config", None) is not None:
        return False
    return all(_is_packed(scheme or {}, config.quant_format) for scheme in schemes.values())


def _is_packed(scheme: dict[str, Any], model_format: str | None) -> bool:
    # As vLLM does: a group of layers without a format of its own has the model's.
    packed = (scheme.get("format") or model_format) == "pack-quantized"
    integers = getattr(scheme.get("weights"), "type", None) == "int"
    activations = (scheme.get("input_activations"), scheme.get("output_activations"))
    return packed and integers and activations == (None, None)

"""When vLLM has loaded a model: has its products begin at the GPC from which they are fastest.

Which GPC that is differs from card to card, so the loaded model's own products are timed from all
but GPC 0, once on each card, in less than a second and before any CUDA graph is captured. See
`hp_norm_plugin.first_gpc`.
"""

from __future__ import annotations

import functools
import logging
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch

from hp_norm_plugin import first_gpc, settings
from hp_norm_plugin.first_gpc import Step

logger = logging.getLogger("vllm.hp_norm")

# Numbers of tokens that decode with the operator, and that products have different kernels for.
NUM_TOKENS = (1, 8, 32)
# Enough that no matrix is in L2 when it comes again, and not more than the time is worth.
MOST_STEPS = 8


@dataclass(frozen=True)
class Choice:
    """The GPC that was set, and the microseconds by GPC that decided: none where the user did."""

    gpc: int | None  # None: nothing was set
    us: dict[int, float] = field(default_factory=dict)
    why_not: str = ""  # why nothing was timed

    def describe(self) -> str:
        """The words for a log line."""
        if self.gpc is None:
            return f"products behind a norm are not timed: {self.why_not}"
        if not self.us:
            return f"products behind a norm begin at GPC {self.gpc} ({settings.FIRST_GPC.name})"
        slowest = max(self.us, key=self.us.__getitem__)
        return (
            f"products behind a norm begin at GPC {self.gpc}: {self.us[self.gpc]:.1f} us with the "
            f"norm and the product before it, {self.us[slowest]:.1f} from GPC {slowest}"
        )


# By device index: what was chosen for the first model that was loaded, if anything. What comes
# after it is a draft model, or shares the process with graphs that are captured.
_choices: dict[int | None, Choice | None] = {}


def choices() -> list[str]:
    """Return what was chosen in this process, in words, a device each."""
    return [choice.describe() for choice in _choices.values() if choice is not None]


Layers = tuple[torch.nn.Module, torch.nn.Module]


def layers_around_norms(
    model: torch.nn.Module, hidden_size: int, device: torch.device
) -> list[Layers]:
    """Return linear layers before and behind a norm, of up to `MOST_STEPS` blocks of the model.

    Of those of which there are several: behind it the ones of that input with the most outputs,
    before it the ones of that output with the fewest inputs; in a Llama, attention's output and
    gate and up. Layers whose weights are not in the device's own memory are left out. Empty where
    there are not several of both.
    """
    from vllm.model_executor.layers.linear import LinearBase

    before, behind = defaultdict(list), defaultdict(list)
    for module in model.modules():
        if isinstance(module, LinearBase) and _is_on(module, device):
            inputs, outputs = _size(module, "input"), _size(module, "output")
            if outputs == hidden_size:
                before[-inputs].append(module)
            elif inputs == hidden_size:
                behind[outputs].append(module)
    pairs = list(zip(_most(before), _most(behind), strict=False))[:MOST_STEPS]
    return pairs if len(pairs) > 1 else []


def _most(groups: dict[int, list[torch.nn.Module]]) -> list[torch.nn.Module]:
    """Return the group with the largest key of those that have several layers."""
    several = [key for key, layers in groups.items() if len(layers) > 1]
    return groups[max(several)] if several else []


def _is_on(layer: Any, device: torch.device) -> bool:
    """Return whether a layer's weight is on a device, and not mapped there by vLLM's offloading."""
    weight = getattr(layer, "weight", None)
    mapped = getattr(weight, "_vllm_is_uva_offloaded", False)
    return weight is not None and weight.device.type == device.type and not mapped


def _size(layer: Any, end: str) -> int:
    """Return a linear layer's number of inputs or outputs on this GPU."""
    return getattr(layer, f"{end}_size_per_partition", getattr(layer, f"{end}_size"))


def _step(layers: Layers, num_tokens: int, dtype: torch.dtype, device: torch.device) -> Step:
    """Return what the layers compute, without their communication."""
    before, behind = layers
    x = torch.randn(num_tokens, _size(before, "input"), dtype=dtype, device=device)

    def apply(layer: Any, rows: torch.Tensor) -> torch.Tensor:
        return layer.quant_method.apply(layer, rows)

    return Step(functools.partial(apply, before, x), functools.partial(apply, behind))


@torch.inference_mode()
def _timed(
    layers: list[Layers],
    sizes: list[int],
    hidden_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[int, float]:
    """Return the microseconds of a step by first GPC, the mean over numbers of tokens."""
    us = dict.fromkeys(first_gpc.CANDIDATES, 0.0)
    for num_tokens in sizes:
        steps = [_step(pair, num_tokens, dtype, device) for pair in layers]
        residual = torch.zeros(num_tokens, hidden_size, dtype=dtype, device=device)
        measured = first_gpc.times(steps, residual)
        us = {gpc: us[gpc] + one / len(sizes) for gpc, one in measured.items()}
    return us


def _why_not(config: Any) -> str | None:
    """Return what of a model was not tried with the timing's CUDA graphs, or None."""
    if config.quantization is not None:
        return "quantised weights"
    # Sleep mode turns the other on: a pool of its own that the model is allocated in.
    pools = ("enable_sleep_mode", "enable_cumem_allocator")
    return "vLLM's cuMem allocator" if any(getattr(config, p, False) for p in pools) else None


def choose(model: torch.nn.Module, vllm_config: Any, device: torch.device) -> Choice | None:
    """Set the GPC at which the products of a loaded model begin.

    Parameters
    ----------
    model
        A model that vLLM built, its weights in place.
    vllm_config
        Its configuration.
    device
        The CUDA device of its weights, with an index.

    Returns
    -------
    Choice or None
        What was set, or why the model was not timed; None, with nothing changed, where a model was
        loaded before, and where no norm of this width decides it.

    """
    config = vllm_config.model_config
    hidden_size, dtype = config.get_hidden_size(), config.dtype
    if device.index in _choices:
        return None
    sizes = [n for n in NUM_TOKENS if first_gpc.is_set_by(n, hidden_size, dtype, device)]
    _choices[device.index] = None
    if not sizes:
        return None
    choice = _choice(model, config, sizes, device)
    if choice.gpc is not None:
        first_gpc.set_first_gpc(choice.gpc, device)
    _choices[device.index] = choice
    return choice


def _choice(model: torch.nn.Module, config: Any, sizes: list[int], device: torch.device) -> Choice:
    """Return the user's GPC or the fastest, or why it is not known."""
    flag = settings.read_flag(settings.FIRST_GPC).value
    if flag != "auto":
        return Choice(int(flag))
    if why := _why_not(config):
        return Choice(None, why_not=why)
    hidden_size = config.get_hidden_size()
    layers = layers_around_norms(model, hidden_size, device)
    if not layers:
        return Choice(None, why_not="no blocks with a product before and behind a norm on the GPU")
    us = _timed(layers, sizes, hidden_size, config.dtype, device)
    return Choice(min(us, key=us.__getitem__), us)

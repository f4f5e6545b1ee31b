"""When vLLM has loaded a model: has its products begin at the GPC from which they are fastest.

Which GPC that is differs from card to card, so the loaded model's own products are timed from all
but GPC 0, once on each card, in less than a second and before any CUDA graph is captured. See
`hp_norm_plugin.first_gpc`.
"""

from __future__ import annotations

import functools
import logging
from collections import defaultdict
from dataclasses import dataclass
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

    gpc: int
    us: dict[int, float]

    def describe(self) -> str:
        """The words for a log line."""
        if not self.us:
            return f"products behind a norm begin at GPC {self.gpc} ({settings.FIRST_GPC.name})"
        slowest = max(self.us, key=self.us.__getitem__)
        return (
            f"products behind a norm begin at GPC {self.gpc}: {self.us[self.gpc]:.1f} us with the "
            f"norm and the product before it, {self.us[slowest]:.1f} from GPC {slowest}"
        )


# By device index. The first model that is loaded decides: what comes after it is a draft model.
_choices: dict[int, Choice] = {}


def choices() -> dict[int, Choice]:
    """Return what was chosen in this process, by device index."""
    return dict(_choices)


Layers = tuple[torch.nn.Module, torch.nn.Module]


def layers_around_norms(model: torch.nn.Module, hidden_size: int) -> list[Layers]:
    """Return linear layers before and behind a norm, of up to `MOST_STEPS` blocks of the model.

    Behind it the ones of that input with the most outputs, before it the ones of that output with
    the fewest inputs: in a Llama, attention's output and gate and up. Empty where there are not
    several of both.
    """
    from vllm.model_executor.layers.linear import LinearBase

    before, behind = defaultdict(list), defaultdict(list)
    for module in model.modules():
        if isinstance(module, LinearBase):
            inputs, outputs = _size(module, "input"), _size(module, "output")
            if outputs == hidden_size:
                before[-inputs].append(module)
            elif inputs == hidden_size:
                behind[outputs].append(module)
    chosen = [found[max(found)] if found else [] for found in (before, behind)]
    pairs = list(zip(*chosen, strict=False))[:MOST_STEPS]
    return pairs if len(pairs) > 1 else []


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
        measured = first_gpc.times(steps, residual, first_gpc.graph_times)
        us = {gpc: us[gpc] + one / len(sizes) for gpc, one in measured.items()}
    return us


def choose(model: torch.nn.Module, vllm_config: Any, device: torch.device) -> Choice | None:
    """Set the GPC at which the products of a loaded model begin, and return what was chosen.

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
        None, with nothing changed, where another model was loaded before, where no norm of this
        width decides it, and, unless the user names a GPC, for quantised models, in vLLM's sleep
        mode, and where the model has no such layers.

    """
    config = vllm_config.model_config
    hidden_size, dtype = config.get_hidden_size(), config.dtype
    sizes = [n for n in NUM_TOKENS if first_gpc.is_set_by(n, hidden_size, dtype, device)]
    if device.index in _choices or not sizes:
        return None
    flag = settings.read_flag(settings.FIRST_GPC).value
    if flag != "auto":
        choice = Choice(int(flag), {})
    else:
        # Not tried with the timing's CUDA graphs: kernels for quantised weights, and the pool that
        # sleep mode allocates in.
        tried = config.quantization is None and not getattr(config, "enable_sleep_mode", False)
        layers = layers_around_norms(model, hidden_size) if tried else []
        if not layers:
            return None
        us = _timed(layers, sizes, hidden_size, dtype, device)
        choice = Choice(min(us, key=us.__getitem__), us)
    first_gpc.set_first_gpc(choice.gpc, device)
    _choices[device.index] = choice
    return choice

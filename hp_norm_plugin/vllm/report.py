"""One log line for a loaded model: how many of its norm layers run on the operator, and why not."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import logging
import sys
from collections import Counter
from typing import Any

import torch

from hp_norm_plugin import settings
from hp_norm_plugin.vllm import announce, first_product, host, policy, token_ranges, warn_of_others

logger = logging.getLogger("vllm.hp_norm")

LOADER = "vllm.model_executor.model_loader.base_loader"
REPLACED = "replaced by"


def count_layers(model: torch.nn.Module, vllm_config: Any, adapter: str) -> dict[str, int]:
    """Count a model's norm layers by where they run.

    Parameters
    ----------
    model
        A model that vLLM built.
    vllm_config
        Its configuration.
    adapter
        "ir" or "layer".

    Returns
    -------
    dict
        "operator" and, for those left to vLLM or to another plugin, the reason, each with its
        number of layers.

    """
    from vllm.model_executor.layers import layernorm

    gemma = getattr(layernorm, "GemmaRMSNorm", ())
    whole = policy.stand_aside_as_provider if adapter == "ir" else policy.stand_aside_as_layer
    reason = whole(vllm_config)
    foreign = tuple(host.foreign_norms().values())
    counts: Counter[str] = Counter()
    for module in model.modules():
        if not isinstance(module, (layernorm.RMSNorm, gemma)):
            continue
        if isinstance(module, foreign):
            why = f"{REPLACED} {host.full_name(type(module))}"
        else:
            why = reason or _why_left(module, vllm_config, adapter, isinstance(module, gemma))
        counts[why or "operator"] += 1
    return dict(counts)


def _why_left(module: Any, vllm_config: Any, adapter: str, converts_weight: bool) -> str | None:
    """Return why one layer of a model that runs on the operator does not, or None."""
    if getattr(module, "variance_size_override", None) is not None:
        return "variance_size_override"
    if policy.uses_inductor(vllm_config):
        model, width = vllm_config.model_config, module.weight.numel()
        weight_dtype = torch.float32 if converts_weight else module.weight.dtype
        scope = settings.read_flag(settings.SCOPE).value
        # No layer has run yet: those as wide as the model are taken for norms with a residual,
        # which all but a model's first have.
        has_residual = width == model.get_hidden_size()
        why = policy.better_in_inductor(width, model.dtype, weight_dtype, has_residual, scope)
        if why is not None:
            return why
    # vLLM looks layers up by the name of their class, and a subclass has another.
    if adapter == "layer" and not hasattr(module, "hp_norm_host"):
        return "a subclass, which is not replaced"
    return None


def describe(model_name: str, counts: dict[str, int]) -> str:
    """Return the log line for `count_layers`' result."""
    on = f"{counts.get('operator', 0)} of {sum(counts.values())} norm layers on the operator"
    left = [
        f"{n} left{'' if why.startswith(REPLACED) else ' to vLLM'}: {why}"
        for why, n in counts.items()
        if why != "operator"
    ]
    return "; ".join([f"hp_norm: {model_name}: {on}", *left])


def describe_left(vllm_config: Any, adapter: str | None) -> list[str]:
    """Return the words on calls that vLLM keeps of layers which are on the operator."""
    left = token_ranges.describe(vllm_config, adapter)
    if adapter == "ir" and policy.fuses_all_reduce(vllm_config):
        left.append("those behind an all-reduce are vLLM's where it fuses them")
    return left


def log_after_load(adapter: str) -> None:
    """Log the line each time vLLM has loaded a model in this process.

    Counting needs the built model, and no plugin hook offers it, so the loader's base class is
    wrapped. A model of a loader that overrides `load_model` is neither reported nor timed for its
    first GPC. Importing that class pulls in vLLM's attention backends, which a process that only
    serves HTTP never needs: it is wrapped when vLLM itself imports it.
    """
    if LOADER in sys.modules:
        _wrap(sys.modules[LOADER].BaseModelLoader, adapter)
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(adapter))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Wraps the loader's base class as soon as its module has been imported."""

    def __init__(self, adapter: str) -> None:
        self._adapter = adapter

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != LOADER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run_module = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                run_module(module)
                try:
                    _wrap(module.BaseModelLoader, self._adapter)
                except Exception:
                    logger.exception("hp_norm: models will not be reported; they run as planned")

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _choose_first_gpc(model: torch.nn.Module, vllm_config: Any, counts: dict[str, int]) -> None:
    """Have the products begin at a good GPC where the norms before them run on the operator."""
    from vllm.platforms import current_platform

    on_operator = counts.get("operator", 0) > 0 and not policy.fuses_all_reduce(vllm_config)
    if current_platform.is_cuda() and on_operator:
        device = torch.device("cuda", torch.cuda.current_device())
        choice = first_product.choose(model, vllm_config, device)
        if choice is not None:
            logger.info("hp_norm: %s", choice.describe())


def _wrap(loader: type, adapter: str) -> None:
    original = loader.load_model  # type: ignore[attr-defined]
    if getattr(original, "reports_hp_norm", False):
        return

    @functools.wraps(original)
    def load_model(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> torch.nn.Module:
        model = original(self, vllm_config, *args, **kwargs)
        announce()
        counts: dict[str, int] = {}
        try:
            warn_of_others()
            counts = count_layers(model, vllm_config, adapter)
            if counts:
                line = describe(type(model).__name__, counts)
                logger.info("%s", "; ".join([line, *describe_left(vllm_config, adapter)]))
        except Exception:
            logger.exception("hp_norm: the model's norm layers could not be counted")
        try:
            _choose_first_gpc(model, vllm_config, counts)
        except Exception:
            logger.exception("hp_norm: products behind a norm begin where they happen to")
        return model

    load_model.reports_hp_norm = True  # type: ignore[attr-defined]
    loader.load_model = load_model  # type: ignore[attr-defined]

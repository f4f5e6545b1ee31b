"""What the vLLM in this environment offers, found by looking at it, never by its version."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from importlib import metadata

ENTRY_POINT = "hp_norm"  # of the group vllm.general_plugins
NORMS = ("RMSNorm", "GemmaRMSNorm")  # the names by which vLLM's layers are replaced
IR_OPS = ("rms_norm", "fused_add_rms_norm")  # of vLLM's IR, that the operator provides


@dataclass(frozen=True)
class Host:
    """The parts of the installed vLLM that an adapter can attach to.

    `sm` is 10 * major + minor of the first GPU, or None where it is not known without creating
    a CUDA context (then the kernel's own check at the first call has the last word).
    """

    version: str
    platform: str  # "cuda", "cpu", or another platform's name, on which we stay out
    sm: int | None
    has_ir: bool
    has_layer: bool

    @property
    def target(self) -> str:
        """The device in words for the log line: cpu, cuda or sm_90."""
        return f"sm_{self.sm}" if self.sm is not None else self.platform


def _has_ir() -> bool:
    """Whether vLLM has IR ops with registrable implementations and a platform priority."""
    if importlib.util.find_spec("vllm.ir") is None:
        return False
    ops = getattr(importlib.import_module("vllm.ir"), "ops", None)
    platforms = importlib.import_module("vllm.platforms")
    return all(hasattr(getattr(ops, name, None), "register_impl") for name in IR_OPS) and hasattr(
        platforms.current_platform, "get_default_ir_op_priority"
    )


def _has_layer() -> bool:
    """Whether RMSNorm is a CustomOp whose class can be replaced from outside."""
    layernorm = importlib.import_module("vllm.model_executor.layers.layernorm")
    return hasattr(getattr(layernorm, "RMSNorm", None), "register_oot")


def _platform() -> str:
    platform = importlib.import_module("vllm.platforms").current_platform
    for name in ("cuda", "cpu"):
        if getattr(platform, f"is_{name}")():
            return name
    return str(getattr(platform, "device_name", None) or type(platform).__name__)


def _sm_without_context() -> int | None:
    """Compute capability through NVML; None when vLLM would have to initialise CUDA for it.

    A CUDA context in the API server or engine core would make every fork after it fail.
    """
    cuda = importlib.import_module("vllm.platforms.cuda")
    platform = importlib.import_module("vllm.platforms").current_platform
    nvml_platform = getattr(cuda, "NvmlCudaPlatform", None)
    if nvml_platform is None or not isinstance(platform, nvml_platform):
        return None
    capability = platform.get_device_capability()
    return None if capability is None else 10 * capability.major + capability.minor


def detect() -> Host:
    """Look at the installed vLLM.

    Returns
    -------
    Host
        What was found. Nothing is changed, and no CUDA context is created.

    Raises
    ------
    ImportError
        vLLM itself does not import.

    """
    version = importlib.import_module("vllm").__version__
    platform = _platform()
    return Host(
        version=version,
        platform=platform,
        sm=_sm_without_context() if platform == "cuda" else None,
        has_ir=_has_ir(),
        has_layer=_has_layer(),
    )


def why_not_loaded() -> str | None:
    """Return why vLLM does not call this plugin at all, or None when it does."""
    entry_points = metadata.entry_points(group="vllm.general_plugins")
    if not any(entry.name == ENTRY_POINT for entry in entry_points):
        return "the package is importable but not installed, so vLLM does not find its plugin"
    # None where it is not set. Set to nothing, vLLM reads one empty name, and loads no plugin.
    allowed = getattr(importlib.import_module("vllm.envs"), "VLLM_PLUGINS", None)
    if allowed is not None and ENTRY_POINT not in allowed:
        return f"VLLM_PLUGINS={','.join(allowed)} has no {ENTRY_POINT}, so vLLM does not load it"
    return None


def foreign_norms() -> dict[str, type]:
    """Return the classes of other plugins that vLLM builds in place of its norms, by its names."""
    custom_op = importlib.import_module("vllm.model_executor.custom_op")
    replaced = getattr(custom_op, "op_registry_oot", {})
    ours = __name__.partition(".")[0] + "."
    return {
        name: replaced[name]
        for name in NORMS
        if name in replaced and not replaced[name].__module__.startswith(ours)
    }


def full_name(cls: type) -> str:
    """The name of a class with its module, for a log line."""
    return f"{cls.__module__}.{cls.__qualname__}"


def describe_foreign() -> str | None:
    """The words for a log line on `foreign_norms`, or None where there are none."""
    foreign = [f"{name} by {full_name(cls)}" for name, cls in foreign_norms().items()]
    return f"another plugin has replaced {', '.join(foreign)}" if foreign else None

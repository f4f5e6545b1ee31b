"""The vLLM plugin: `register` is the entry point of the group `vllm.general_plugins`.

vLLM calls it in every process (API server, engine core, workers), possibly more than once, and an
exception in it would end the process. So it never raises: whatever goes wrong leaves vLLM's own
norm in place and says so in one line.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from hp_norm_plugin import settings
from hp_norm_plugin.gpu import library_covers
from hp_norm_plugin.vllm.host import Host, describe_foreign, detect

# A child of vLLM's logger, so that the lines appear with vLLM's own format and level.
logger = logging.getLogger("vllm.hp_norm")

# What an adapter attaches to, for a log line.
PLACES = {"ir": "IR for norms", "layer": "replaceable RMSNorm"}


@dataclass(frozen=True)
class Registration:
    """What `register` did in this process."""

    adapter: str | None  # "ir", "layer", or None: vLLM's own norm runs
    reason: str  # the log line without its prefix


_registration: Registration | None = None
_announced: Registration | None = None  # the one that was logged
_warned: str | None = None  # what was said of other plugins


def registration() -> Registration | None:
    """Return what `register` did in this process, or None before its first call."""
    return _registration


def register() -> None:
    """Attach the operator to the installed vLLM, as `HP_NORM_PLUGIN` says; never raises."""
    global _registration
    if _registration is not None:
        return
    try:
        _registration = _register()
    except Exception as error:
        logger.exception("hp_norm: registration failed; vLLM's own norm runs")
        _registration = Registration(None, f"registration failed: {error!r}")
    else:
        announce()


def announce() -> None:
    """Log this process's line, once.

    Newer vLLM configures its logging after it has loaded the plugins of its first process, and the
    line would be lost there: what runs later (the priority, the report) calls this again.
    """
    global _announced
    if _registration is None or _announced is _registration:
        return
    level = logging.INFO if _registration.adapter or _is_off() else logging.WARNING
    if logger.isEnabledFor(level):
        logger.log(level, "hp_norm: %s", _registration.reason)
        _announced = _registration


def warn_of_others() -> None:
    """Warn, once, of norms that another plugin has replaced.

    One that registers its class after us is seen when a model is loaded. A registration without
    an adapter has a line of its own, with the reason.
    """
    global _warned
    if _registration is not None and _registration.adapter is None:
        return
    words = describe_foreign()
    if words is not None and words != _warned:
        logger.warning("hp_norm: %s; those layers are left to it", words)
        _warned = words


def _is_off() -> bool:
    reading = settings.read_flag(settings.PLUGIN)
    return reading.value == "0" and reading.warning is None


def plan(found: Host, mode: str) -> Registration:
    """Decide on an adapter without attaching it.

    Parameters
    ----------
    found
        What the installed vLLM offers.
    mode
        The value of `HP_NORM_PLUGIN`, other than "0".

    Returns
    -------
    Registration
        The adapter that `register` would attach, or None with the reason.

    """
    problem = _library_problem(found)
    if problem is not None:
        return Registration(None, f"vLLM's own norm runs: {problem}")
    candidates = ("ir", "layer") if mode == "auto" else (mode,)
    has = {"ir": found.has_ir, "layer": found.has_layer}
    adapter = next((name for name in candidates if has[name]), None)
    if adapter is None:
        lacks = " and ".join(f"no {PLACES[name]}" for name in candidates)
        return Registration(None, f"vLLM {found.version} has {lacks}; its own norm runs")
    name = {"ir": "IR", "layer": "layer"}[adapter]
    what = f"{name} adapter, fused_add_rms_norm and rms_norm on {found.target}"
    return Registration(adapter, f"vLLM {found.version}, {what}")


def _register() -> Registration:
    from hp_norm_plugin.vllm import compile_cache

    warnings = [reading.warning for reading in settings.read_all().values() if reading.warning]
    mode = settings.read_flag(settings.PLUGIN).value
    compile_cache.remove_from_key()
    _share_flags_with_ray()
    if mode == "0":
        why = "; ".join(warnings) or f"{settings.PLUGIN.name}=0"
        return Registration(None, f"off ({why})")
    for warning in warnings:
        logger.warning("hp_norm: %s", warning)

    found = detect()
    planned = plan(found, mode)
    state = compile_cache.graph_state() if planned.adapter is not None else None
    if found.has_ir and mode != "layer":
        from hp_norm_plugin.vllm import ir_provider

        ir_provider.register_providers(supported=planned.adapter == "ir", state=state)
    return planned if state is None else _attach(planned, state)


def _share_flags_with_ray() -> None:
    """Have vLLM copy our variables to the Ray actors that it starts, as it does with its own."""
    try:
        from vllm.ray import ray_env

        ray_env.DEFAULT_ENV_VAR_PREFIXES.add("HP_NORM_")
    except (ImportError, AttributeError):  # a vLLM that asks elsewhere, or without Ray
        return


def _library_problem(found: Host) -> str | None:
    """Return why the operator cannot run on this platform, or None."""
    if found.platform not in ("cuda", "cpu"):
        return f"no kernel for platform {found.platform}"
    try:
        from hp_norm_plugin import library

        status = library.library_status()
    except Exception as error:
        return str(error)
    if found.platform == "cpu":
        return None
    if not status.cuda_loaded:
        return status.cuda_error or "the CUDA library is not loaded"
    sm = found.sm
    if sm is not None and not library_covers(sm, status.cuda_archs):
        built = ", ".join(status.cuda_archs)
        return f"the CUDA library has no code for sm_{sm} (it has {built}); build with nvcc"
    return None


def _attach(planned: Registration, state: str) -> Registration:
    """Attach the planned adapter, the priority last; a failure before it is taken back."""
    from vllm.model_executor import custom_op

    from hp_norm_plugin.vllm import compile_cache

    replaced = getattr(custom_op, "op_registry_oot", {})
    before = dict(replaced)
    try:
        return _attach_all(planned, state)
    except Exception:
        replaced.clear()
        replaced.update(before)
        compile_cache.remove_from_key()
        raise


def _attach_all(planned: Registration, state: str) -> Registration:
    from hp_norm_plugin.vllm import compile_cache

    if planned.adapter == "layer":
        from hp_norm_plugin.vllm import layer

        if not layer.replace_layer("RMSNorm", layer.RMSNormLayer):
            _report_models("layer")
            return Registration(None, f"{describe_foreign()}; nothing changed")
    if planned.adapter == "layer" or not _providers_say_all():
        compile_cache.register_in_key(f"{planned.adapter}-{state}")
    _replace_gemma()
    _report_models(planned.adapter)
    warn_of_others()
    if planned.adapter == "ir":
        from hp_norm_plugin.vllm import ir_provider

        ir_provider.put_first()
    return planned


def _report_models(adapter: str) -> None:
    from hp_norm_plugin.vllm import report

    try:
        report.log_after_load(adapter)
    except Exception:
        logger.exception("hp_norm: models will not be reported; they run as planned")


def _providers_say_all() -> bool:
    """Return whether the IR's providers say all in vLLM's key that shapes a graph of ours.

    With `HP_NORM_SCOPE=all` Gemma's layer comes into graphs, too.
    """
    from hp_norm_plugin.vllm import ir_provider

    return ir_provider.are_in_key() and settings.read_flag(settings.SCOPE).value != "all"


def _replace_gemma() -> None:
    """Put Gemma's layer on the operator where it is a replaceable layer; else leave it to IR."""
    from vllm.model_executor.layers import layernorm

    if hasattr(getattr(layernorm, "GemmaRMSNorm", None), "register_oot"):
        from hp_norm_plugin.vllm import layer

        layer.replace_layer("GemmaRMSNorm", layer.GemmaRMSNormLayer)

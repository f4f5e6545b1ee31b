"""`register()` in one process: what it attaches, what it says, and what it survives."""

import importlib
import multiprocessing
import sys
from importlib import metadata

import pytest
import torch

from hp_norm_plugin.vllm import report
from hp_norm_plugin.vllm.host import Host, detect, why_not_loaded

IR_OPS = ("rms_norm", "fused_add_rms_norm")


def priority(vllm_config=None):
    from vllm.config import VllmConfig
    from vllm.platforms import current_platform

    config = VllmConfig() if vllm_config is None else vllm_config
    return current_platform.get_default_ir_op_priority(config)


def test_vllm_finds_the_entry_point():
    entries = metadata.entry_points(group="vllm.general_plugins")
    assert [entry.value for entry in entries if entry.name == "hp_norm"] == [
        "hp_norm_plugin.vllm:register"
    ]


@pytest.mark.parametrize(
    "named", [None, "", "other", "hp_norm", "other,hp_norm", "other, hp_norm", "hp_norm_2"]
)
def test_what_vllm_loads_is_what_is_said_of_it(monkeypatch, named):
    """Set to nothing, VLLM_PLUGINS names no plugin; spaces are part of a name."""
    from vllm.plugins import load_plugins_by_group

    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if named is not None:
        monkeypatch.setenv("VLLM_PLUGINS", named)
    loads = "hp_norm" in load_plugins_by_group("vllm.general_plugins")
    assert (why_not_loaded() is None) == loads
    if not loads:
        assert why_not_loaded() == f"VLLM_PLUGINS={named} has no hp_norm, so vLLM does not load it"


def test_a_package_that_is_not_installed_is_not_found(monkeypatch):
    monkeypatch.setattr(metadata, "entry_points", lambda group: ())
    assert "importable but not installed" in why_not_loaded()


def test_detect_looks_at_features():
    found = detect()
    assert found.platform in ("cpu", "cuda")
    assert found.has_layer
    assert found.version


def test_ir_adapter_puts_the_operator_first_and_says_so_once(clean, lines):
    clean.register()
    clean.register()
    assert clean.registration().adapter == "ir"
    found = detect()
    assert lines() == [
        ("INFO", f"hp_norm: vLLM {found.version}, IR adapter, fused_add_rms_norm and rms_norm on "
         f"{found.target}")
    ]  # fmt: skip
    for name in IR_OPS:
        assert getattr(priority(), name)[0] == "hp_norm"
        assert getattr(priority(), name).count("hp_norm") == 1


def test_registering_again_in_a_process_that_forgot_changes_nothing(clean, monkeypatch):
    """vLLM may call it again after a fork, or two plugin groups may name it."""
    clean.register()
    monkeypatch.setattr(clean, "_registration", None)
    clean.register()
    assert clean.registration().adapter == "ir"
    assert priority().rms_norm.count("hp_norm") == 1


def test_off_leaves_vllm_as_it_was(clean, lines, monkeypatch):
    before = priority()
    monkeypatch.setenv("HP_NORM_PLUGIN", "0")
    clean.register()
    assert clean.registration().adapter is None
    assert priority() == before
    assert lines() == [("INFO", "hp_norm: off (HP_NORM_PLUGIN=0)")]


def test_unknown_value_is_off_with_one_warning(clean, lines, monkeypatch):
    monkeypatch.setenv("HP_NORM_PLUGIN", "yes please")
    clean.register()
    assert clean.registration().adapter is None
    assert [level for level, _ in lines()] == ["WARNING"]
    assert "HP_NORM_PLUGIN='yes please' is not one of" in lines()[0][1]


def test_the_line_waits_for_vllm_to_configure_its_logging(clean, lines):
    """vLLM 0.32 loads the plugins of its first process before it has a log handler."""
    import logging

    logger = logging.getLogger("vllm.hp_norm")
    logger.setLevel(logging.WARNING)
    clean.register()
    assert lines() == []
    logger.setLevel(logging.INFO)
    priority()
    priority()
    assert [text for _, text in lines()] == [f"hp_norm: {clean.registration().reason}"]


def test_layer_adapter_on_request(clean, monkeypatch):
    from vllm.model_executor import custom_op

    from hp_norm_plugin.vllm import layer

    monkeypatch.setenv("HP_NORM_PLUGIN", "layer")
    clean.register()
    assert clean.registration().adapter == "layer"
    assert custom_op.op_registry_oot["RMSNorm"] is layer.RMSNormLayer
    assert "hp_norm" not in priority().rms_norm


def test_layer_adapter_where_vllm_has_no_ir(clean, monkeypatch):
    host = Host(version="0.34.0", platform="cpu", sm=None, has_ir=False, has_layer=True)
    monkeypatch.setattr(clean, "detect", lambda: host)
    clean.register()
    assert clean.registration().adapter == "layer"


@pytest.mark.parametrize(
    ("mode", "lacks"),
    [("auto", "no IR for norms and no replaceable RMSNorm"), ("ir", "no IR for norms"),
     ("layer", "no replaceable RMSNorm")],
)  # fmt: skip
def test_no_place_for_an_adapter(clean, lines, monkeypatch, mode, lacks):
    has = {"has_ir": mode == "layer", "has_layer": mode == "ir"}
    host = Host(version="9.9", platform="cpu", sm=None, **has)
    monkeypatch.setattr(clean, "detect", lambda: host)
    monkeypatch.setenv("HP_NORM_PLUGIN", mode)
    clean.register()
    assert lines() == [("WARNING", f"hp_norm: vLLM 9.9 has {lacks}; its own norm runs")]


def test_an_exception_leaves_vllm_as_it_was(clean, lines, monkeypatch):
    def broken():
        raise RuntimeError("no such table")

    before = priority()
    monkeypatch.setattr(clean, "detect", broken)
    clean.register()
    assert clean.registration().adapter is None
    assert priority() == before
    assert lines() == [("ERROR", "hp_norm: registration failed; vLLM's own norm runs")]


@pytest.mark.parametrize("mode", ["ir", "layer"])
def test_a_late_exception_takes_back_what_was_attached(clean, lines, monkeypatch, mode):
    """Whatever fails last: the layers are vLLM's again, and so is the key of its graphs."""
    from vllm import envs
    from vllm.model_executor import custom_op

    from hp_norm_plugin.vllm import compile_cache, ir_provider

    def fail(*_):
        raise OSError("as arranged")

    before = dict(custom_op.op_registry_oot)
    if mode == "ir":
        if not detect().has_ir:
            pytest.skip("this vLLM has no IR")
        monkeypatch.setattr(ir_provider, "put_first", fail)
    else:
        monkeypatch.setattr(clean, "_replace_gemma", fail)
    monkeypatch.setenv("HP_NORM_PLUGIN", mode)
    clean.register()
    assert clean.registration().adapter is None
    assert custom_op.op_registry_oot == before
    assert compile_cache.STATE not in envs.environment_variables
    assert "vLLM's own norm runs" in lines()[-1][1]


def test_a_loader_of_another_shape_does_not_break_vllms_import(lines, monkeypatch, tmp_path):
    """A vLLM whose module has no BaseModelLoader: it is imported, and models go unreported."""
    (tmp_path / "other_loader.py").write_text("loaded = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(report, "LOADER", "other_loader")
    monkeypatch.setattr(sys, "meta_path", [report._AfterImport("ir"), *sys.meta_path])
    assert importlib.import_module("other_loader").loaded
    del sys.modules["other_loader"]
    assert lines()[-1] == ("ERROR", "hp_norm: models will not be reported; they run as planned")


@pytest.mark.parametrize("plugin", ["0", "auto"])
def test_ray_actors_get_the_flags(clean, monkeypatch, plugin):
    """An actor that is off where its driver is on would not know the driver's providers."""
    ray_env = pytest.importorskip("vllm.ray.ray_env")
    prefixes = set(ray_env.DEFAULT_ENV_VAR_PREFIXES) - {"HP_NORM_"}
    monkeypatch.setattr(ray_env, "DEFAULT_ENV_VAR_PREFIXES", prefixes)
    monkeypatch.setenv("HP_NORM_PLUGIN", plugin)
    monkeypatch.setenv("HP_NORM_ROUNDING", "once")
    assert "HP_NORM_PLUGIN" not in ray_env.get_env_vars_to_copy()
    clean.register()
    assert {"HP_NORM_PLUGIN", "HP_NORM_ROUNDING"} <= ray_env.get_env_vars_to_copy()


def test_an_exception_in_the_policy_leaves_the_priority(clean, lines, monkeypatch):
    from hp_norm_plugin.vllm import policy

    before = priority()
    clean.register()

    def broken(config):
        raise KeyError("moved")

    monkeypatch.setattr(policy, "stand_aside", broken)
    assert priority() == before
    said = "hp_norm: a model could not be decided on; vLLM's own norm runs in it"
    assert ("ERROR", said) in lines()


class Status:
    """A CUDA library's state, as `library_status()` gives it."""

    def __init__(self, loaded, error=None, archs=()):
        self.cuda_loaded, self.cuda_error, self.cuda_archs = loaded, error, archs
        self.digest = "0" * 16


@pytest.mark.parametrize(
    ("sm", "status", "text"),
    [
        (90, Status(False, "libhp_norm_cuda.so was not built; build it where nvcc is: pip ..."),
         "hp_norm: vLLM's own norm runs: libhp_norm_cuda.so was not built; build it where nvcc is: "
         "pip ..."),
        (75, Status(True, archs=("80", "90", "PTX")),
         "hp_norm: vLLM's own norm runs: the CUDA library has no code for sm_75 (it has 80, 90, "
         "PTX); build with nvcc"),
    ],
    ids=["missing", "other architectures"],
)  # fmt: skip
def test_cuda_library_that_cannot_run(clean, lines, monkeypatch, sm, status, text):
    from vllm import ir

    from hp_norm_plugin import library

    host = Host(version="0.26.0", platform="cuda", sm=sm, has_ir=True, has_layer=True)
    monkeypatch.setattr(clean, "detect", lambda: host)
    monkeypatch.setattr(library, "library_status", lambda: status)
    for name in IR_OPS:
        monkeypatch.setattr(getattr(ir.ops, name), "impls", dict(getattr(ir.ops, name).impls))
        for provider in ("hp_norm", "hp_norm_eager"):
            getattr(ir.ops, name).impls.pop(provider, None)
    before = priority()
    clean.register()
    assert lines() == [("WARNING", text)]
    assert priority() == before
    # A process whose library is fine may have put us into the list that this one gets.
    with ir.ops.rms_norm.set_priority(["hp_norm", "native"]):
        assert ir.ops.rms_norm.get_priority() == ["native"]


def test_unknown_platform(clean, lines, monkeypatch):
    host = Host(version="0.32.0", platform="rocm", sm=None, has_ir=True, has_layer=True)
    monkeypatch.setattr(clean, "detect", lambda: host)
    clean.register()
    assert lines() == [("WARNING", "hp_norm: vLLM's own norm runs: no kernel for platform rocm")]


def test_no_cuda_context_is_created(clean):
    clean.register()
    assert not torch.cuda.is_initialized()


def _registered_in_child(queue):
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    import sys

    import hp_norm_plugin.vllm as plugin
    from hp_norm_plugin.vllm import report

    early = report.LOADER in sys.modules
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    wrapped = getattr(BaseModelLoader.load_model, "reports_hp_norm", False)
    queue.put((plugin.registration().adapter, early, wrapped))


def test_a_spawned_worker_registers_itself(monkeypatch):
    monkeypatch.delenv("HP_NORM_PLUGIN", raising=False)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    worker = context.Process(target=_registered_in_child, args=(queue,))
    worker.start()
    # Registered, without importing vLLM's model loader; wrapped once vLLM imports it itself.
    assert queue.get(timeout=120) == ("ir", False, True)
    worker.join(30)
    assert worker.exitcode == 0

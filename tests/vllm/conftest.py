"""What the plugin's tests share: a vLLM to look at, and a registration that is undone."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from hp_norm_plugin import settings

pytest.importorskip("vllm")

from hp_norm_plugin.vllm.host import detect  # noqa: E402


@pytest.fixture
def clean(monkeypatch):
    """Let a test call `register()` as a fresh process would, and undo what it did to vLLM."""
    import vllm.model_executor.model_loader.base_loader as base_loader
    from vllm import envs
    from vllm.model_executor import custom_op
    from vllm.platforms import current_platform

    import hp_norm_plugin.vllm as plugin

    for flag in settings.FLAGS:
        monkeypatch.delenv(flag.name, raising=False)
    platform = type(current_platform)
    monkeypatch.setattr(plugin, "_registration", None)
    monkeypatch.setattr(plugin, "_warned", None)
    monkeypatch.setattr(envs, "environment_variables", dict(envs.environment_variables))
    monkeypatch.setattr(custom_op, "op_registry_oot", dict(custom_op.op_registry_oot))
    as_it_was = custom_op.CustomOp.__dict__["register_oot"]
    monkeypatch.setattr(custom_op.CustomOp, "register_oot", as_it_was)
    loader = base_loader.BaseModelLoader
    monkeypatch.setattr(loader, "load_model", loader.load_model)
    # The attribute may be inherited: what register() sets must be deleted, not left as a copy.
    own = platform.__dict__.get("get_default_ir_op_priority")
    yield plugin
    if own is not None:
        platform.get_default_ir_op_priority = own
    elif "get_default_ir_op_priority" in platform.__dict__:
        del platform.get_default_ir_op_priority


@pytest.fixture
def fresh(clean, monkeypatch):
    """Return a function after which this process has registered nothing, so that it can again."""
    from vllm.platforms import current_platform

    def forget():
        clean._registration = None
        priority = getattr(current_platform, "get_default_ir_op_priority", None)
        if getattr(priority, "puts_hp_norm_first", False):
            type(current_platform).get_default_ir_op_priority = staticmethod(priority.__wrapped__)
        if detect().has_ir:
            from vllm import ir

            for op in (ir.ops.rms_norm, ir.ops.fused_add_rms_norm):
                others = {k: v for k, v in op.impls.items() if not k.startswith("hp_norm")}
                monkeypatch.setattr(op, "impls", others)

    return forget


@pytest.fixture
def lines():
    """Return a function that gives the plugin's log lines so far, as (level, text)."""
    seen = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: seen.append((record.levelname, record.getMessage()))
    logger = logging.getLogger("vllm.hp_norm")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: seen
    logger.setLevel(level)
    logger.removeHandler(handler)


@pytest.fixture
def make_config():
    """A stand-in for VllmConfig with just what the policy reads."""

    def build(
        *,
        custom_ops=("none",),
        quantization=None,
        tp=1,
        fuse_allreduce=False,
        eager=False,
        hidden_size=4096,
        architecture="LlamaForCausalLM",
        ends=None,
        quant_config=None,
    ):
        return SimpleNamespace(
            compilation_config=SimpleNamespace(
                custom_ops=list(custom_ops),
                compile_ranges_endpoints=ends,
                backend="inductor",
                mode=0 if eager else 3,
                pass_config=SimpleNamespace(fuse_allreduce_rms=fuse_allreduce),
            ),
            model_config=SimpleNamespace(
                quantization=quantization,
                dtype=torch.bfloat16,
                get_hidden_size=lambda: hidden_size,
                hf_config=SimpleNamespace(architectures=[architecture]),
            ),
            parallel_config=SimpleNamespace(tensor_parallel_size=tp),
            quant_config=quant_config,
        )

    return build


@pytest.fixture(scope="session")
def python():
    """The interpreter for tests that need a process of their own."""
    return sys.executable

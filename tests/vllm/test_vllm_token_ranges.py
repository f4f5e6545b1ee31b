"""Which numbers of tokens keep Inductor's norm in a compiled graph."""

import subprocess
from contextlib import nullcontext

import pytest
import torch

from hp_norm_plugin.vllm import report, token_ranges

ir = pytest.importorskip("vllm.ir", reason="this vLLM has no IR")
inductor_pass = pytest.importorskip("vllm.compilation.passes.inductor_pass")

LAST, MOST = token_ranges.LAST, 8192


@pytest.fixture
def on_cuda(clean, monkeypatch):
    """The plugin registered on the CPU, on a platform that then says it is CUDA."""
    from vllm.platforms import current_platform

    clean.register()
    assert clean.registration().adapter == "ir"
    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: True)
    return current_platform


def test_a_model_is_split_beside_the_users_ranges(on_cuda, make_config):
    config = make_config(ends=[2048])
    for _ in range(2):  # vLLM may ask again
        assert on_cuda.get_default_ir_op_priority(config).rms_norm[0] == "hp_norm"
        ends = config.compilation_config.compile_ranges_endpoints
        assert ends == [LAST, 2048]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"hidden_size": token_ranges.WIDE},
        {"architecture": "Gemma3ForCausalLM"},
        {"quantization": "fp8"},
        {"architecture": "Qwen3NextForCausalLM"},
        {"tp": 2, "fuse_allreduce": True},
        {"eager": True},
        {"custom_ops": ["none", "-rms_norm"]},
    ],
    ids=str,
)
def test_a_model_that_has_nothing_to_leave_is_compiled_once(on_cuda, make_config, kwargs):
    config = make_config(**kwargs)
    on_cuda.get_default_ir_op_priority(config)
    assert config.compilation_config.compile_ranges_endpoints is None


def test_scope_all_leaves_nothing(on_cuda, make_config, monkeypatch):
    monkeypatch.setenv("HP_NORM_SCOPE", "all")
    assert not token_ranges.applies(make_config())


def test_a_vllm_without_ranges_is_left_as_it_is(on_cuda, make_config):
    config = make_config()
    del config.compilation_config.compile_ranges_endpoints
    assert on_cuda.get_default_ir_op_priority(config).rms_norm[0] == "hp_norm"
    assert not hasattr(config.compilation_config, "compile_ranges_endpoints")


def test_a_failure_leaves_the_operator_at_every_number(on_cuda, make_config, lines):
    config = make_config()
    config.model_config.get_hidden_size = None  # not callable
    assert on_cuda.get_default_ir_op_priority(config).rms_norm[0] == "hp_norm"
    assert lines()[-1] == (
        "ERROR",
        "hp_norm: numbers of tokens could not be split; the operator runs at all of them",
    )


def test_on_a_cpu_nothing_is_split(clean, make_config):
    from vllm.platforms import current_platform

    clean.register()
    config = make_config()
    current_platform.get_default_ir_op_priority(config)
    assert config.compilation_config.compile_ranges_endpoints is None


@pytest.mark.parametrize(
    ("span", "hidden_size", "provider"),
    [
        ((LAST + 1, MOST), 4096, "native"),
        ((LAST + 1, LAST + 1), 4096, "native"),
        ((2049, MOST), 4096, "native"),
        ((1, LAST), 4096, "hp_norm"),
        ((1, MOST), 4096, "hp_norm"),
        ((LAST + 1, MOST), token_ranges.WIDE, "hp_norm"),
        (None, 4096, "hp_norm"),
    ],
)
def test_a_graph_for_more_tokens_keeps_inductors_norm(clean, span, hidden_size, provider):
    from vllm.config.utils import Range

    clean.register()
    x, weight = torch.empty(40, hidden_size), torch.empty(hidden_size)
    context = nullcontext() if span is None else inductor_pass.pass_context(Range(*span))
    ops = ir.ops
    with (
        context,
        ops.rms_norm.set_priority(["hp_norm", "native"]),
        ops.fused_add_rms_norm.set_priority(["hp_norm", "native"]),
    ):
        assert ops.rms_norm.dispatch(x, weight, 1e-5).provider == provider
        assert ops.fused_add_rms_norm.dispatch(x, x, weight, 1e-5).provider == provider


def test_vllm_completes_the_ranges_after_the_plugin_has_added_its_own(python):
    """The order in VllmConfig that the split relies on, in a process of its own."""
    script = """
from hp_norm_plugin import vllm as plugin
from hp_norm_plugin.vllm import token_ranges
plugin.register()
token_ranges.applies = lambda config: True
from vllm.config import SchedulerConfig, VllmConfig
scheduler = SchedulerConfig.default_factory(max_num_batched_tokens=2048, max_num_seqs=64)
config = VllmConfig(scheduler_config=scheduler)
print("RANGES", *map(str, config.compilation_config.get_compile_ranges()))
"""
    want = f"RANGES (1, {LAST}) ({LAST + 1}, 2048)"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    assert want in done.stdout


def test_the_log_line_says_it(on_cuda, make_config, lines, monkeypatch):
    class Loader:
        def load_model(self, vllm_config):
            return torch.nn.Module()

    report._wrap(Loader, "ir")
    monkeypatch.setattr(report, "count_layers", lambda *_: {"operator": 65})
    monkeypatch.setattr(report, "_choose_first_gpc", lambda *_: None)
    Loader().load_model(make_config())
    Loader().load_model(make_config(hidden_size=token_ranges.WIDE))
    narrow, wide = (text for _, text in lines()[-2:])
    (left,) = token_ranges.describe(make_config(), "ir")
    assert narrow.endswith(f"; {left}") and left not in wide
    assert token_ranges.describe(make_config(), "layer") == []

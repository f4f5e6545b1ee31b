"""Which norms run on the operator: the rules at their edges."""

from types import SimpleNamespace

import pytest
import torch

from hp_norm_plugin.gpu import library_covers
from hp_norm_plugin.vllm import policy, quantization

BF16 = torch.bfloat16


def rows(*shape, dtype=BF16):
    return torch.empty(shape, dtype=dtype)


def wide(hidden_size):
    return f"{hidden_size} wide (Inductor fuses it with its neighbours)"


def test_a_plain_model_runs_on_the_operator(make_config):
    assert policy.stand_aside(make_config()) is None
    assert policy.stand_aside_as_layer(make_config()) is None


@pytest.mark.parametrize(
    "method",
    ["fp8", "modelopt_fp4", "compressed-tensors", "nvfp4_per_token", "mxfp4", "gpt_oss_mxfp4",
     "torchao", "inc"],
)  # fmt: skip
def test_norm_and_quantisation_stay_together(make_config, method):
    reason = f"{method} quantisation may fuse with the norm"
    assert policy.stand_aside(make_config(quantization=method)) == reason
    assert policy.stand_aside_as_layer(make_config(quantization=method)) == reason


@pytest.mark.parametrize("method", sorted(quantization.WEIGHTS_ALONE))
def test_weight_only_quantisation_has_nothing_to_fuse(make_config, method):
    assert policy.stand_aside(make_config(quantization=method)) is None


@pytest.mark.parametrize("word", ["-rms_norm", "-gemma_rms_norm"])
def test_minus_means_vllms_own(make_config, word):
    config = make_config(custom_ops=["all", word])
    assert policy.stand_aside(config) == f"custom_ops has {word}"


def test_all_reduce_fusion_wins_over_the_layer_only(make_config):
    config = make_config(tp=2, fuse_allreduce=True)
    assert policy.stand_aside_as_layer(config) == (
        "all-reduce + norm fusion under tensor parallelism"
    )
    assert policy.stand_aside(config) is None
    assert policy.stand_aside_as_layer(make_config(tp=2)) is None
    assert policy.stand_aside_as_layer(make_config(fuse_allreduce=True)) is None


def test_a_provider_is_not_put_first_for_a_graph_that_it_would_decline(make_config, monkeypatch):
    gemma = {"architecture": "Gemma3ForCausalLM"}
    assert policy.stand_aside_as_provider(make_config(**gemma)) == policy.CONVERTED_WEIGHT
    assert policy.stand_aside_as_provider(make_config(**gemma, eager=True)) is None
    assert policy.stand_aside_as_provider(make_config()) is None
    assert "fp8" in policy.stand_aside_as_provider(make_config(quantization="fp8"))
    monkeypatch.setenv("HP_NORM_SCOPE", "all")
    assert policy.stand_aside_as_provider(make_config(**gemma)) is None


@pytest.mark.parametrize(
    ("given", "aside"),
    [([], False), (["vllm_c"], False), (["native"], True), (["native", "hp_norm"], True),
     (["hp_norm", "native"], False), (["vllm_c", "native"], True)],
)  # fmt: skip
def test_whoever_put_native_first_keeps_it(make_config, given, aside):
    """A user, or the target of a draft model: its list is not ours to append to."""
    config = make_config()
    config.kernel_config = SimpleNamespace(ir_op_priority=SimpleNamespace(fused_add_rms_norm=given))
    reason = policy.stand_aside_as_provider(config)
    assert reason == ("ir_op_priority has native first" if aside else None)


def test_the_models_that_convert_their_weights_are_those_of_the_installed_vllm():
    """By what their sources name: Gemma3n and Gemma4 have plain norms, in spite of their names."""
    import re
    from importlib.util import find_spec
    from pathlib import Path

    from vllm.model_executor.models import ModelRegistry

    checked = set()
    for architecture, model in ModelRegistry.models.items():
        spec = find_spec(model.module_name)
        source = Path(spec.origin).read_text()
        gemma = re.search(r"\bGemmaRMSNorm\b", source)
        plain = re.search(r"(?<!\w)RMSNorm\(", source)
        if bool(gemma) == bool(plain):
            continue  # neither in this file, or both
        config = SimpleNamespace(hf_config=SimpleNamespace(architectures=[architecture]))
        assert policy.converts_weights(config) == bool(gemma), architecture
        checked.add(architecture)
    assert {"Gemma3ForCausalLM", "Gemma3nForCausalLM", "LlamaForCausalLM"} <= checked


def test_batch_invariant_mode(make_config, monkeypatch):
    from vllm import envs

    monkeypatch.setitem(envs.environment_variables, "VLLM_BATCH_INVARIANT", lambda: True)
    assert "batch-invariant" in policy.stand_aside(make_config())


@pytest.mark.parametrize(
    ("x", "residual", "weight", "size", "reason"),
    [
        (rows(2, 1024), None, rows(1024), None, None),
        (rows(2, 1024), rows(2, 1024), rows(1024), None, None),
        (rows(2, 1024), None, None, None, None),
        (rows(2, 1024), None, rows(1024, dtype=torch.float32), None, None),
        (rows(2, 3, 128), None, rows(128), None, None),
        (rows(2, 2048)[:, :1024], None, rows(1024), None, None),
        (rows(2, 1024), None, rows(1024), 512, "variance_size_override"),
        (rows(2, 1024, dtype=torch.float64), None, None, None, "dtype"),
        (rows(2, 1024), None, rows(1024, dtype=torch.float16), None, "weight"),
        (rows(2, 1024), None, rows(2048)[::2], None, "weight"),
        (rows(2, 1024), None, rows(1), None, "weight"),
        (rows(2, 1024), None, rows(1, 1024), None, "weight"),
        (rows(1024), None, None, None, "shape"),
        (rows(2, 65537), None, None, None, "shape"),
        (rows(2, 2048)[:, ::2], None, None, None, "strides"),
        (rows(2, 3, 256)[..., :128], None, None, None, "strides"),
        (rows(2, 1024), rows(2, 1024, dtype=torch.float32), None, None, "residual"),
        (rows(2, 1024), rows(1, 1024), None, None, "residual"),
    ],
)
def test_what_the_kernel_takes(x, residual, weight, size, reason):
    assert policy.decline(x, residual, weight, size) == reason


@pytest.mark.parametrize(
    ("x", "residual", "weight", "scope", "reason"),
    [
        (rows(2, policy.MIN_PLAIN_HIDDEN_SIZE), None, None, "auto", None),
        (rows(2, policy.MIN_PLAIN_HIDDEN_SIZE - 8), None, None, "auto", wide(1016)),
        (rows(2, 8), rows(2, 8), None, "auto", None),
        (rows(2, 32, 128), None, rows(128), "auto", wide(128)),
        (rows(1, 5, 4096), None, rows(4096), "auto", None),
        (rows(2, 32, 128), None, rows(128), "all", None),
        (rows(2, 4096), None, rows(4096, dtype=torch.float32), "auto", policy.CONVERTED_WEIGHT),
        (rows(2, 4096), rows(2, 4096), rows(4096, dtype=torch.float32), "auto",
         policy.CONVERTED_WEIGHT),
        (rows(2, 4096), None, rows(4096, dtype=torch.float32), "all", None),
        (rows(2, 4096), None, rows(4096), "fused", "no residual (HP_NORM_SCOPE=fused)"),
        (rows(2, 4096), rows(2, 4096), rows(4096), "fused", None),
        (rows(2, 4096, dtype=torch.float64), None, None, "all", "dtype"),
    ],
)  # fmt: skip
def test_what_stays_with_inductor(x, residual, weight, scope, reason):
    assert policy.decline_compiled(x, residual, weight, None, scope) == reason


def test_the_rules_hold_for_fake_tensors():
    """Lowering asks with fake tensors: nothing may look at data."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, weight = rows(4, 4096), rows(4096)
        assert policy.decline_compiled(x, x, weight, None, "auto") is None


@pytest.mark.parametrize(
    ("sm", "archs", "covers"),
    [
        (90, ("80", "90"), True), (86, ("80", "90"), True), (80, ("86",), False),
        (100, ("80", "90"), False), (100, ("80", "90", "PTX"), True), (75, ("80", "PTX"), False),
        (121, ("120",), True), (90, (), False), (90, ("PTX",), False),
        (86, ("80", "PTX"), True), (90, ("80", "PTX"), False), (120, ("80", "89", "PTX"), False),
    ],
)  # fmt: skip
def test_which_gpus_a_library_covers(sm, archs, covers):
    assert library_covers(sm, archs) is covers


def test_rows_upon_each_other_are_declined():
    """An in-place norm of an expanded row would write it several times."""
    x = torch.zeros(4, 64)
    assert policy.decline(x, x[:1].expand(4, 64), None, None) == "residual"
    assert policy.decline(x[:1].expand(4, 64), None, None, None) == "strides"
    assert policy.decline(x[:, :32], None, None, None) is None
    assert policy.decline(x[:1], x[:1], None, None) is None

"""Another plugin that has replaced vLLM's norms: one warning, and their layers are not ours."""

from types import SimpleNamespace

import pytest
import torch
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from hp_norm_plugin.vllm.host import detect

BF16 = torch.bfloat16
MODES = [
    pytest.param("ir", marks=pytest.mark.skipif(not detect().has_ir, reason="vLLM without IR")),
    "layer",
]


class TheirNorm(RMSNorm):
    """A norm that never comes to vLLM's IR."""

    def forward_native(self, x, residual=None):
        return x if residual is None else (x, residual)

    forward_cuda = forward_cpu = forward_native


class TheirGemmaNorm(GemmaRMSNorm):
    """As `TheirNorm`."""

    forward_native = TheirNorm.forward_native
    forward_cuda = forward_cpu = forward_native


class ModelsOwnNorm(RMSNorm):
    """What a model of vLLM's defines for itself."""


THEIRS = f"{__name__}.TheirNorm"
THEIR_GEMMA = f"{__name__}.TheirGemmaNorm"


@pytest.fixture
def load(monkeypatch):
    """Have vLLM's loader build norms in a configuration; returns the model."""
    from vllm.config import VllmConfig, set_current_vllm_config

    def run(*classes):
        config = VllmConfig()
        with set_current_vllm_config(config):
            model = torch.nn.ModuleList([cls(1024).to(BF16) for cls in classes])
        stand_in = SimpleNamespace(
            compilation_config=config.compilation_config,
            parallel_config=config.parallel_config,
            model_config=SimpleNamespace(
                dtype=BF16,
                quantization=None,
                get_hidden_size=lambda: 1024,
                hf_config=SimpleNamespace(architectures=["LlamaForCausalLM"]),
            ),
        )
        return BaseModelLoader.load_model(SimpleNamespace(model=model), stand_in)

    # Before `register()`, which wraps it.
    monkeypatch.setattr(BaseModelLoader, "load_model", lambda self, vllm_config: self.model)
    return run


def warnings(lines):
    return [text for level, text in lines() if level != "INFO"]


@pytest.mark.parametrize("mode", MODES)
def test_one_warning_and_their_layers_are_not_counted_as_ours(
    clean, load, lines, monkeypatch, mode
):
    from vllm.model_executor import custom_op

    RMSNorm.register_oot(TheirNorm, name="RMSNorm")
    monkeypatch.setenv("HP_NORM_PLUGIN", mode)
    clean.register()
    assert custom_op.op_registry_oot["RMSNorm"] is TheirNorm
    model = load(RMSNorm, RMSNorm)
    assert {type(module) for module in model} == {TheirNorm}
    load(RMSNorm, RMSNorm)
    what_follows = {"ir": "those layers are left to it", "layer": "nothing changed"}[mode]
    assert warnings(lines) == [
        f"hp_norm: another plugin has replaced RMSNorm by {THEIRS}; {what_follows}"
    ]
    assert lines()[-1][1] == (
        "hp_norm: ModuleList: 0 of 2 norm layers on the operator; "
        f"2 left: replaced by {THEIRS}"
    )  # fmt: skip
    assert clean.registration().adapter == {"ir": "ir", "layer": None}[mode]


@pytest.mark.parametrize("mode", MODES)
def test_a_plugin_that_comes_after_us_takes_the_place_over(clean, load, lines, monkeypatch, mode):
    """Else vLLM's assertion on a second class of one name would end their server."""
    from vllm.model_executor.custom_op import CustomOp

    monkeypatch.setenv("HP_NORM_PLUGIN", mode)
    clean.register()
    assert warnings(lines) == []
    RMSNorm.register_oot(TheirNorm)
    CustomOp.register_oot(name="GemmaRMSNorm")(TheirGemmaNorm)
    model = load(RMSNorm, GemmaRMSNorm)
    assert [type(module) for module in model] == [TheirNorm, TheirGemmaNorm]
    assert warnings(lines) == [
        f"hp_norm: another plugin has replaced RMSNorm by {THEIRS}, GemmaRMSNorm by {THEIR_GEMMA}; "
        "those layers are left to it"
    ]
    assert "0 of 2 norm layers on the operator" in lines()[-1][1]


@pytest.mark.parametrize("mode", MODES)
def test_only_our_own_place_is_given_up(clean, monkeypatch, mode):
    """What two other plugins do to each other is as it is without us."""
    from vllm.model_executor import custom_op

    monkeypatch.setenv("HP_NORM_PLUGIN", mode)
    clean.register()
    custom_op.CustomOp.register_oot(_decorated_op_cls=TheirNorm, name="RMSNorm")
    with pytest.raises(AssertionError, match="Duplicate op name: RMSNorm"):
        RMSNorm.register_oot(ModelsOwnNorm)
    assert custom_op.op_registry_oot["RMSNorm"] is TheirNorm


@pytest.mark.parametrize("mode", MODES)
def test_gemmas_norm_alone_is_theirs(clean, load, lines, monkeypatch, mode):
    GemmaRMSNorm.register_oot(TheirGemmaNorm, name="GemmaRMSNorm")
    monkeypatch.setenv("HP_NORM_PLUGIN", mode)
    clean.register()
    load(RMSNorm, GemmaRMSNorm)
    assert warnings(lines) == [
        f"hp_norm: another plugin has replaced GemmaRMSNorm by {THEIR_GEMMA}; those layers are "
        "left to it"
    ]
    assert "1 of 2 norm layers on the operator" in lines()[-1][1]
    assert f"1 left: replaced by {THEIR_GEMMA}" in lines()[-1][1]


@pytest.mark.skipif(not detect().has_ir, reason="vLLM without IR")
def test_both_norms_are_theirs(clean, lines):
    RMSNorm.register_oot(TheirNorm, name="RMSNorm")
    GemmaRMSNorm.register_oot(TheirGemmaNorm, name="GemmaRMSNorm")
    clean.register()
    assert warnings(lines) == [
        f"hp_norm: another plugin has replaced RMSNorm by {THEIRS}, GemmaRMSNorm by {THEIR_GEMMA}; "
        "those layers are left to it"
    ]


@pytest.mark.parametrize("mode", MODES)
def test_our_classes_and_vllms_subclasses_are_not_foreign(clean, load, lines, monkeypatch, mode):
    """The IR adapter serves a model's own subclass of vLLM's norm, and the layer does not."""
    monkeypatch.setenv("HP_NORM_PLUGIN", mode)
    clean.register()
    load(RMSNorm, ModelsOwnNorm)
    assert warnings(lines) == []
    ours = {
        "ir": "2 of 2 norm layers on the operator",
        "layer": "1 of 2 norm layers on the operator; 1 left to vLLM: a subclass, which is not "
        "replaced",
    }[mode]
    assert f"hp_norm: ModuleList: {ours}" in lines()[-1][1]


@pytest.mark.skipif(not detect().has_ir, reason="vLLM without IR")
def test_a_models_own_subclass_stays_on_the_operator_beside_theirs(clean, load, lines):
    RMSNorm.register_oot(TheirNorm, name="RMSNorm")
    clean.register()
    load(RMSNorm, ModelsOwnNorm)
    assert "1 of 2 norm layers on the operator" in lines()[-1][1]

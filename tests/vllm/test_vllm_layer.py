"""The layer adapter: the right code runs, with the right numbers, for every kind of norm."""

import copy
import pickle

import pytest
import torch

from hp_norm_plugin import ops

BF16 = torch.bfloat16


@pytest.fixture
def on_layer(clean, monkeypatch):
    monkeypatch.setenv("HP_NORM_PLUGIN", "layer")
    clean.register()
    assert clean.registration().adapter == "layer"


@pytest.fixture
def calls(monkeypatch):
    """Count calls of the operators by name."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "hp_norm":
                self.names.append(func._opname)
            return func(*args, **(kwargs or {}))

    return Counter()


def config(custom_ops=(), **compilation):
    from vllm.config import CompilationConfig, VllmConfig

    return VllmConfig(
        compilation_config=CompilationConfig(custom_ops=list(custom_ops), **compilation)
    )


def build(name, vllm_config, hidden_size=1024, **kwargs):
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.layers import layernorm

    generator = torch.Generator().manual_seed(1)
    with set_current_vllm_config(vllm_config):
        module = getattr(layernorm, name)(hidden_size, eps=1e-5, **kwargs).to(BF16)
    with torch.no_grad():
        module.weight.copy_(torch.randn(hidden_size, generator=generator))
    return module


def inputs(hidden_size=1024):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(3, hidden_size, generator=generator).to(BF16) for _ in range(2)]


def test_rms_norm_runs_the_operator_under_inductor(on_layer, calls):
    """custom_ops is "none" there, so it is forward_native that must run it."""
    from hp_norm_plugin.vllm import layer

    module = build("RMSNorm", config())
    assert type(module) is layer.RMSNormLayer
    assert module._forward_method == module.forward_native
    x, residual = inputs()
    want = ops.fused_add_rms_norm(x, residual, module.weight.data, 1e-5)
    kept = x.clone()
    with calls:
        out, summed = module(x, residual)
        plain = module(x)
    assert calls.names == ["fused_add_rms_norm", "rms_norm"]
    assert torch.equal(out, want[0]) and torch.equal(summed, want[1])
    assert torch.equal(plain, ops.rms_norm(x, module.weight.data, 1e-5))
    assert torch.equal(x, kept)


def test_eager_mode_works_in_place(on_layer, calls):
    module = build("RMSNorm", config(mode=0))
    x, residual = inputs()
    want = ops.fused_add_rms_norm(x, residual, module.weight.data, 1e-5)
    with calls:
        out, summed = module(x, residual)
    assert calls.names == ["fused_add_rms_norm_"]
    assert out is x and summed is residual
    assert torch.equal(out, want[0]) and torch.equal(summed, want[1])


def test_plus_and_minus_rms_norm_mean_what_they_say(on_layer, calls):
    """register_oot renames the class; without the repair neither matches."""
    enabled = build("RMSNorm", config(["none", "+rms_norm"]))
    assert enabled._forward_method in (enabled.forward_cpu, enabled.forward_cuda)
    disabled = build("RMSNorm", config(["all", "-rms_norm"]))
    assert disabled._forward_method == disabled.forward_native
    x, residual = inputs()
    with calls:
        disabled(x, residual)
        assert calls.names == []
        enabled(x, residual)
        assert calls.names == ["fused_add_rms_norm"]


def test_variance_size_override_is_vllms(on_layer, calls):
    from vllm.model_executor.layers.layernorm import RMSNorm

    module = build("RMSNorm", config(), var_hidden_size=512)
    x, residual = inputs()
    with calls:
        out, _ = module(x.clone(), residual.clone())
    assert calls.names == []
    want, _ = RMSNorm.forward_native(module, x.clone(), residual.clone())
    assert torch.equal(out, want)


@pytest.mark.parametrize("passed", ["pass_weight", "pass_weight_add"])
def test_each_path_may_drop_the_weight_alone(on_layer, passed):
    module = build("RMSNorm", config())
    setattr(module, passed, False)
    x, residual = inputs()
    plain_weight = None if passed == "pass_weight" else module.weight.data
    fused_weight = module.weight.data if passed == "pass_weight" else None
    assert torch.equal(module(x), ops.rms_norm(x, plain_weight, 1e-5))
    out, _ = module(x, residual)
    assert torch.equal(out, ops.fused_add_rms_norm(x, residual, fused_weight, 1e-5)[0])


def test_gemma_adds_the_one_in_the_operator(on_layer, calls):
    module = build("GemmaRMSNorm", config(mode=0))
    x, residual = inputs()
    with calls:
        out, summed = module(x, residual)
        plain = module(x)
    assert calls.names == ["fused_add_rms_norm", "rms_norm"]
    weight = module.weight.data
    want = ops.fused_add_rms_norm(x, residual, weight, 1e-5, weight_offset=1.0)
    assert torch.equal(out, want[0]) and torch.equal(summed, want[1])
    assert torch.equal(plain, ops.rms_norm(x, weight, 1e-5, weight_offset=1.0))


def test_gemma_stays_with_inductor(on_layer, calls):
    module = build("GemmaRMSNorm", config())
    with calls:
        module(*inputs())
    assert calls.names == []


@pytest.mark.parametrize(
    ("name", "custom_ops"), [("GemmaRMSNorm", ["none"]), ("RMSNorm", ["none", "-rms_norm"])]
)
def test_a_layer_that_stands_aside_is_vllms_own(on_layer, name, custom_ops):
    """Nothing of ours is traced, so the graph is the one without the plugin."""
    from vllm.model_executor.layers import layernorm

    module = build(name, config(custom_ops))
    assert type(module) is getattr(layernorm, name)
    assert module._forward_method.__func__ is getattr(layernorm, name).forward_native


def pickled(module):
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_of_a_layer_that_stands_aside_does_too(on_layer, calls, copied):
    """Copying asks vLLM for the class by its name, and calls no __init__."""
    module = build("RMSNorm", config(["none", "-rms_norm"]))
    x, residual = inputs()
    want, _ = module(x.clone(), residual.clone())
    again = copied(module)
    with calls:
        got, _ = again(x.clone(), residual.clone())
        native, _ = again.forward_native(x.clone(), residual.clone())
    assert calls.names == []
    assert torch.equal(got, want) and torch.equal(native, want)


def test_gemma_in_a_graph_runs_on_the_operator_with_scope_all(on_layer, calls, monkeypatch):
    from hp_norm_plugin.vllm import layer

    monkeypatch.setattr(layer, "_scope", "all")
    module = build("GemmaRMSNorm", config())
    with calls:
        module(*inputs())
    assert calls.names == ["fused_add_rms_norm"]


def test_gemma_runs_on_the_operator_beside_the_ir_adapter_too(clean, calls):
    clean.register()
    assert clean.registration().adapter == "ir"
    module = build("GemmaRMSNorm", config(mode=0))
    with calls:
        module(*inputs())
    assert calls.names == ["fused_add_rms_norm"]


def test_a_subclass_is_left_alone(on_layer):
    """vLLM looks layers up by class name; a model's own subclass keeps its own code."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.layers.layernorm import RMSNorm

    class ModelsOwnNorm(RMSNorm):
        pass

    with set_current_vllm_config(config()):
        assert type(ModelsOwnNorm(64)) is ModelsOwnNorm


@pytest.mark.parametrize(
    ("width", "model_width", "scope", "why"),
    [
        (512, 512, "auto", "operator"),
        (128, 512, "auto", "128 wide (Inductor fuses it with its neighbours)"),
        (1536, 7168, "auto", "operator"),
        (1536, 7168, "fused", "no residual (HP_NORM_SCOPE=fused)"),
        (7168, 7168, "fused", "operator"),
        (128, 512, "all", "operator"),
    ],
)
def test_what_a_layer_is_counted_as_by_its_width(
    on_layer, make_config, monkeypatch, width, model_width, scope, why
):
    """A narrow model's own norms have a residual, and those run on the operator at any width."""
    from hp_norm_plugin.vllm import report

    monkeypatch.setenv("HP_NORM_SCOPE", scope)
    module = build("RMSNorm", config(), width)
    vllm_config = make_config(hidden_size=model_width)
    assert report.count_layers(module, vllm_config, "layer") == {why: 1}


def test_the_report_counts_layers_and_reasons(on_layer):
    from types import SimpleNamespace

    from hp_norm_plugin.vllm import report

    vllm_config = config()
    model = torch.nn.ModuleList(
        [build("RMSNorm", vllm_config, 1024), build("RMSNorm", vllm_config, 2048),
         build("RMSNorm", vllm_config, 128), build("GemmaRMSNorm", vllm_config, 1024),
         build("RMSNorm", vllm_config, 1024, var_hidden_size=512)]
    )  # fmt: skip
    stand_in = SimpleNamespace(
        compilation_config=vllm_config.compilation_config,
        parallel_config=vllm_config.parallel_config,
        model_config=SimpleNamespace(dtype=BF16, quantization=None, get_hidden_size=lambda: 1024),
    )
    assert report.describe("Model", report.count_layers(model, stand_in, "layer")) == (
        "hp_norm: Model: 2 of 5 norm layers on the operator; "
        "1 left to vLLM: 128 wide (Inductor fuses it with its neighbours); "
        "1 left to vLLM: converted weight (Inductor folds it into the norm); "
        "1 left to vLLM: variance_size_override"
    )

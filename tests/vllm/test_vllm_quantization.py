"""Which quantised models run on the operator, by what vLLM makes of their configurations."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from hp_norm_plugin.vllm import policy

LLAMA = Path(__file__).resolve().parents[2] / "examples" / "models" / "tiny-llama.json"
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
CHANNELS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
FP4 = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group",
       "group_size": 16}  # fmt: skip
INPUTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
MAY_FUSE = "compressed-tensors quantisation may fuse with the norm"


def group(target="Linear", weights=WEIGHTS, inputs=None, **more):
    return {"targets": [target], "weights": weights, "input_activations": inputs, **more}


def checkpoint(*groups, style="pack-quantized", **more):
    """What config.json of a compressed-tensors checkpoint has under quantization_config."""
    return {
        "quant_method": "compressed-tensors",
        "format": style,
        "config_groups": {f"group_{i}": g for i, g in enumerate(groups)},
        "ignore": ["lm_head"],
        **more,
    }


def compressed_tensors(*groups, **more):
    from vllm.model_executor.layers.quantization import get_quantization_config

    cls = get_quantization_config("compressed-tensors")
    return cls.from_config(checkpoint(*groups, **more))


@pytest.mark.parametrize(
    "groups",
    [
        [group()],
        [group(weights={**WEIGHTS, "num_bits": 8})],
        [group(), group("re:.*down_proj", weights=CHANNELS)],
        [group(format="pack-quantized")],
    ],
)
def test_packed_weights_alone_have_nothing_to_fuse(make_config, groups):
    config = make_config(
        quantization="compressed-tensors", quant_config=compressed_tensors(*groups)
    )
    assert policy.stand_aside(config) is None
    assert policy.stand_aside_as_provider(config) is None
    assert policy.stand_aside_as_layer(config) is None


@pytest.mark.parametrize(
    ("groups", "more"),
    [
        ([group(inputs=INPUTS)], {}),  # W4A8: packed, too
        ([group(weights=FP8, inputs={**FP8, "strategy": "token", "dynamic": True})],
         {"style": "float-quantized"}),
        ([group(), group("re:.*down_proj", inputs=INPUTS)], {}),  # one kind of layer is enough
        ([group(output_activations={**INPUTS, "strategy": "tensor", "dynamic": False})], {}),
        ([group(weights=FP8)], {"style": "float-quantized"}),  # W8A16: other kernels
        ([group(weights=FP4)], {"style": "nvfp4-pack-quantized"}),
        ([group(weights=FP4)], {}),
        ([group(), group("re:.*down_proj", weights=FP8, format="float-quantized")], {}),
        ([group()], {"style": "marlin-24"}),
        ([group()], {"style": None}),
        ([group()], {"transform_config": {"config_groups": {}}}),
        ([], {}),
    ],
    ids=["W4A8", "W8A8 FP8", "W4A16 and W4A8", "outputs", "W8A16 FP8", "W4A16 NVFP4",
         "W4A16 FP4, packed", "W4A16 and W8A16 FP8", "sparse", "no format", "transforms",
         "nothing"],
)  # fmt: skip
def test_whatever_else_compressed_tensors_has_is_left_alone(make_config, groups, more):
    config = make_config(
        quantization="compressed-tensors", quant_config=compressed_tensors(*groups, **more)
    )
    assert policy.stand_aside(config) == MAY_FUSE


@pytest.mark.parametrize("quant_config", [None, SimpleNamespace()])
def test_a_configuration_that_does_not_tell_is_left_alone(make_config, quant_config):
    config = make_config(quantization="compressed-tensors", quant_config=quant_config)
    assert policy.stand_aside(config) == MAY_FUSE


def test_a_configuration_without_an_entry_for_a_target_is_left_alone(make_config):
    quant_config = compressed_tensors(group())
    quant_config.target_scheme_map["re:.*down_proj"] = None
    config = make_config(quantization="compressed-tensors", quant_config=quant_config)
    assert policy.stand_aside(config) == MAY_FUSE


@pytest.mark.parametrize(
    ("name", "value"),
    [("VLLM_MARLIN_INPUT_DTYPE", "int8"), ("VLLM_HUMMING_INPUT_QUANT_CONFIG", '{"dtype": "int8"}')],
)
@pytest.mark.parametrize("method", ["compressed-tensors", "awq_marlin"])
def test_inputs_that_the_user_has_quantised(make_config, monkeypatch, method, name, value):
    from vllm import envs

    if name not in envs.environment_variables:
        pytest.skip(f"this vLLM does not know {name}")
    config = make_config(quantization=method, quant_config=compressed_tensors(group()))
    assert policy.stand_aside(config) is None
    monkeypatch.setenv(name, value)
    assert policy.stand_aside(config) == f"{method} quantisation may fuse with the norm"


@pytest.mark.parametrize("method", ["compressed-tensors", "awq_marlin"])
def test_layers_that_vllm_quantises_while_it_loads_them(make_config, method):
    quant_config = compressed_tensors(group())
    quant_config.online_quantization_config = object()
    config = make_config(quantization=method, quant_config=quant_config)
    assert policy.stand_aside(config) == f"{method} quantisation may fuse with the norm"


@pytest.fixture
def engine_config(tmp_path, monkeypatch):
    """VllmConfig of a tiny Llama with a quantization_config, made as an engine makes it."""
    from vllm.engine.arg_utils import EngineArgs

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def build(quantization):
        llama = json.loads(LLAMA.read_text())
        if quantization is not None:
            llama["quantization_config"] = quantization
        (tmp_path / "config.json").write_text(json.dumps(llama))
        arguments = {"model": str(tmp_path), "load_format": "dummy", "skip_tokenizer_init": True}
        return EngineArgs(**arguments, max_model_len=64).create_engine_config()

    return build


@pytest.mark.parametrize(
    ("quantization", "first"),
    [(None, "hp_norm"), (checkpoint(group()), "hp_norm"),
     (checkpoint(group(inputs=INPUTS), style="int-quantized"), "native")],
    ids=["bf16", "W4A16", "W4A8"],
)  # fmt: skip
def test_vllm_has_read_the_checkpoint_when_it_asks_for_the_priority(
    clean, engine_config, quantization, first
):
    clean.register()
    if clean.registration().adapter != "ir":
        pytest.skip("this vLLM has no IR")
    config = engine_config(quantization)
    assert config.kernel_config.ir_op_priority.fused_add_rms_norm[0] == first

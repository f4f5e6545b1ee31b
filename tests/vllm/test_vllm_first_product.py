"""Where the products of a loaded model begin: which layers are timed, and what the times decide."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hp_norm_plugin import first_gpc
from hp_norm_plugin.vllm import first_product, report

linear = pytest.importorskip("vllm.model_executor.layers.linear")

HIDDEN = 64
DEVICE = torch.device("cpu")  # its index, None, stands for a GPU's
US = {1: 60.0, 2: 61.0, 3: 58.0, 4: 57.0, 5: 66.0, 6: 59.0, 7: 62.0}


class Product(linear.LinearBase):
    """A linear layer without vLLM's distributed state."""

    def __init__(self, inputs, outputs, shards=1):
        torch.nn.Module.__init__(self)
        self.input_size, self.output_size = inputs, outputs * shards
        self.output_size_per_partition = outputs
        self.weight = torch.nn.Parameter(torch.randn(outputs, inputs))
        self.quant_method = SimpleNamespace(apply=lambda layer, x: x @ layer.weight.T)


def block(shards=1):
    return torch.nn.ModuleDict(
        {
            "qkv": Product(HIDDEN, 96),
            "o": Product(48, HIDDEN),
            "gate_up": Product(HIDDEN, 256, shards),
            "down": Product(128, HIDDEN),
        }
    )


@pytest.fixture
def model():
    return torch.nn.ModuleList(block() for _ in range(3))


@pytest.fixture
def config(make_config):
    config = make_config(hidden_size=HIDDEN)
    config.model_config.dtype = torch.float32
    return config


@pytest.fixture
def timed(monkeypatch, clean):
    """The GPU's part: what was set, and for what the clock was asked."""
    record = SimpleNamespace(set=[], rows=[], us=dict(US))

    def graph_times(run, numbers):
        run(3)
        record.rows.append(list(numbers))
        return [record.us[number] * len(record.steps) for number in numbers]

    times = first_gpc.times

    def times_of(steps, residual):
        record.steps = steps
        record.rows.append(residual.shape)
        return times(steps, residual)

    monkeypatch.setattr(first_gpc, "set_first_gpc", lambda gpc, device: record.set.append(gpc))
    monkeypatch.setattr(first_gpc, "is_set_by", lambda n, hidden, dtype, device: hidden == HIDDEN)
    monkeypatch.setattr(first_gpc, "graph_times", graph_times)
    monkeypatch.setattr(first_gpc, "times", times_of)
    monkeypatch.setattr(first_product, "_choices", {})
    return record


def test_the_layers_are_those_around_the_norm_with_the_most_behind_it(model):
    pairs = first_product.layers_around_norms(model, HIDDEN, DEVICE)
    assert pairs == [(layers["o"], layers["gate_up"]) for layers in model]


def test_layers_are_compared_by_their_size_on_this_gpu(model):
    for layers in model:
        layers["qkv"].output_size = 4096  # of all GPUs
    assert first_product.layers_around_norms(model, HIDDEN, DEVICE)[0][1] is model[0]["gate_up"]


def test_a_single_layer_of_an_extreme_size_is_passed_over(model):
    """A first dense block before blocks of experts; a projector before the language model."""
    model.append(torch.nn.ModuleList([Product(HIDDEN, 4096), Product(8, HIDDEN)]))
    pairs = first_product.layers_around_norms(model, HIDDEN, DEVICE)
    assert pairs[0] == (model[0]["o"], model[0]["gate_up"]) and len(pairs) == 3


@pytest.mark.parametrize("away", ["elsewhere", "mapped"])
def test_weights_that_are_not_on_the_gpu_are_passed_over(model, away):
    layer = model[0]["gate_up"]
    if away == "elsewhere":
        layer.weight = torch.nn.Parameter(layer.weight.to("meta"))
    else:
        layer.weight._vllm_is_uva_offloaded = True
    pairs = first_product.layers_around_norms(model, HIDDEN, DEVICE)
    assert [behind for _, behind in pairs] == [model[1]["gate_up"], model[2]["gate_up"]]


def test_no_more_layers_than_the_time_is_worth():
    model = torch.nn.ModuleList(block() for _ in range(20))
    assert len(first_product.layers_around_norms(model, HIDDEN, DEVICE)) == first_product.MOST_STEPS


def matrix(inputs, outputs):
    """The weight of a layer, the same in every call."""
    generator = torch.Generator().manual_seed(outputs)
    return torch.randn(outputs, inputs, generator=generator) / inputs**0.5


@pytest.fixture
def replicated(monkeypatch):
    """Return a function that builds a linear layer as vLLM does, on one GPU."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor import parameter

    # Its weights ask for the rank whatever the layer says, and nothing is distributed here.
    monkeypatch.setattr(parameter, "get_tensor_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(parameter, "get_tensor_model_parallel_world_size", lambda: 1)

    def build(inputs, outputs, device, dtype):
        with set_current_vllm_config(VllmConfig()), torch.device(device):
            layer = linear.ReplicatedLinear(
                inputs, outputs, bias=False, params_dtype=dtype, disable_tp=True
            )
        layer.weight.data.copy_(matrix(inputs, outputs))
        layer.quant_method.process_weights_after_loading(layer)  # a CPU's may pack it, and drop it
        return layer

    return build


def test_a_step_is_what_vllms_own_layers_compute(replicated):
    sizes = ((32, HIDDEN), (HIDDEN, 128))
    before, behind = (replicated(*size, "cpu", torch.float32) for size in sizes)
    step = first_product._step((before, behind), 3, torch.float32, DEVICE)
    x = step.before()
    assert x.shape == (3, HIDDEN)
    torch.testing.assert_close(step.behind(x), x @ matrix(HIDDEN, 128).T)


@pytest.mark.gpu
def test_a_gpu_times_vllms_own_layers_and_keeps_the_fastest(replicated, make_config, monkeypatch):
    device = torch.device("cuda", torch.cuda.current_device())
    dtype = torch.bfloat16
    if not first_gpc.is_set_by(1, 4096, dtype, device):
        pytest.skip("no norm decides it on this GPU")
    monkeypatch.setattr(first_product, "_choices", {})
    blocks = [
        torch.nn.ModuleDict(
            {
                "o": replicated(4096, 4096, device, dtype),
                "gate_up": replicated(4096, 28672, device, dtype),
            }
        )
        for _ in range(3)
    ]
    try:
        choice = first_product.choose(torch.nn.ModuleList(blocks), make_config(), device)
    finally:
        first_gpc.set_first_gpc(0, device)
    assert choice.gpc == min(choice.us, key=choice.us.get) and list(choice.us) == list(range(1, 8))
    # 270 MB of matrices: 50 us and more at 5 TB/s.
    assert all(50.0 < us < 1000.0 for us in choice.us.values()), choice.describe()


def test_a_single_block_is_not_timed():
    assert first_product.layers_around_norms(block(), HIDDEN, DEVICE) == []


def test_the_fastest_is_set(timed, model, config):
    choice = first_product.choose(model, config, DEVICE)
    assert choice.gpc == 4 and timed.set[-1] == 4
    assert [rows for rows in timed.rows if isinstance(rows, torch.Size)] == [
        (n, HIDDEN) for n in first_product.NUM_TOKENS
    ]
    assert choice.us == pytest.approx(US)
    assert choice.describe() == (
        "products behind a norm begin at GPC 4: 57.0 us with the norm and the product before it, "
        "66.0 from GPC 5"
    )
    assert first_product.choices() == [choice.describe()]


@pytest.mark.parametrize("quantization", [None, "awq_marlin"])
def test_a_draft_model_changes_nothing(timed, model, config, quantization):
    config.model_config.quantization = quantization
    first_product.choose(model, config, DEVICE)
    before = list(timed.set)
    config.model_config.quantization = None
    assert first_product.choose(model, config, DEVICE) is None
    assert timed.set == before


def test_a_width_that_decides_nothing_is_not_timed(timed, model, config):
    config.model_config.get_hidden_size = lambda: 2 * HIDDEN
    assert first_product.choose(model, config, DEVICE) is None
    assert timed.set == timed.rows == first_product.choices() == []


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("enable_sleep_mode", True, "vLLM's cuMem allocator"),
        ("enable_cumem_allocator", True, "vLLM's cuMem allocator"),
        ("quantization", "awq_marlin", "quantised weights"),
    ],
)
def test_what_was_not_tried_is_left_alone(timed, model, config, name, value, why):
    setattr(config.model_config, name, value)
    said = first_product.choose(model, config, DEVICE).describe()
    assert said == f"products behind a norm are not timed: {why}"
    assert timed.set == timed.rows == [] and first_product.choices() == [said]


def test_a_model_without_such_layers_is_told(timed, config):
    said = first_product.choose(torch.nn.Linear(HIDDEN, 4), config, DEVICE).describe()
    assert said.startswith("products behind a norm are not timed: no blocks") and timed.set == []


@pytest.mark.parametrize("quantization", [None, "awq_marlin"])
def test_the_users_gpc_is_set_without_timing(timed, model, config, monkeypatch, quantization):
    monkeypatch.setenv("HP_NORM_FIRST_GPC", "6")
    config.model_config.quantization = quantization
    choice = first_product.choose(model, config, DEVICE)
    assert choice.gpc == 6 and timed.set == [6] and timed.rows == []
    assert choice.describe() == "products behind a norm begin at GPC 6 (HP_NORM_FIRST_GPC)"


def test_a_timing_that_fails_is_not_repeated_for_a_draft_model(timed, model, config, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(first_gpc, "graph_times", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        first_product.choose(model, config, DEVICE)
    assert first_product.choose(model, config, DEVICE) is None
    assert timed.set == [0] and first_product.choices() == []


@pytest.fixture
def load(clean, config, monkeypatch):
    """Load a model as on a GPU, `choose` being given; returns the log's lines."""
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    def run(choose, lines, counts=None):
        class Loader:
            def load_model(self, vllm_config):
                return torch.nn.Module()

        counts = {"operator": 3} if counts is None else counts
        monkeypatch.setattr(report, "count_layers", lambda *_: counts)
        monkeypatch.setattr(first_product, "choose", choose)
        report._wrap(Loader, "ir")
        assert isinstance(Loader().load_model(config), torch.nn.Module)
        return [text for _, text in lines()]

    return run


def test_the_choice_is_logged_when_a_model_is_loaded(load, lines):
    said = load(lambda model, config, device: first_product.Choice(device.index + 5, US), lines)
    assert said[-1].startswith("hp_norm: products behind a norm begin at GPC 5: 66.0 us")


def test_a_failure_leaves_the_model_and_says_so(load, lines):
    def choose(*_):
        raise RuntimeError("out of memory")

    assert load(choose, lines)[-1] == "hp_norm: products behind a norm begin where they happen to"


def test_why_a_model_was_not_timed_is_logged(load, lines):
    said = load(lambda *_: first_product.Choice(None, why_not="it is small"), lines)
    assert said[-1] == "hp_norm: products behind a norm are not timed: it is small"


@pytest.mark.parametrize("counts", [{}, {"converted weight": 3}])
def test_a_model_that_keeps_vllms_norm_is_not_timed(load, lines, counts):
    asked = []
    load(lambda *arguments: asked.append(arguments), lines, counts)
    assert asked == []


def test_a_model_whose_norms_go_with_the_all_reduce_is_not_timed(load, lines, config):
    config.parallel_config.tensor_parallel_size = 2
    config.compilation_config.pass_config.fuse_allreduce_rms = True
    asked = []
    said = load(lambda *arguments: asked.append(arguments), lines)
    assert asked == []
    assert said[-1].endswith("; those behind an all-reduce are vLLM's where it fuses them")

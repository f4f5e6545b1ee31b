"""What a profile says of the kernels of a step, and weights that are drawn.

The profiler itself runs in the engine tests.
"""

from types import SimpleNamespace

import pytest
import torch

from hp_norm_plugin.vllm import probe

CUDA, CPU = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU


def event(name, start, device=CUDA):
    return SimpleNamespace(
        name=name, device_type=device, time_range=SimpleNamespace(start=start, end=start + 1)
    )


def test_a_kernel_pays_until_the_next_one_starts():
    events = [
        event("product", 30),
        event("norm", 10),
        event("launch", 12, CPU),
        event("norm", 50),
        event("product", 54),
    ]
    assert probe.until_next(events) == {"norm": 20 + 4, "product": 20}


def test_no_kernels_no_times():
    assert probe.until_next([event("launch", 1, CPU)]) == {}


@pytest.mark.parametrize(
    ("architecture", "mean"), [("LlamaForCausalLM", 1.0), ("Gemma3ForCausalLM", 0.0)]
)
def test_dummy_weights_are_filled_as_a_trained_models_would_be(make_config, architecture, mean):
    """The same for one seed; what is quantised stays as it is."""

    def fill(seed):
        model = torch.nn.Module()
        for name, shape in (("norm", (4096,)), ("product", (64, 64)), ("bias", (64,))):
            value = torch.full(shape, 9.0, dtype=torch.bfloat16)
            model.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
        scale = torch.nn.Parameter(torch.ones(2, 2), requires_grad=False)
        model.register_parameter("scale", scale)
        worker = probe.WorkerProbe()
        worker.vllm_config = make_config(architecture=architecture)
        worker.model_runner = SimpleNamespace(get_model=lambda: model)
        assert worker.hp_norm_fill_weights(seed) == 2
        return dict(model.named_parameters())

    first, again, other = fill("3"), fill(3), fill(4)
    assert first["norm"].float().mean().item() == pytest.approx(mean, abs=0.02)
    assert first["norm"].float().std().item() == pytest.approx(0.1, rel=0.1)
    assert first["product"].float().std().item() == pytest.approx(0.02, rel=0.1)
    assert (first["bias"] == 9).all() and (first["scale"] == 1).all()
    for name in ("norm", "product"):
        assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])

"""The chain of products and norms, on the CPU: what is run, what is subtracted, who is left out."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console

from benchmarks import context, decoder, environment, peers, providers, stopwatch
from benchmarks.provider import Provider
from benchmarks.shapes import Case

CASE = Case("fused_add", "bf16", 2, 64)
CPU = torch.device("cpu")


class StepClock:
    """Each replay takes a microsecond for each norm and each product that it ran."""

    def __init__(self):
        self.steps = 0

    def timed(self, replay):
        before = self.steps
        replay()
        steps = self.steps - before
        return lambda: float(steps)

    def synchronize(self):
        pass


@pytest.fixture
def clock(monkeypatch):
    counted = StepClock()
    product = decoder.Chain._product

    def counting(self, *arguments):
        counted.steps += 10
        return product(self, *arguments)

    monkeypatch.setattr(decoder.Chain, "_product", counting)
    return counted


def norm_of_cost(clock, cost):
    def norm(x, residual, weight):
        clock.steps += cost
        return x, residual

    return norm


def test_what_a_norm_adds_is_the_difference_to_the_products_alone(clock):
    chain = decoder.Chain(CASE, CPU)
    calls = {"dear": norm_of_cost(clock, 7), "cheap": norm_of_cost(clock, 3)}
    alone, found = context.measure(chain, calls, 3, clock)
    assert alone == 20  # two products a norm
    assert [(added.name, added.us, added.noise) for added in found] == [
        ("dear", 7, 0),
        ("cheap", 3, 0),
    ]


def test_the_noise_is_what_graphs_of_the_same_calls_differ_by(clock, monkeypatch):
    """A graph's number of microseconds more, by its place: the standard error between graphs."""
    captured = decoder.Chain.capture
    places = iter(range(100))

    def capture(self, norm):
        replay, place = captured(self, norm), next(places)

        def slower():
            replay()
            clock.steps += 16 * place

        return slower

    monkeypatch.setattr(decoder.Chain, "capture", capture)
    chain = decoder.Chain(CASE, CPU)
    _, (one, two) = context.measure(
        chain, {"one": norm_of_cost(clock, 5), "two": norm_of_cost(clock, 5)}, 2, clock
    )
    assert one.us != two.us and abs(one.us - two.us) < 4 * (one.noise + two.noise)
    assert 0.5 < one.noise < 4  # 12 places, a microsecond a norm apart


def test_every_norm_of_every_layer_is_called_with_its_own_weight(clock):
    chain = decoder.Chain(CASE, CPU)
    seen = []

    def norm(x, residual, weight):
        assert x.shape == residual.shape == (2, 64)
        seen.append(weight.data_ptr())
        return None

    chain.capture(norm)()
    assert len(seen) == len(set(seen)) == decoder.LAYERS * decoder.NORMS_PER_LAYER


def test_attention_and_the_gate_stand_between_the_products(clock):
    """The layer of a Llama without rotary embedding, against plain PyTorch."""
    case = Case("fused_add", "fp32", 3, 64)
    chain = decoder.Chain(case, CPU, past=5)
    chain.capture(None)()
    x = chain.x
    for layer in chain.layers:
        queries = (x @ layer.qkv)[:, :64].view(3, 4, 1, 16)
        keys, values = (one.repeat_interleave(4, dim=1) for one in (layer.keys, layer.values))
        weights = (queries @ keys.transpose(-1, -2) / 16**0.5).softmax(-1)
        x = (weights @ values).reshape(3, 64) @ layer.out
        gate, up = (x @ layer.gate_up).chunk(2, dim=1)
        x = (torch.nn.functional.silu(gate) * up) @ layer.down
    torch.testing.assert_close(chain.narrow[1], x)


@pytest.mark.parametrize("in_place", [True, False])
def test_the_residual_is_handed_on(clock, in_place):
    chain = decoder.Chain(CASE, CPU)
    sums = []

    def norm(x, residual, weight):
        sums.append(residual.float().sum().item())
        if in_place:
            residual.fill_(len(sums))
            return None
        return x, torch.full_like(residual, len(sums))

    chain.capture(norm)()
    assert sums[1:] == [128.0 * count for count in range(1, len(sums))]


def test_a_provider_that_raises_is_named_and_left_out(clock):
    def broken(case):
        raise RuntimeError("no kernel")

    ours = providers.load(providers.OURS, CPU)
    loaded = [ours, Provider("broken", "1", broken)]
    console = Console(record=True, width=120)
    rows = context.run_case(CASE, loaded, environment.describe(CPU), CPU, 2, clock, console)
    assert [(row.provider, row.protocol) for row in rows] == [("hp_norm", "context")]
    assert "broken: RuntimeError: no kernel" in console.export_text()


def test_without_a_gpu_it_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert context.main(["--out", str(tmp_path / "x.csv")]) == 2
    assert "no CUDA device" in capsys.readouterr().out


def test_the_real_clock_and_operator_run(tmp_path):
    ours = providers.load(providers.OURS, CPU)
    console = Console(record=True, width=120)
    rows = context.run_case(
        CASE, [ours], environment.describe(CPU), CPU, 2, stopwatch.CpuClock(), console
    )
    assert [row.protocol for row in rows] == ["context"] and "hp_norm" in console.export_text()
    rows = context.run_case(
        CASE, [ours], environment.describe(CPU), CPU, 2, stopwatch.CpuClock(), console, past=3
    )
    assert [row.protocol for row in rows] == ["context, 3 past"]


def test_inductor_in_place_writes_the_formula_over_its_inputs(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    inductor = Provider("inductor", "1", lambda _: None)
    in_place = context.overwriting(inductor)
    assert in_place.name == "inductor, in place"
    x, residual = torch.randn(2, 64).bfloat16(), torch.randn(2, 64).bfloat16()
    weight = torch.rand(64).bfloat16()
    wanted = peers.native(x, residual, weight)
    assert in_place.bind(CASE)(x, residual, weight) is None
    torch.testing.assert_close((x, residual), wanted, rtol=0, atol=0)

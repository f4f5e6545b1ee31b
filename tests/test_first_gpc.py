"""Where the product behind a norm begins, without a GPU: a library and a clock that write."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hp_norm_plugin import first_gpc, library
from hp_norm_plugin.first_gpc import Step

DEVICE = torch.device("cuda", 3)


@pytest.fixture
def was_set(monkeypatch):
    """Every (device, GPC) that the CUDA library was told."""
    told = []

    class Library:
        @staticmethod
        def hp_norm_set_first_gpc(device: int, gpc: int) -> None:
            told.append((device, gpc))

    status = dataclasses.replace(library.library_status(), cuda_loaded=True)
    monkeypatch.setattr(library, "native_library", lambda path: Library)
    monkeypatch.setattr(library, "library_status", lambda: status)
    return told


def test_the_library_is_told_device_and_gpc(was_set):
    first_gpc.set_first_gpc(7, DEVICE)
    first_gpc.set_first_gpc(0, 1)
    assert was_set == [(3, 7), (1, 0)]


@pytest.mark.parametrize("gpc", [-1, 8])
def test_another_gpc_is_refused(was_set, gpc):
    with pytest.raises(ValueError, match=f"set_first_gpc: gpc: must be 0 to 7, got {gpc}"):
        first_gpc.set_first_gpc(gpc, DEVICE)
    assert was_set == []


@pytest.mark.parametrize("device", [torch.device("cuda"), torch.device("cpu", 0), 64, -1])
def test_another_device_is_refused(was_set, device):
    rule = f"must be a CUDA device with an index below 64, got {device}"
    with pytest.raises(ValueError, match=f"set_first_gpc: device: {rule}"):
        first_gpc.set_first_gpc(1, device)
    assert was_set == []


def test_a_library_that_is_not_loaded_is_told(monkeypatch):
    status = dataclasses.replace(library.library_status(), cuda_loaded=False, cuda_error="no nvcc")
    monkeypatch.setattr(library, "library_status", lambda: status)
    with pytest.raises(RuntimeError, match="set_first_gpc: no nvcc"):
        first_gpc.set_first_gpc(1, DEVICE)


@pytest.mark.parametrize(
    ("num_tokens", "hidden_size", "arch", "decides"),
    [(1, 4096, "sm_90", True), (32, 8192, "sm_90", True), (33, 4096, "sm_90", False),
     (1, 2048, "sm_90", False), (1, 16384, "sm_90", False), (1, 4096, "sm_100", False)],
)  # fmt: skip
def test_which_norms_decide(num_tokens, hidden_size, arch, decides):
    assert first_gpc.is_set_by(num_tokens, hidden_size, torch.bfloat16, arch) is decides


def steps(seen, number):
    """As many steps, which write down what they see."""
    x = torch.full((2, 64), 3.0)

    def step(name):
        return Step(lambda: x, lambda out: seen.append((name, out)))

    return [step(name) for name in range(number)]


def test_each_candidate_is_set_and_timed_on_every_step(monkeypatch):
    now, seen, timed = [], [], {}
    monkeypatch.setattr(first_gpc, "set_first_gpc", lambda gpc, device: now.append(gpc))

    def clock(run, numbers):
        for number in numbers:
            before = len(seen)
            run(number)
            timed[now[-1]] = [name for name, _ in seen[before:]]
        return [10.0 * number for number in numbers]

    monkeypatch.setattr(first_gpc, "graph_times", clock)
    got = first_gpc.times(steps(seen, 5), torch.full((2, 64), 1.0))
    assert got == {gpc: 2.0 * gpc for gpc in range(1, 8)}
    assert timed == {gpc: [0, 1, 2, 3, 4] for gpc in range(1, 8)}
    assert now[-1] == 0
    want = torch.ones(2, 64)  # a norm of rows of fours
    assert all(torch.equal(out.round(decimals=4), want) for _, out in seen)


def test_a_clock_that_fails_leaves_the_default(monkeypatch):
    now = []
    monkeypatch.setattr(first_gpc, "set_first_gpc", lambda gpc, device: now.append(gpc))

    def clock(run, numbers):
        run(4)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(first_gpc, "graph_times", clock)
    with pytest.raises(RuntimeError, match="out of memory"):
        first_gpc.times(steps([], 2), torch.zeros(2, 64))
    assert now == [4, 0]


@pytest.fixture
def cuda():
    """The device of a GPU on which a norm decides where the next grid begins."""
    if not first_gpc.is_set_by(1, 4096, torch.bfloat16, "cuda"):
        pytest.skip("no norm decides it on this GPU")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.gpu
def test_steps_are_timed_on_a_gpu_and_other_graphs_stay_whole(cuda):
    """What a graph captured before points to, cuBLAS's workspace too, must outlive the timing."""
    kind = {"device": cuda, "dtype": torch.bfloat16}
    before, behind = torch.randn(4096, 4096, **kind), torch.randn(4096, 28672, **kind)
    x, residual = torch.randn(8, 4096, **kind), torch.randn(8, 4096, **kind)
    torch.mm(x, before)
    other = torch.cuda.CUDAGraph()
    with torch.cuda.graph(other):
        product = torch.mm(x, before)  # few rows, many terms: split, with sums in a workspace
    step = Step(lambda: torch.mm(x, before), lambda out: torch.mm(out, behind))

    us = first_gpc.times([step, step], residual)

    assert list(us) == list(first_gpc.CANDIDATES)
    # The matrices are 270 MB: 50 us and more at 5 TB/s, and no step takes a millisecond.
    assert all(30.0 < one < 1000.0 for one in us.values()), us
    x.normal_()
    want = torch.mm(x, before)
    other.replay()
    assert torch.equal(product, want)


@pytest.mark.gpu
def test_a_stream_that_still_writes_the_weights_is_waited_for(cuda):
    """vLLM loads a model on the current stream, and the timing has one of its own."""
    flag = torch.zeros(1, device=cuda)
    seen = torch.zeros(1, device=cuda)
    torch.cuda._sleep(200_000_000)  # 0.1 s
    flag.fill_(1.0)
    first_gpc.graph_times(lambda _: seen.copy_(flag), [1])
    assert seen.item() == 1.0

"""Engines of served models: how they start, and what one measures and profiles."""

import contextlib
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("rich", reason="examples need rich")
from serving import children, engine  # noqa: E402


@pytest.mark.parametrize(("batch", "queued"), [(2, 1), (1, 2)])
def test_a_batch_is_timed_by_its_last_request(monkeypatch, batch, queued):
    """A fake engine whose prefill takes two steps; its second request starts a step late."""
    clock = iter([0.0, 5.0, 6.0, 6.1, 6.2, 6.3])
    monkeypatch.setattr(engine.time, "perf_counter", lambda: next(clock))
    fake_vllm = SimpleNamespace(SamplingParams=lambda **kwargs: kwargs)
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm)

    class FakeEngine:
        def __init__(self):
            self.names, self.steps = [], 0

        def add_request(self, name, prompt, params):
            self.names.append(name)

        def has_unfinished_requests(self):
            return self.steps < 5

        def step(self):
            self.steps += 1
            counts = {self.names[0]: min(self.steps, 4), self.names[1]: self.steps - 1}
            return [
                SimpleNamespace(request_id=name, outputs=[SimpleNamespace(token_ids=range(count))])
                for name, count in counts.items()
                if count
            ]

    measured = engine.Engine.__new__(engine.Engine)
    measured.requests, measured.vocab_size = 0, 100
    measured.llm = SimpleNamespace(llm_engine=FakeEngine())
    result = measured.measure(batch=batch, input_len=3, output_len=4, seed=0, queued=queued)
    assert result["first_token_s"] == 6.0 / queued
    assert result["all_tokens_s"] == 6.3 / queued
    assert result["tokens"] == [[0, 1, 2, 3], [0, 1, 2, 3]]


def test_a_profile_is_of_the_decode_steps_alone():
    """What only a first profile has is in none of the two that are subtracted."""
    generated = []

    def rpc(method):
        if method == "hp_norm_profile_start":
            return None
        kernel = {"name": "norm", "count": 5 * generated[-1], "time_us": 2.0 * generated[-1]}
        once = {"name": "set up", "count": 1, "time_us": 900.0}
        return [[kernel, once] if len(generated) == 1 else [kernel]]

    profiled = engine.Engine.__new__(engine.Engine)
    profiled.vocab_size = 100
    profiled.llm = SimpleNamespace(collective_rpc=rpc)
    profiled._generate = lambda prompts, tokens: generated.append(tokens)
    result = profiled.profile(batch=1, input_len=3, output_len=17, seed=0)
    assert result["steps"] == 16
    (kernel,) = result["kernels"]
    assert (kernel["name"], kernel["count"], kernel["time_us"]) == ("norm", 80, 32.0)

    generated.clear()
    result = profiled.profile(batch=1, input_len=3, output_len=1, seed=0)
    assert generated == [1, 1] and result["steps"] == 1, "the prefill, the second time"
    (kernel,) = result["kernels"]
    assert (kernel["name"], kernel["count"], kernel["time_us"]) == ("norm", 5, 2.0)


@pytest.mark.parametrize(
    ("gpu", "one_cache", "order"),
    [
        (True, False, "start a, start b, start c, ready a, ready b, ready c"),
        (True, True, "start a, ready a, start b, start c, ready b, ready c"),
        (False, True, "start a, ready a, pause a, start b, ready b, pause b, start c, ready c, pa"),
    ],
)
def test_the_first_of_one_cache_starts_alone(gpu, one_cache, order):
    """It compiles; the others are to find what it wrote."""
    seen = []

    class Child(contextlib.nullcontext):
        kind = "engine"

        def __enter__(self):
            seen.append(f"start {self.name}")
            return self

        def wait_until_ready(self, timeout, tick):
            seen.append(f"ready {self.name}")

        def pause(self):
            seen.append(f"pause {self.name}")

    engines = []
    for name in "abc":
        engines.append(Child())
        engines[-1].name = name
    args = SimpleNamespace(gpu=gpu, one_cache=one_cache)
    with contextlib.ExitStack() as stack, children.progress_bar() as progress:
        assert list(children.start_all(stack, iter(engines), args, progress)) == ["a", "b", "c"]
    assert ", ".join(seen).startswith(order)

"""The graph for few tokens runs first where vLLM runs the model on nothing, with many tokens."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hp_norm_plugin.vllm import first_run, report, token_ranges

backends = pytest.importorskip(first_run.BACKEND, reason="this vLLM compiles no ranges")
forward_context = pytest.importorskip("vllm.forward_context")

LAST, MOST = token_ranges.LAST, 8192
FEW, MANY, ONE = (1, LAST), (LAST + 1, MOST), (8, 8)
NOTHING, REAL = SimpleNamespace(attn_metadata=None), SimpleNamespace(attn_metadata={"layer": 1})


@pytest.fixture
def wrapped(clean):
    """vLLM's own class, wrapped; `clean` undoes it."""
    first_run._wrap(backends.PiecewiseBackend)
    return backends.PiecewiseBackend


def piece(backend, fail=False):
    """A piece of a model as vLLM has it when its graphs are compiled, and the list of its calls."""
    from vllm.config.utils import Range

    calls = []

    def graph(name):
        def run(num_tokens, x):
            calls.append((name, num_tokens))
            if fail and name == FEW:
                raise RuntimeError("out of memory")
            return x + 1

        return SimpleNamespace(runnable=run, compiled=True, compile_range=Range(*name))

    made = backend.__new__(backend)
    made.sym_shape_indices, made.compile_sizes = [0], [8]
    made.range_entries = {Range(*name): graph(name) for name in (ONE, FEW, MANY)}
    made.compile_ranges = [Range(*FEW), Range(*MANY)]
    return made, calls


def call(made, num_tokens, context):
    with forward_context.override_forward_context(context):
        return made(num_tokens, torch.zeros(2))


def test_it_runs_once_and_before_the_call(wrapped):
    made, calls = piece(wrapped)
    assert torch.equal(call(made, MOST, NOTHING), torch.ones(2))
    assert calls == [(FEW, MOST), (MANY, MOST)]
    call(made, MOST, NOTHING)
    call(made, LAST, NOTHING)
    assert calls[2:] == [(MANY, MOST), (FEW, LAST)]


@pytest.mark.parametrize(
    ("num_tokens", "context", "graph"),
    [(MOST, REAL, MANY), (MOST, None, MANY), (LAST, NOTHING, FEW), (8, NOTHING, ONE)],
)
def test_a_call_with_rows_or_with_few_is_left_alone(wrapped, num_tokens, context, graph):
    """Rows that are somebody's may be written over; and what few have chosen is chosen."""
    made, calls = piece(wrapped)
    call(made, num_tokens, context)
    call(made, MOST, NOTHING)
    assert calls == [(graph, num_tokens), (MANY, MOST)]


def test_a_piece_of_one_size_is_left_alone(wrapped):
    made, calls = piece(wrapped)
    made.sym_shape_indices = []
    made.range_entries = {span: made.range_entries[span] for span in made.compile_ranges[1:]}
    call(made, MOST, NOTHING)
    assert calls == [(MANY, MOST)]


def test_a_failure_is_told_once_and_the_call_runs(wrapped, lines):
    made, calls = piece(wrapped, fail=True)
    for _ in range(2):
        assert torch.equal(call(made, MOST, NOTHING), torch.ones(2))
    assert calls == [(FEW, MOST), (MANY, MOST), (MANY, MOST)]
    assert lines() == [("ERROR", f"hp_norm: {first_run.TIMED_WITH_FEW}")]


def test_the_class_is_wrapped_once(wrapped):
    once = wrapped.__call__
    first_run._wrap(wrapped)
    assert wrapped.__call__ is once


def is_wrapped():
    return hasattr(backends.PiecewiseBackend.__call__, "runs_few_first")


@pytest.fixture
def load(clean, make_config, monkeypatch):
    """Return a function that loads a model on a platform that says it is CUDA."""
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: True)
    monkeypatch.setattr(report, "_choose_first_gpc", lambda *_: None)

    def run(adapter, **kwargs):
        class Loader:
            def load_model(self, vllm_config):
                return torch.nn.Module()

        report._wrap(Loader, adapter)
        assert isinstance(Loader().load_model(make_config(**kwargs)), torch.nn.Module)

    return run


@pytest.mark.parametrize(
    ("adapter", "kwargs", "wraps"),
    [
        ("ir", {}, True),
        ("ir", {"hidden_size": token_ranges.WIDE}, False),
        ("layer", {}, False),
    ],
    ids=str,
)
def test_a_model_that_is_split_is_served_so(load, adapter, kwargs, wraps):
    load(adapter, **kwargs)
    assert is_wrapped() is wraps


def test_a_vllm_without_such_a_class_is_told_and_serves(load, lines, monkeypatch):
    with monkeypatch.context() as without:
        without.delattr(backends, "PiecewiseBackend")
        load("ir")
    assert lines()[-1] == ("ERROR", f"hp_norm: {first_run.TIMED_WITH_FEW}")
    assert not is_wrapped()

"""What a worker of `serve_llama.py swap` keeps, changes and times."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from serving import engine, swap_worker
from vllm import envs
from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper
from vllm.platforms import current_platform


class FakeLLM:
    """A vLLM whose requests gain a token a step, one of them a step later than the others."""

    def __init__(self):
        self.llm_engine = self
        self.tokens = {}
        self.calls = []
        self.steps = 0

    def add_request(self, name, prompt, params):
        self.tokens[name] = []
        self.most = params.max_tokens

    def step(self):
        self.steps += 1
        for index, tokens in enumerate(self.tokens.values()):
            if index or self.steps > 1:
                tokens.append(7)
        return [
            SimpleNamespace(request_id=name, outputs=[SimpleNamespace(token_ids=tokens)])
            for name, tokens in self.tokens.items()
        ]

    def has_unfinished_requests(self):
        return bool(self.tokens)

    def abort_request(self, names):
        for name in names:
            del self.tokens[name]

    def collective_rpc(self, method, args=()):
        self.calls.append((method, args, [len(tokens) for tokens in self.tokens.values()]))
        return [f"{method} of the first worker", "of the second"]


def test_a_graph_is_replayed_in_the_middle_of_its_requests():
    """So that attention reads what it reads in the median step."""
    fake = FakeLLM()
    served = engine.Engine.__new__(engine.Engine)
    served.llm, served.vocab_size, served.requests = fake, 100, 0
    seconds = served.replay(
        names=["off"], batch=2, input_len=4, output_len=12, seed=0, rounds=1, replays=1
    )
    assert seconds == "hp_norm_replay of the first worker"
    assert fake.calls == [("hp_norm_replay", (["off"], 2, 1, 1), [6, 7])] and fake.most == 12
    assert not fake.tokens, "aborted"
    served.watch(batch=2)
    assert served.watched() == "hp_norm_watched of the first worker"
    assert fake.calls[1:] == [("hp_norm_watch", (2,), []), ("hp_norm_watched", (), [])]


@dataclass(frozen=True)
class Size:
    """What vLLM's CUDA graphs are found by."""

    num_tokens: int


class FakeEvent:
    """The GPU's clock, a millisecond a replay. Times are there once something has waited for it."""

    now = 0
    waited = True

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = FakeEvent.now

    @classmethod
    def synchronize(cls):
        cls.waited = True

    def elapsed_time(self, stop):
        assert FakeEvent.waited
        return stop.at - self.at


@pytest.mark.parametrize("of_the_wrapper", [False, True], ids=["manager", "wrapper"])
def test_graphs_of_a_step_are_replayed_in_turn(monkeypatch, of_the_wrapper):
    """vLLM's newer model runner has the CUDA graphs by size, the older one wrapped in entries."""
    replayed = []

    def graphs(name):
        def replay():
            replayed.append(name)
            FakeEvent.now += 1

        graph = SimpleNamespace(replay=replay)
        entry = SimpleNamespace(cudagraph=graph) if of_the_wrapper else graph
        size, other = Size(8), Size(16)
        return swap_worker.Graphs([], {other: None, size: entry}, {}, "", {})

    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    worker = swap_worker.WorkerSwap()
    lengths = torch.tensor([17] * 9)
    worker.model_runner = SimpleNamespace(input_buffers=SimpleNamespace(seq_lens=lengths))
    worker._hp_norm_graphs = {name: graphs(name) for name in ("off", "on")}
    seconds = worker.hp_norm_replay(["off", "on"], num_tokens=8, rounds=2, replays=3)
    assert seconds == {"off": [1e-3, 1e-3], "on": [1e-3, 1e-3]}
    assert replayed == [*["off"] * 4, *["on"] * 4] * 2, "each turn begins with an untimed one"
    assert worker.hp_norm_replay(["off"], num_tokens=9, rounds=1, replays=1) == {"off": []}
    lengths[7] = 0  # a request has ended
    with pytest.raises(RuntimeError, match="the last step had fewer than 8 requests"):
        worker.hp_norm_replay(["off"], num_tokens=8, rounds=1, replays=1)


def test_steps_are_taken_apart_by_the_clock_of_the_gpu(monkeypatch):
    """Replays of the graph that is watched, and of no other, of which the rest is between them."""

    class Graph:
        def replay(self):
            FakeEvent.now += 3

    as_it_was = Graph.replay
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", FakeEvent.synchronize)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    watched, other = Graph(), Graph()
    worker = swap_worker.WorkerSwap()
    worker._hp_norm_graphs = {
        name: swap_worker.Graphs([], {Size(8): graph}, {}, "", {})
        for name, graph in (("on", other), ("off", watched))
    }
    worker._hp_norm_used = "off"
    FakeEvent.waited = False
    worker.hp_norm_watch(num_tokens=8)
    for graph, rest in ((watched, 1), (watched, 1), (other, 2), (watched, 20), (watched, 5)):
        graph.replay()
        FakeEvent.now += rest
    assert worker.hp_norm_watched() == {
        "steps": 4, "graph_s": 3e-3, "rest_s": 6e-3, "step_s": 9e-3,
    }, "medians"  # fmt: skip
    assert Graph.replay is as_it_was
    for steps in range(2):
        worker.hp_norm_watch(num_tokens=8)
        for _ in range(steps):
            watched.replay()
        assert worker.hp_norm_watched() == {"steps": steps}, "too few to take one apart"
    worker.hp_norm_watch(num_tokens=9)
    assert worker.hp_norm_watched() == {}, "there is no such graph"


class Runner:
    """A model runner as vLLM has them, of one compiled module."""

    def __init__(self, of_the_wrapper):
        module = TorchCompileWithNoGuardsWrapper.__new__(TorchCompileWithNoGuardsWrapper)
        module.aot_compiled_fn = "on, compiled"
        self._model = SimpleNamespace(modules=lambda: [object(), module])
        self.module = module
        self.model = self._model
        if of_the_wrapper:
            self.model = SimpleNamespace(concrete_cudagraph_entries={1: "on, a graph"})
            self.holder, self.field = self.model, "concrete_cudagraph_entries"
        else:
            self.cudagraph_manager = SimpleNamespace(
                graphs={1: "on, a graph"}, _graphs_captured=True
            )
            self.holder, self.field = self.cudagraph_manager, "graphs"

    def get_model(self):
        return self._model


def worker_of(runner, monkeypatch):
    monkeypatch.setattr(swap_worker, "compile_counters", lambda: {"compiles": worker.compiles})
    worker = swap_worker.WorkerSwap()
    worker.model_runner, worker.compiles = runner, 1
    worker.vllm_config = SimpleNamespace(
        kernel_config=SimpleNamespace(ir_op_priority=Priority(["hp_norm", "native"])),
        compilation_config=SimpleNamespace(
            local_cache_dir=f"{envs.VLLM_CACHE_ROOT}/key on", compile_ranges_endpoints=[32, 8192]
        ),
    )
    return worker


class Priority(SimpleNamespace):
    """vLLM's configuration of who is asked first, and what of it this process has."""

    def __init__(self, names):
        super().__init__(rms_norm=names, fused_add_rms_norm=names, asked=names)

    def set_default(self):
        self.asked = self.rms_norm


@pytest.mark.parametrize("of_the_wrapper", [False, True], ids=["manager", "wrapper"])
def test_a_compilation_in_use_is_whole(monkeypatch, of_the_wrapper):
    """Its compiled function, its CUDA graphs, and what the state tells of it."""
    runner = Runner(of_the_wrapper)
    worker = worker_of(runner, monkeypatch)
    monkeypatch.setattr(
        swap_worker.WorkerProbe, "hp_norm_state", lambda self: {"compile": "the last one's"}
    )
    config = worker.vllm_config
    worker.hp_norm_keep("on")
    worker._set_cuda({})
    assert getattr(runner.holder, "_graphs_captured", False) is False, "none is looked for"
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "a new pool")
    worker._new_pool()
    assert getattr(runner.holder, swap_worker.POOLS[runner.field]) == "a new pool"
    worker._set_cuda({1: "off, a graph"})
    assert getattr(runner.holder, "_graphs_captured", True) is True
    runner.module.aot_compiled_fn = "off, compiled"
    swap_worker._set_priority(config, {op: ["native"] for op in swap_worker.IR_OPS})
    config.compilation_config.local_cache_dir = f"{envs.VLLM_CACHE_ROOT}/key off"
    worker.compiles = 0
    worker.hp_norm_keep("off")
    for name, asked, compiles in (("on", ["hp_norm", "native"], 1), ("off", ["native"], 0)):
        worker.hp_norm_use(name)
        assert runner.module.aot_compiled_fn == f"{name}, compiled"
        assert getattr(runner.holder, runner.field) == {1: f"{name}, a graph"}
        assert config.kernel_config.ir_op_priority.asked == asked
        assert config.compilation_config.local_cache_dir.endswith(f"/key {name}")
        assert worker.hp_norm_state() == {"compile": {"compiles": compiles}}


@pytest.mark.parametrize("new_pool", [True, False])
def test_where_the_graphs_of_a_compilation_lie(monkeypatch, new_pool):
    """In a pool of their own, or in that of the compilation before."""
    import vllm.compilation.wrapper
    import vllm.config

    runner = Runner(of_the_wrapper=False)
    runner.cudagraph_manager.pool = "the pool before"
    runner.profile_run = lambda: seen.append("profile_run")
    worker = worker_of(runner, monkeypatch)
    seen = []

    def captured():
        seen.append(runner.cudagraph_manager.pool)
        runner.cudagraph_manager.graphs[8] = "a graph"

    worker.compile_or_warm_up_model = captured
    monkeypatch.setattr(swap_worker, "_choose", lambda config, with_plugin: None)
    monkeypatch.setattr(vllm.compilation.wrapper, "reset_compile_wrapper", lambda module: None)
    # The real one would leave vLLM's cache of its environment on, for the tests behind.
    monkeypatch.setattr(swap_worker, "_cache_root", contextlib.nullcontext)
    monkeypatch.setattr(vllm.config, "set_current_vllm_config", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "a new pool")
    worker.hp_norm_compile("off", False, envs.VLLM_CACHE_ROOT, new_pool)
    assert seen == ["profile_run", "a new pool" if new_pool else "the pool before"]
    assert worker._hp_norm_graphs["off"].cuda == {8: "a graph"}, "none of those before"


def test_a_model_that_is_not_compiled_is_refused(monkeypatch):
    runner = Runner(of_the_wrapper=False)
    runner.module.aot_compiled_fn = None
    with pytest.raises(RuntimeError, match="vLLM has to compile the model, and ahead of time"):
        worker_of(runner, monkeypatch).hp_norm_keep("on")


@pytest.mark.parametrize("splits", [False, True])
def test_a_setting_is_a_priority_and_ranges(monkeypatch, splits):
    """With, without, with: as vLLM's platform and the plugin decide them, from nothing."""
    config = worker_of(Runner(of_the_wrapper=False), monkeypatch).vllm_config
    compilation = config.compilation_config

    def native(config):
        assert config.kernel_config.ir_op_priority.rms_norm == [], "else it would be the user's"
        return Priority(["native"])

    @functools.wraps(native)
    def with_plugin(config):
        if splits:
            compilation.compile_ranges_endpoints = [32, *compilation.compile_ranges_endpoints]
        return Priority(["hp_norm", *native(config).rms_norm])

    with_plugin.puts_hp_norm_first = True
    monkeypatch.setattr(
        type(current_platform), "get_default_ir_op_priority", staticmethod(with_plugin)
    )
    for setting in (True, False, True):
        swap_worker._choose(config, setting)
        expected = ["hp_norm", "native"] if setting else ["native"]
        assert config.kernel_config.ir_op_priority.asked == expected
        ends = [32, 8192] if setting and splits else [8192]
        assert compilation.compile_ranges_endpoints == ends


def test_without_the_ir_adapter_it_says_so(monkeypatch):
    config = worker_of(Runner(of_the_wrapper=False), monkeypatch).vllm_config
    monkeypatch.setattr(
        type(current_platform), "get_default_ir_op_priority", staticmethod(lambda config: None)
    )
    with pytest.raises(RuntimeError, match="swap: the IR adapter is needed, got: "):
        swap_worker._choose(config, True)

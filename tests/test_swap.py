"""examples/serve_llama.py swap: who compiles what, whose turn it is, and a whole engine of it."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import serve_llama
import torch
from rich.console import Console
from serving import comparison, engine, offline, report, swap, swap_worker
from vllm import envs
from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper
from vllm.platforms import current_platform


class FakeEngine:
    """Takes 5 ms a step with the compilations of one setting, and 4 with those of the other.

    A millisecond of it is no graph's.
    """

    def __init__(self):
        self.asked = []
        self.kept = []
        self.used = "on"
        self.turns = 0

    def pause(self):
        pass

    resume = pause

    def ask(self, do, **arguments):
        self.asked.append((do, arguments))
        if do == "use":
            self.used = arguments["name"]
        if do == "replay":
            assert self.used == "off"
            return {name: [self.step(name)] * 2 for name in arguments["names"]}
        if do == "watched":
            self.turns += 1  # the first of each is for warming up, and far off
            step = self.step(self.used) if self.turns > 2 else 1.0
            return {"steps": 9, "graph_s": step - 0.001, "rest_s": 0.001, "step_s": step}
        if do == "state":
            return {"of": self.used}
        if do == "profile":
            kernel = "hp_norm" if self.used.startswith("on") else "native"
            row = {"name": kernel, "count": 16, "time_us": 1.0, "until_next_us": 1.0}
            return {"steps": 16, "kernels": [row]}
        step = self.step(self.used)
        last = step * arguments.get("output_len", 1)
        return {"first_token_s": step, "all_tokens_s": last, "tokens": [[1]]}

    def step(self, name):
        return 0.004 if name.startswith("on") else 0.005


@pytest.fixture
def swapped(monkeypatch, tmp_path):
    def run(*arguments):
        fake = FakeEngine()
        plans = {}

        def start(stack, model, args, progress, asked, worker_extension):
            assert worker_extension == "serving.swap_worker.WorkerSwap"
            plans.update(asked)
            return {comparison.ON: fake}

        monkeypatch.setattr(offline, "start", start)
        args = serve_llama.parse(["swap", *arguments, "--out", str(tmp_path)], gpu=True)
        return swap.run(None, args, fake.kept.append), fake, plans

    return run


def compiled(engine):
    return [arguments for do, arguments in engine.asked if do == "compile"]


def test_one_engine_compiles_each_setting_so_often(swapped):
    result, engine, plans = swapped("--engines", "2", "--batch-sizes", "1", "--repeats", "1")
    assert list(plans) == [comparison.ON] and plans[comparison.ON]["HP_NORM_PLUGIN"] == "auto"
    assert engine.asked[0] == ("keep", {"name": "on"}), "what it compiled at its start"
    assert [(one["name"], one["with_plugin"]) for one in compiled(engine)] == [
        ("off", False), ("off-2", False), ("on-2", True),
    ]  # fmt: skip
    roots = {one["cache_root"] for one in compiled(engine)}
    assert len(roots) == 3 and plans[comparison.ON]["VLLM_CACHE_ROOT"] not in roots
    assert {name: state["of"] for name, state in result["state"].items()} == {
        name: name for name in ("off", "on", "off-2", "on-2")
    }


def test_compilations_are_made_there_and_back():
    assert swap.there_and_back(1) == ["on", "off"]
    assert swap.there_and_back(3) == ["on", "off", "off-2", "on-2", "on-3", "off-3"]


def test_in_one_cache_all_are_of_the_same_folder(swapped):
    _, engine, plans = swapped("--one-cache", "--engines", "2", "--batch-sizes", "1")
    assert {one["cache_root"] for one in compiled(engine)} == {
        plans[comparison.ON]["VLLM_CACHE_ROOT"]
    }  # fmt: skip


def test_they_take_turns_and_each_is_measured_with_its_own(swapped):
    result, engine, _ = swapped("--batch-sizes", "8", "--prefill-batch", "0", "--repeats", "2")
    (row,) = result["rows"]
    assert row["tpot_s"] == pytest.approx({"off": 0.005, "on": 0.004})
    assert row["tpot_ratio"] == pytest.approx(0.8)
    turn = ["use", "watch", "measure", "watched"]
    asked = [engine.asked[at : at + len(turn)] for at in range(len(engine.asked))]
    turns = [each[0][1]["name"] for each in asked if [what for what, _ in each] == turn]
    assert turns == ["off", "on", "on", "off", "off", "on"], "there and back"
    (step,) = result["replayed"]
    assert step["batch"] == 8 and step["step_ratio"] == 0.8
    (watched,) = result["watched"]
    assert watched["batch"] == 8 and len(watched["raw"]["on"]) == 2
    assert [watched[f"{what}_ratio"] for what in ("graph", "rest", "step")] == [0.75, 1.0, 0.8]
    assert offline.verdict({**result, "state": {"on": {"layers": {}, "first_gpc": []}}})[0]


def test_a_cpu_replays_nothing(swapped, monkeypatch):
    monkeypatch.setattr(swap, "alone", lambda engine, args: contextlib.nullcontext())
    real = serve_llama.parse
    monkeypatch.setattr(serve_llama, "parse", lambda argv, gpu: real(argv, gpu=False))
    result, engine, _ = swapped("--batch-sizes", "1")
    assert result["replayed"] == result["watched"] == []
    assert "replay" not in [do for do, _ in engine.asked]


def test_a_run_that_is_cut_off_leaves_what_was_measured(swapped):
    _, engine, _ = swapped("--batch-sizes", "8", "32", "8", "--prefill-batch", "0")
    seen = [[row["batch"] for row in so_far.get("watched", [])] for so_far in engine.kept]
    assert seen == [[], [8], [8, 32]], "a batch once"
    assert all([row["batch"] for row in so_far["replayed"]] == [8, 32] for so_far in engine.kept)


def test_steps_are_shown_part_by_part(swapped, capsys):
    result, _, _ = swapped("--batch-sizes", "8", "--prefill-batch", "0")
    report.print_watched(Console(width=140), result["watched"])
    row = capsys.readouterr().out.splitlines()[-2]
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "8",
        "4.000, 3.000", "0.7500 ±0.0000",
        "1.000, 1.000", "1.0000 ±0.0000",
        "5.000, 4.000", "0.8000 ±0.0000",
    ]  # fmt: skip


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


def test_a_prefill_has_no_graph_to_watch(swapped):
    _, engine, _ = swapped("--batch-sizes", "8", "--prefill-batch", "2", "--repeats", "1")
    watched = [arguments["batch"] for do, arguments in engine.asked if do == "watch"]
    assert watched == [8] * 4


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

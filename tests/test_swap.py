"""examples/serve_llama.py swap: who compiles what, whose turn it is, and a whole engine of it."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import serve_llama  # noqa: E402
from serving import offline, swap  # noqa: E402


class FakeEngine:
    """Takes 5 ms a step with the compilations of one setting, and 4 with those of the other."""

    def __init__(self):
        self.asked = []
        self.used = "on"

    def pause(self):
        pass

    resume = pause

    def ask(self, do, **arguments):
        self.asked.append((do, arguments))
        if do == "use":
            self.used = arguments["name"]
        if do == "replay":
            return {name: [self.step(name)] * 2 for name in arguments["names"]}
        if do == "state":
            return {"of": self.used}
        if do == "profile":
            kernel = "hp_norm" if self.used.startswith("on") else "native"
            row = {"name": kernel, "count": 16, "time_us": 1.0, "until_next_us": 1.0}
            return {"decode_steps": 16, "kernels": [row]}
        step = self.step(self.used)
        return {"first_token_s": [step], "all_tokens_s": [step], "step_s": [step], "tokens": [[1]]}

    def step(self, name):
        return 0.004 if name.startswith("on") else 0.005


@pytest.fixture
def swapped(monkeypatch, tmp_path):
    def run(*arguments):
        engine = FakeEngine()
        plans = {}

        def start(stack, model, args, progress, asked):
            plans.update(asked)
            return {offline.ON: engine}

        monkeypatch.setattr(offline, "start", start)
        args = serve_llama.parse(["swap", *arguments, "--out", str(tmp_path)], gpu=True)
        return swap.run(None, args, lambda so_far: None), engine, plans

    return run


def compiled(engine):
    return [arguments for do, arguments in engine.asked if do == "compile"]


def test_one_engine_compiles_each_setting_so_often(swapped):
    result, engine, plans = swapped("--engines", "2", "--batch-sizes", "1", "--repeats", "1")
    assert list(plans) == [offline.ON] and plans[offline.ON]["HP_NORM_PLUGIN"] == "auto"
    assert engine.asked[0] == ("keep", {"name": "on"}), "what it compiled at its start"
    assert [(one["name"], one["with_plugin"]) for one in compiled(engine)] == [
        ("off", False), ("on-2", True), ("off-2", False),
    ]  # fmt: skip
    roots = {one["cache_root"] for one in compiled(engine)}
    assert len(roots) == 3 and plans[offline.ON]["VLLM_CACHE_ROOT"] not in roots
    assert {name: state["of"] for name, state in result["state"].items()} == {
        name: name for name in ("off", "on", "off-2", "on-2")
    }


def test_in_one_cache_all_are_of_the_same_folder(swapped):
    _, engine, plans = swapped("--one-cache", "--engines", "2", "--batch-sizes", "1")
    assert {one["cache_root"] for one in compiled(engine)} == {
        plans[offline.ON]["VLLM_CACHE_ROOT"]
    }  # fmt: skip


def test_they_take_turns_and_each_is_measured_with_its_own(swapped):
    result, engine, _ = swapped("--batch-sizes", "8", "--prefill-batch", "0", "--repeats", "2")
    (row,) = result["rows"]
    assert row["tpot_s"] == {"off": 0.005, "on": 0.004} and row["tpot_ratio"] == 0.8
    turns = [a["name"] for (do, a), (then, _) in zip(engine.asked, engine.asked[1:], strict=False)
             if do == "use" and then == "measure"]  # fmt: skip
    assert turns[1:] == ["off", "on"] * 3, "the first is the step that is replayed"
    (step,) = result["replayed"]
    assert step["batch"] == 8 and step["step_ratio"] == 0.8
    assert offline.verdict({**result, "state": {"on": {"layers": {}, "first_gpc": []}}})[0]


def test_a_cpu_replays_nothing(swapped, monkeypatch):
    monkeypatch.setattr(swap, "alone", lambda engine, args: contextlib.nullcontext())
    real = serve_llama.parse
    monkeypatch.setattr(serve_llama, "parse", lambda argv, gpu: real(argv, gpu=False))
    result, engine, _ = swapped("--batch-sizes", "1")
    assert result["replayed"] == [] and "replay" not in [do for do, _ in engine.asked]

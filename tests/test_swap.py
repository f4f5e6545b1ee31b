"""examples/serve_llama.py swap: who compiles what, whose turn it is, and a whole engine of it."""

from __future__ import annotations

import contextlib

import pytest
import serve_llama
from rich.console import Console
from serving import comparison, offline, report, swap


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
    compilations = [tuple(one[what] for what in ("name", "with_plugin", "new_pool"))
                    for one in compiled(engine)]  # fmt: skip
    assert compilations == [("off", False, False), ("off-2", False, True), ("on-2", True, False)]
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


def test_a_prefill_has_no_graph_to_watch(swapped):
    _, engine, _ = swapped("--batch-sizes", "8", "--prefill-batch", "2", "--repeats", "1")
    watched = [arguments["batch"] for do, arguments in engine.asked if do == "watch"]
    assert watched == [8] * 4

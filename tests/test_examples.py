"""The parts of examples/serve_llama.py that need no process: statistics, models, arguments."""

import contextlib
import importlib.util
import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("rich", reason="examples need rich")
from rich.console import Console  # noqa: E402

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import serve_llama  # noqa: E402
from serving import (  # noqa: E402
    agreement,
    cache,
    children,
    comparison,
    memory,
    models,
    offline,
    report,
    stats,
)
from serving.child_process import EngineError  # noqa: E402


def test_paired_ratio_cancels_a_drift():
    """A clock that doubles over the run leaves a one percent difference visible."""
    off = [1.0, 1.5, 2.0, 2.5]
    ratio, spread = stats.paired_ratio([0.99 * value for value in off], off)
    assert ratio == pytest.approx(0.99)
    assert spread == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("batch", "queued"), [(2, 1), (1, 2)])
def test_a_batch_is_timed_by_its_last_request(monkeypatch, batch, queued):
    """A fake engine whose prefill takes two steps; its second request starts a step late."""
    import types

    from serving import engine as engine_module

    clock = iter([0.0, 5.0, 6.0, 6.1, 6.2, 6.3])
    monkeypatch.setattr(engine_module.time, "perf_counter", lambda: next(clock))
    fake_vllm = types.SimpleNamespace(SamplingParams=lambda **kwargs: kwargs)
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
                types.SimpleNamespace(
                    request_id=name, outputs=[types.SimpleNamespace(token_ids=range(count))]
                )
                for name, count in counts.items()
                if count
            ]

    measured = engine_module.Engine.__new__(engine_module.Engine)
    measured.requests, measured.vocab_size = 0, 100
    measured.llm = types.SimpleNamespace(llm_engine=FakeEngine())
    result = measured.measure(batch=batch, input_len=3, output_len=4, seed=0, queued=queued)
    assert result["first_token_s"] == [6.0 / queued]
    assert result["all_tokens_s"] == [6.3 / queued]
    assert result["tokens"] == [[0, 1, 2, 3], [0, 1, 2, 3]]


def test_a_profile_is_of_the_decode_steps_alone():
    """What only a first profile has is in none of the two that are subtracted."""
    import types

    from serving import engine as engine_module

    generated = []

    def rpc(method):
        if method == "hp_norm_profile_start":
            return None
        kernel = {"name": "norm", "count": 5 * generated[-1], "time_us": 2.0 * generated[-1]}
        once = {"name": "set up", "count": 1, "time_us": 900.0}
        return [[kernel, once] if len(generated) == 1 else [kernel]]

    profiled = engine_module.Engine.__new__(engine_module.Engine)
    profiled.vocab_size = 100
    profiled.llm = types.SimpleNamespace(collective_rpc=rpc)
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


@pytest.mark.parametrize(("kernels", "share"), [(200.0, "5.0%"), (-50.0, "")])
def test_a_share_is_of_something(kernels, share):
    summary = {"kernel_us_per_step": kernels, "norm_us_per_step": 10.0, "norms_per_step": 5,
               "hp_norm_per_step": 5}  # fmt: skip
    console = Console(record=True, width=200)
    profiles = [{"plugin": "on", "kind": "prefill", "batch": 8, "summary": summary}]
    report.print_offline(console, "title", {"rows": [], "profiles": profiles})
    *_, row, _ = console.export_text().strip().splitlines()
    assert "on, prefill 8" in row
    assert [cell.strip() for cell in row.split("│")[1:-1]][1:4] == [f"{kernels:.1f}", "10.0", share]


def test_spread_is_relative_and_robust():
    assert stats.spread([1.0, 1.0, 1.0, 1.0, 9.0]) == 0.0
    assert stats.spread([1.0, 3.0]) == pytest.approx(0.5)
    assert stats.spread([1.0]) is None


@pytest.mark.parametrize(("on", "off"), [([0.0] * 3, [0.0] * 3), ([1.0, 2.0], [0.0, 0.0])])
def test_nothing_to_compare_with_is_no_error(on, off):
    """It would come at the end of a run, and take all else that was measured with it."""
    assert all(math.isnan(value) for value in stats.paired_ratio(on, off))
    assert math.isnan(stats.spread([0.0, 0.0]))


def test_norm_share_counts_ours_apart_from_inductors():
    kernels = [
        {"name": "void hp_norm::rms_norm_kernel<16>(...)", "count": 20, "time_us": 40.0},
        {"name": "triton_red_fused_add_mean_mul_pow_rsqrt_2", "count": 10, "time_us": 30.0},
        {"name": "nvjet_tst_64x8", "count": 40, "time_us": 930.0},
    ]
    share = stats.norm_share({"steps": 10, "kernels": kernels})
    assert share["hp_norm_per_step"] == 2 and share["norms_per_step"] == 3
    assert share["hp_norm_us_per_step"] == 4 and share["norm_us_per_step"] == 7
    assert share["kernel_us_per_step"] == 100


def test_same_tokens():
    same = stats.same_tokens([[1, 2], [3, 4]], [[1, 2], [3, 5]])
    assert same == {"share_equal": 0.75, "sequences_equal": 1, "sequences": 2, "tokens": 4}


def result(on, off=0.0, layers=None):
    state = {
        "reason": "vLLM 0.26.0, IR adapter",
        "layers": layers or {"operator": 5},
        "left": [],
        "first_gpc": [],
    }
    profiles = [
        {"plugin": name, "kind": kind, "summary": {"hp_norm_per_step": calls * steps}}
        for name, calls in (("off", off), ("on", on))
        for kind, steps in (("decode", 1), ("prefill", 2))  # which may be of more steps than one
    ]
    return {"profiles": profiles, "state": {"on": state, "off": state}}


@pytest.mark.parametrize(
    ("outcome", "ran", "words"),
    [
        (result(5.0), True, "the operator ran 5 times a decode step (5 norm layers on it)"),
        (result(0.0), False, "the operator did not run: vLLM 0.26.0, IR adapter"),
        (result(5.0, off=5.0), False, "the operator ran 5 times a step with the plugin off"),
        (result(0.0, layers={"fp8 quantisation fuses with the norm": 65}), False,
         "65 fp8 quantisation fuses with the norm"),
    ],
)  # fmt: skip
def test_verdict_is_a_count_not_a_flag(outcome, ran, words):
    verdict = offline.verdict(outcome)
    assert verdict[0] is ran
    assert words in verdict[1]


def runs(seconds_per_token, output_len=3):
    """Two repeats, of a second to the first token."""
    last = 1.0 + seconds_per_token * (output_len - 1)
    tokens = [[[1, 2]], [[1, 2]]]
    return {"first_token_s": [1.0, 1.0], "all_tokens_s": [last, last], "tokens": tokens}


def test_the_time_per_output_token_leaves_the_first_one_out():
    """128 tokens behind the first, of which every second one arrives with the one before."""
    work = {"kind": "decode", "batch": 1, "input_len": 4, "output_len": 129}
    engines = {"off": runs(0.5, 129), "on": runs(0.25, 129)}
    row = comparison.summarise(work, engines)
    assert row["tpot_s"] == {"off": 0.5, "on": 0.25} and row["tpot_ratio"] == 0.5


def test_more_engines_are_averaged_and_variants_compared_with_off():
    work = {"kind": "decode", "batch": 1, "input_len": 4, "output_len": 3}
    engines = {"off": runs(2.0), "on": runs(1.0), "no-pdl": runs(1.5),
               "off-2": runs(3.0), "on-2": runs(1.5)}  # fmt: skip
    row = comparison.summarise(work, engines)
    ratios = {name: ratio for name, (ratio, _) in row["others"].items()}
    assert ratios == {"no-pdl": 0.75, "off-2": 1.5, "on-2": 0.75}
    # 1.25 over 2.5; the standard errors of the means are 0.25 and 0.5, a fifth of each.
    assert row["tpot_ratio"] == 0.5 and row["tpot_spread"] == pytest.approx(0.5 * 0.08**0.5)
    assert row["tpot_mean_s"] == {"off": 2.5, "on": 1.25}
    console = Console(record=True, width=200)
    report.print_offline(console, "title", {"rows": [row], "profiles": []})
    text = console.export_text()
    assert "off-2/off" in text and "1.5000" in text and "2500.000, 1250.000" in text
    assert "no-pdl/off" in text and "0.7500" in text
    for name in ("off-2", "on-2", "no-pdl"):
        del engines[name]
    row = comparison.summarise(work, engines)
    report.print_offline(console, "title", {"rows": [row], "profiles": []})
    assert row["others"] == {} and "/off" not in console.export_text().replace("on/off", "")


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


def test_who_compiled_and_who_loaded():
    counted = {"off": (1, 0), "on": (0, 1)}
    state = {
        name: {"compile": {"num_aot_compiles": compiled, "num_aot_artifacts_loaded": loaded}}
        for name, (compiled, loaded) in counted.items()
    }
    assert offline.graphs({"state": state}).endswith(
        "off compiled 1, loaded 0; on compiled 0, loaded 1"
    )


def test_a_run_that_is_cut_off_leaves_what_it_measured(tmp_path):
    class Engine:
        def __init__(self):
            self.left = 3

        def ask(self, command, **request):
            self.left -= 1
            if self.left < 0:
                raise EngineError("engine: died")
            return {
                "first_token_s": [1.0],
                "all_tokens_s": [2.0],
                "tokens": [[1, 2]],
            }

    words = ["--batch-sizes", "1", "4", "--prefill-batch", "0", "--repeats", "2", "--out"]
    args = serve_llama.parse([*words, str(tmp_path)], gpu=True)
    with offline.progress_bar() as progress, pytest.raises(EngineError):
        offline.measure(
            {"off": Engine(), "on": Engine()}, args, progress,
            lambda so_far: serve_llama.keep(args, so_far),
        )  # fmt: skip
    found = json.loads((tmp_path / "serve_llama_offline.json").read_text())
    assert [row["batch"] for row in found["rows"]] == [1]
    assert found["arguments"]["batch_sizes"] == [1, 4] and found["environment"]["python"]
    assert "out" not in found["arguments"]


@pytest.mark.parametrize("cut_off", [KeyboardInterrupt(), EngineError("engine: died")])
@pytest.mark.parametrize("measured", [True, False])
def test_what_was_measured_is_shown_when_a_run_is_cut_off(cut_off, measured, tmp_path, monkeypatch):
    work = {"kind": "decode", "batch": 8, "input_len": 4, "output_len": 3}
    row = comparison.summarise(work, {"off": runs(2.0), "on": runs(1.0)})

    def run(model, args, keep):
        keep({"replayed": []})
        if measured:
            keep({"rows": [row], "replayed": []})
        raise cut_off

    monkeypatch.setattr(offline, "run", run)
    args = serve_llama.parse(["--out", str(tmp_path)], gpu=True)
    console = Console(record=True, width=200)
    with pytest.raises(type(cut_off)):
        serve_llama.run_offline(SimpleNamespace(name="a-model"), args, console)
    shown = console.export_text()
    assert ("2000.000, 1000.000" in shown) == measured
    assert ("what was measured" in shown and "serve_llama_offline.json" in shown) == measured


def test_what_is_not_finite_is_a_word_in_the_json(tmp_path):
    """Python would write Infinity and NaN, which other readers of JSON refuse."""
    args = serve_llama.parse(
        ["server", "--request-rates", "2", "inf", "--out", str(tmp_path)], gpu=False
    )
    path = serve_llama.keep(args, {"rows": [{"ratio": math.nan, "raw": (-math.inf, 1.5, None)}]})
    kept = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert kept["arguments"]["request_rates"] == [2.0, "inf"]
    assert kept["rows"] == [{"ratio": "nan", "raw": ["-inf", 1.5, None]}]


def test_of_a_prefill_the_first_tokens_are_compared():
    work = {"kind": "prefill", "batch": 8, "input_len": 4, "output_len": 1}
    slow = {**runs(1.0), "first_token_s": [1.5, 1.5]}
    row = comparison.summarise(work, {"off": runs(1.0), "on": runs(1.0), "slow": slow})
    assert (row["ttft_ratio"], row["others"]["slow"][0]) == (1.0, 1.5)
    console = Console(record=True, width=200)
    report.print_offline(console, "title", {"rows": [row], "profiles": []})
    assert "1.5000" in console.export_text()


def test_a_single_pair_has_no_spread(tmp_path):
    """Neither a table, nor the JSON, nor the chart says that it has one of zero."""
    work = {"kind": "decode", "batch": 1, "input_len": 4, "output_len": 2}
    run = {"first_token_s": [1.0], "all_tokens_s": [2.0], "tokens": [[[1, 2]]]}
    row = comparison.summarise(work, {"off": run, "on": run, "no-pdl": run})
    graph = {"batch": 1, **comparison.compare("step", {"off": [1.0], "on": [1.0]})}
    parts = (comparison.compare(part, {"off": [1.0], "on": [1.0]}) for part in ("graph", "rest"))
    console = Console(record=True, width=200)
    report.print_offline(console, "title", {"rows": [row], "profiles": []})
    report.print_replayed(console, [graph])
    report.print_watched(console, [dict(item for part in (graph, *parts) for item in part.items())])
    text = console.export_text()
    # Three of the first table, one of the second, three of the third.
    assert text.count("1.0000") == 7 and "±" not in text
    report.write_json(tmp_path / "it.json", {"rows": [row]})
    kept = json.loads((tmp_path / "it.json").read_text(), parse_constant=pytest.fail)
    assert kept["rows"][0]["tpot_spread"] is None
    assert kept["rows"][0]["others"]["no-pdl"] == [1.0, None]
    bars = report.offline_bars(kept)
    assert bars["TPOT"] == [("decode 1", 1.0, None)]


def test_variants_are_named_environments(capsys):
    words = "--variant no-pdl HP_NORM_PDL=0 --variant b HP_NORM_PLUGIN=layer HP_NORM_SCOPE=all"
    assert serve_llama.parse(words.split(), gpu=True).variants == {
        "no-pdl": {"HP_NORM_PDL": "0"},
        "b": {"HP_NORM_PLUGIN": "layer", "HP_NORM_SCOPE": "all"},
    }
    for wrong, text in (
        ("--variant no-pdl", "must be NAME VARIABLE=VALUE [VARIABLE=VALUE ...], got no-pdl"),
        ("--variant a HP_NORM_PDL", "must be NAME VARIABLE=VALUE [VARIABLE=VALUE ...], got a HP_"),
        ("--variant off HP_NORM_PDL=0", "the name must be new, got off"),
        ("--variant on-2 HP_NORM_PDL=0", "the name must be new, got on-2"),
        ("--variant a A=1 --variant a A=2", "the name must be new, got a"),
    ):
        with pytest.raises(SystemExit):
            serve_llama.parse(wrong.split(), gpu=True)
        assert f"--variant: {text}" in capsys.readouterr().err


def start(plugin, key, calls, loaded=1, compiled=0):
    return {"plugin": plugin, "cache_dir": key, "hp_norm_per_step": calls, "loaded": loaded,
            "compiled": compiled, "start_seconds": 1.0}  # fmt: skip


FILL = [start("on", "a", 65, 0, 1), start("off", "b", 0, 0, 1)]


@pytest.mark.parametrize(
    ("later", "apart", "words"),
    [
        ([start("on", "a", 65), start("off", "b", 0)], True, "each later start loaded its own"),
        ([start("on", "b", 65)], False, "one setting had two keys"),
        ([start("on", "a", 0)], False, "plugin on: 0 calls a step"),
        ([start("off", "b", 65)], False, "plugin off: 65 calls a step"),
        ([start("on", "a", 65, 0, 1)], False, "1 later starts did not load their graph"),
    ],
)
def test_cache_verdict(later, apart, words):
    verdict = cache.verdict({"starts": FILL + later}, gpu=True)
    assert verdict[0] is apart
    assert words in verdict[1]


def test_cache_verdict_sees_a_shared_key():
    starts = [start("on", "a", 65), start("off", "a", 0)]
    assert cache.verdict({"starts": starts}, gpu=False)[1].startswith("both settings have one key")


ASIDE = [start("on", "a", 0, 0, 1), start("off", "a", 0), start("on", "a", 0)]


@pytest.mark.parametrize(
    ("starts", "may", "fine", "words"),
    [
        (ASIDE, True, True, "3 starts, one key for both settings; each later start loaded the fir"),
        (ASIDE, False, False, "plugin on: 0 calls a step"),
        ([ASIDE[0], start("off", "b", 0)], True, False, "the settings have two keys for one graph"),
        ([ASIDE[0], start("off", "a", 0, 0, 1)], True, False, "1 later starts did not load"),
        (FILL, True, True, "2 starts, one key for each setting"),
    ],
)
def test_cache_verdict_of_a_model_that_the_plugin_leaves_alone(starts, may, fine, words):
    verdict = cache.verdict({"starts": starts}, gpu=True, may_stand_aside=may)
    assert verdict[0] is fine
    assert words in verdict[1]


def test_agreement_names_the_nearest_order():
    rows = [
        {"against_off": name, "logprob_moved_mean": moved}
        for name, moved in (("off again", 0.0), ("once", 0.02), ("before_weight", 0.01))
    ]
    assert agreement.verdict({"comparisons": rows}).endswith("rounding before_weight")


def test_architectures_are_complete():
    assert {"tiny-llama", "Llama-3.2-1B", "Llama-3.1-8B", "Qwen3-8B", "Gemma-3-4B-text"} <= set(
        models.architecture_names()
    )
    for name in models.architecture_names():
        config = json.loads((models.ARCHITECTURES / f"{name}.json").read_text())
        assert config["architectures"] and config["rms_norm_eps"] > 0
        assert config["num_attention_heads"] % config["num_key_value_heads"] == 0


@pytest.mark.parametrize("name", ["no-such-model", "./nowhere", "a/b/c"])
def test_unknown_model(name, capsys):
    assert serve_llama.main(["--model", name, "--out", os.devnull]) == 2
    assert f"--model {name}: neither one of" in capsys.readouterr().err.replace("\n", " ")


def test_nothing_is_started_that_could_not_be_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(models, "resolve", lambda name: models.Model("x", "x", "auto", 1))
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    assert serve_llama.main(["--out", str(out)]) == 2
    assert capsys.readouterr().err == f"--out: {out} cannot be written to (Not a directory)\n"


def test_directory_without_a_config(tmp_path):
    with pytest.raises(ValueError, match="has no config.json"):
        models.resolve(str(tmp_path))


def test_local_tokenizer_keeps_any_ids(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    models.write_tokenizer(tmp_path, 300, 2)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = [299, 0, 2, 17, 17]
    assert tokenizer.encode(tokenizer.decode(ids)).ids == ids


@pytest.mark.parametrize(
    ("folder", "key"),
    [
        ("torch_compile_cache/3f0c9a7be1d24c55/rank_0_0/backbone", "3f0c9a7be1d2"),
        ("torch_compile_cache/torch_aot_compile/44de79eaa8e5404b74/rank_0_0", "44de79eaa8e5"),
        ("somewhere", "somewhere"),
    ],
)
def test_the_key_of_a_cache_folder(folder, key):
    assert cache._key(folder) == key


def test_a_chart_names_every_workload_of_every_panel(tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figures = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    bars = {
        "TTFT": [("decode 1", 1.0, 0.01), ("prefill 8", 0.99, 0.02)],
        "TPOT": [("decode 1", 0.99, 0.001)],
        "one pair": [("decode 1", 0.99, None)],
        "ITL": [],
    }
    path = tmp_path / "chart.png"
    assert report.chart(path, "tiny-llama", bars)
    assert path.read_bytes().startswith(b"\x89PNG")
    shared = figures[0].axes[0]
    assert [label.get_text() for label in shared.get_yticklabels()] == ["decode 1", "prefill 8"]
    bar, no_bar = (axis.collections[0].get_segments()[0] for axis in figures[0].axes[1:3])
    assert [x for x, _ in bar] == pytest.approx([0.989, 0.991]) and len(no_bar) == 0
    low, high = sorted(shared.get_ylim())
    assert low < 0 and high > 1


def test_without_matplotlib_there_is_no_chart_and_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not report.chart(tmp_path / "chart.png", "tiny-llama", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output-len", "1"], "--output-len: must be at least 2, got 1"),
        (["--batch-sizes", "1", "0"], "--batch-sizes: must be at least 1, got 0"),
        (["--repeats", "0"], "--repeats: must be at least 1, got 0"),
        (["--warmup", "-1"], "--warmup: must be at least 0, got -1"),
        (["--engines", "0"], "--engines: must be at least 1, got 0"),
        (["--input-len", "0"], "--input-len: must be at least 1, got 0"),
        (["--prefill-len", "0"], "--prefill-len: must be at least 1, got 0"),
        (["--prefill-batch", "-1"], "--prefill-batch: must be at least 0, got -1"),
        (["--max-model-len", "0"], "--max-model-len: must be at least 1, got 0"),
        (["--num-prompts", "0"], "--num-prompts: must be at least 1, got 0"),
        (["--seeds", "0"], "--seeds: must be at least 1, got 0"),
        (["--port", "99999"], "--port: must be 1 to 65534, got 99999"),
        (["--port", "65535"], "--port: must be 1 to 65534, got 65535"),
        (["--port", "0"], "--port: must be 1 to 65534, got 0"),
        (["--starts", "1"], "--starts: must be 2 to 5, got 1"),
        (["--starts", "6"], "--starts: must be 2 to 5, got 6"),
        (["--memory", "0"], "--memory: must be above 0 and at most 1, got 0.0"),
        (["--memory", "1.1"], "--memory: must be above 0 and at most 1, got 1.1"),
        (["--memory", "nan"], "--memory: must be above 0 and at most 1, got nan"),
        (["--kv-cache-gib", "0"], "--kv-cache-gib: must be above 0 and at most 1024, got 0.0"),
        (["--kv-cache-gib", "inf"], "--kv-cache-gib: must be above 0 and at most 1024, got inf"),
        (["--request-rates", "1", "0"], "--request-rates: must be above 0, got 0.0"),
        (["server", "--request-rates"], "--request-rates: expected at least one argument"),
        (["swap", "--plugin", "layer"], "swap: needs the IR adapter and compilation"),
        (["swap", "--enforce-eager"], "swap: needs the IR adapter and compilation"),
        (["swap", "--variant", "a", "B=1"], "swap: needs the IR adapter and compilation"),
        (["server", "--engines", "2"], "--engines: is for offline and swap, got mode server"),
        (["tokens", "--variant", "a", "B=1"], "--variant: is for offline, got mode tokens"),
        (["cache", "--one-cache"], "--one-cache: is for offline and swap, got mode cache"),
        (["--request-rates", "2"], "--request-rates: is for server, got mode offline"),
        (["swap", "--quantization", "awq"], "swap: --quantization: must be one that the plugin"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        serve_llama.parse(arguments, gpu=False)
    assert message in capsys.readouterr().err


def test_the_limits_themselves_are_allowed():
    words = (
        "--batch-sizes 1 --repeats 1 --warmup 0 --engines 1 --input-len 1 --output-len 2 --seeds 1 "
        "--prefill-len 1 --prefill-batch 0 --max-model-len 1 --num-prompts 1 --memory 1 --starts "
    )
    for starts, port in (("2", "1"), ("5", "65534")):
        args = serve_llama.parse([*words.split(), starts, "--port", port], gpu=True)
        assert (args.starts, args.port) == (int(starts), int(port))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Llama-3.1-8B", 8_030_261_248),
        ("Llama-3.2-1B", 1_235_814_400),
        ("Qwen3-8B", 8_190_735_360),
        ("Gemma-3-4B-text", 3_880_263_168),
    ],
)
def test_the_bytes_of_weights(name, parameters):
    """The parameters that transformers counts, the norms' among them."""
    config = json.loads((models.ARCHITECTURES / f"{name}.json").read_text())
    assert memory.weight_bytes(config) == pytest.approx(2 * parameters, rel=1e-3)
    assert 2**28 < memory.available_bytes() < 2**50


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        ("offline", "2 engines must fit into the 20.0 GiB of memory available, got 29.9 GiB"),
        ("server", "2 engines must fit into the 20.0 GiB of memory available, got 29.9 GiB"),
        ("tokens", "3 engines must fit into the 20.0 GiB of memory available, got 44.9 GiB"),
        ("offline --engines 2 --variant a A=1", "5 engines must fit into the 20.0 GiB"),
        ("swap", None),
        ("cache", None),
        ("offline --model org/Llama-3.1-8B", None),
    ],
)
def test_what_does_not_fit_into_memory_is_not_started(words, fits, monkeypatch, capsys):
    class Resolved(Exception):
        pass

    def resolve(name):
        raise Resolved

    monkeypatch.setattr(models, "resolve", resolve)
    monkeypatch.setattr(memory, "available_bytes", lambda: 20 * 2**30)
    monkeypatch.setattr(serve_llama, "has_gpu", lambda: False)
    arguments = ["--model", "Llama-3.1-8B", *words.split()]
    if fits is None:
        with pytest.raises(Resolved):
            serve_llama.main(arguments)
    else:
        assert serve_llama.main(arguments) == 2
    seen = capsys.readouterr()
    assert seen.out.startswith("no GPU: comparing on the CPU")
    if fits:
        (line,) = seen.err.splitlines()
        assert line.startswith(f"--model Llama-3.1-8B: the weights of {fits}")
    monkeypatch.setattr(serve_llama, "has_gpu", lambda: True)
    with pytest.raises(Resolved):
        serve_llama.main(arguments)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("gpu", "words", "got"),
    [
        # 128 requests of 257 tokens: 17 blocks of 16 each and one more, of 32 layers with 8 heads
        # of 128 for keys and values.
        (True, "--kv-cache-gib 4", "128 requests of 257 tokens, 4.252 GiB of Llama-3.1-8B, got 4"),
        (True, "swap --kv-cache-gib 4.25", "128 requests of 257 tokens, 4.252 GiB"),
        (True, "swap --kv-cache-gib 4.26", None),
        (True, "cache --kv-cache-gib 4", None),
        (True, "server --kv-cache-gib 4", "128 requests of 257 tokens, 4.252 GiB"),
        (True, "--kv-cache-gib 4 --batch-sizes 1 32", None),
        (True, "--kv-cache-gib 4 --model org/Llama-3.1-8B", None),
        (True, "--kv-cache-gib 0.01 --batch-sizes 1", "1 request of 257 tokens, 0.036 GiB"),
        (False, "--model tiny-llama --kv-cache-gib 0.001", "4 requests of 33 tokens, 0.002 GiB"),
        (False, "--model tiny-llama", None),
    ],
)
def test_the_requests_of_a_batch_fit_into_the_cache(gpu, words, got, monkeypatch):
    """One that waits for a block decodes alone when the others are done."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**50)
    args = serve_llama.parse(["--model", "Llama-3.1-8B", *words.split()], gpu=gpu)
    if got is None:
        memory.check(args)
    else:
        with pytest.raises(ValueError, match=f"^--kv-cache-gib: must hold {got}"):
            memory.check(args)


def test_the_bytes_of_keys_and_values():
    config = {"num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 64}
    of_a_token = 3 * 2 * 64 * 2 * 2
    for tokens, blocks in ((16, 5 + 1), (17, 2 * 5 + 1)):
        assert memory.kv_cache_bytes(config, 5, tokens, 16) == blocks * 16 * of_a_token


def test_the_brackets_of_a_log_are_shown(monkeypatch, capsys):
    def resolve(name):
        raise EngineError("[rank0]: failed\n  [/usr/lib]: " + 200 * "x")

    monkeypatch.setattr(models, "resolve", resolve)
    assert serve_llama.main([]) == 2
    assert capsys.readouterr().err == "[rank0]: failed\n  [/usr/lib]: " + 200 * "x" + "\n"

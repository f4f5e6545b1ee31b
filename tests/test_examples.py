"""The parts of examples/serve_llama.py that need no engine: statistics, models, errors."""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
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
    models,
    offline,
    report,
    server,
    stats,
)
from serving.client import EngineClient, EngineError, explain_log  # noqa: E402
from serving.server_process import Server, check_port  # noqa: E402


def test_paired_ratio_cancels_a_drift():
    """A clock that doubles over the run leaves a one percent difference visible."""
    off = [1.0, 1.5, 2.0, 2.5]
    ratio, spread = stats.paired_ratio([0.99 * value for value in off], off)
    assert ratio == pytest.approx(0.99)
    assert spread == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("batch", "queued"), [(2, 1), (1, 2)])
def test_time_per_output_token_is_the_median_step(monkeypatch, batch, queued):
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
    assert result["step_s"] == [pytest.approx(0.1)]
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
    assert result["decode_steps"] == 16
    (kernel,) = result["kernels"]
    assert (kernel["name"], kernel["count"], kernel["time_us"]) == ("norm", 80, 32.0)


@pytest.mark.parametrize(("kernels", "share"), [(200.0, "5.0%"), (-50.0, "")])
def test_a_share_is_of_something(kernels, share):
    summary = {"kernel_us_per_step": kernels, "norm_us_per_step": 10.0, "norms_per_step": 5,
               "hp_norm_per_step": 5}  # fmt: skip
    console = Console(record=True, width=200)
    profiles = [{"plugin": "on", "batch": 1, "summary": summary}]
    report.print_offline(console, "title", {"rows": [], "profiles": profiles})
    *_, row, _ = console.export_text().strip().splitlines()
    assert [cell.strip() for cell in row.split("│")[1:-1]][1:4] == [f"{kernels:.1f}", "10.0", share]


def test_spread_is_relative_and_robust():
    assert stats.spread([1.0, 1.0, 1.0, 1.0, 9.0]) == 0.0
    assert stats.spread([1.0, 3.0]) == pytest.approx(0.5)


def test_norm_share_counts_ours_apart_from_inductors():
    kernels = [
        {"name": "void hp_norm::rms_norm_kernel<16>(...)", "count": 20, "time_us": 40.0},
        {"name": "triton_red_fused_add_mean_mul_pow_rsqrt_2", "count": 10, "time_us": 30.0},
        {"name": "nvjet_tst_64x8", "count": 40, "time_us": 930.0},
    ]
    share = stats.norm_share({"decode_steps": 10, "kernels": kernels})
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
        {"plugin": name, "summary": {"hp_norm_per_step": calls}}
        for name, calls in (("off", off), ("on", on))
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


def runs(step_s):
    run = {"first_token_s": [1.0, 1.0], "all_tokens_s": [2.0, 2.0], "tokens": [[[1, 2]], [[1, 2]]]}
    return {**run, "step_s": step_s}


def test_more_engines_are_averaged_and_variants_compared_with_off():
    work = {"kind": "decode", "batch": 1, "input_len": 4, "output_len": 2}
    engines = {"off": runs([2.0, 2.0]), "on": runs([1.0, 1.0]), "no-pdl": runs([1.5, 1.5]),
               "off-2": runs([3.0, 3.0]), "on-2": runs([1.5, 1.5])}  # fmt: skip
    row = offline.summarise(work, engines)
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
    row = offline.summarise(work, engines)
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
                "step_s": [0.5],
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


def test_of_a_prefill_the_first_tokens_are_compared():
    work = {"kind": "prefill", "batch": 8, "input_len": 4, "output_len": 1}
    slow = {**runs([]), "first_token_s": [1.5, 1.5]}
    row = offline.summarise(work, {"off": runs([]), "on": runs([]), "slow": slow})
    assert (row["ttft_ratio"], row["others"]["slow"][0]) == (1.0, 1.5)
    console = Console(record=True, width=200)
    report.print_offline(console, "title", {"rows": [row], "profiles": []})
    assert "1.5000" in console.export_text()


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


def test_directory_without_a_config(tmp_path):
    with pytest.raises(ValueError, match="has no config.json"):
        models.resolve(str(tmp_path))


def test_local_tokenizer_keeps_any_ids(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    models.write_tokenizer(tmp_path, 300, 2)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = [299, 0, 2, 17, 17]
    assert tokenizer.encode(tokenizer.decode(ids)).ids == ids


def test_port_in_use():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port: {port} cannot be used"):
            check_port(port)


@pytest.mark.parametrize(
    ("log", "hint"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", "out of memory: use"),
        ("Free memory is less than desired GPU memory utilization (0.9", "lower --memory"),
        ("OSError: [Errno 98] Address already in use", "the port is in use"),
        ("KeyError: 'x'", ""),
    ],
)
def test_the_usual_failures_have_a_hint(tmp_path, log, hint):
    path = tmp_path / "log"
    path.write_text(log)
    assert hint in explain_log(path)
    assert bool(explain_log(path)) == bool(hint)


def test_a_server_that_does_not_start_shows_the_end_of_its_log(tmp_path):
    command = [sys.executable, "-c", "print('CUDA out of memory'); raise SystemExit(3)"]
    with (
        Server("on", 1, command, dict(os.environ), tmp_path / "log") as process,
        pytest.raises(EngineError) as error,
    ):
        process.wait_until_ready(30, lambda: None)
    text = str(error.value)
    assert text.startswith("server on: did not start (exit status 3) (out of memory: use")
    assert text.endswith("    CUDA out of memory")


def test_leaving_a_server_ends_its_children_too(tmp_path):
    """Also when it is paused, and when it ignores a polite signal."""
    child = "import time; time.sleep(600)"
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    log = tmp_path / "log"
    process = Server("on", 1, [sys.executable, "-c", code], dict(os.environ), log)
    pid_file = tmp_path / "pid"
    while not (pid_file.is_file() and pid_file.read_text()):
        time.sleep(0.05)
    process.pause()
    process._process.wait = _no_waiting(process._process.wait)
    process.__exit__(None, None, None)
    for _ in range(100):
        if not Path(f"/proc/{pid_file.read_text()}").exists():
            return
        time.sleep(0.05)
    state = Path(f"/proc/{pid_file.read_text()}/stat").read_text().split()[2]
    assert state == "Z"


def _no_waiting(wait):
    """Shorten the polite wait, so that the test does not take its 20 seconds."""
    return lambda timeout=None: wait(None if timeout is None else 0.2)


def test_an_engine_that_dies_is_an_error_with_its_log(tmp_path, monkeypatch):
    from serving import client

    script = tmp_path / "worker.py"
    script.write_text("import sys; print('no such device'); sys.exit(1)")
    monkeypatch.setattr(client, "WORKER", script)
    log = tmp_path / "log"
    with EngineClient("on", {}, dict(os.environ), log) as engine, pytest.raises(EngineError) as e:
        engine.wait_until_ready(30)
    assert str(e.value).startswith("engine on: died")
    assert "no such device" in str(e.value)


def test_an_interrupted_run_ends_its_engines(tmp_path):
    """SIGTERM to the example, while an engine loads, leaves no process behind."""
    fake = tmp_path / "fake_worker.py"
    pid_file = tmp_path / "pid"
    fake.write_text(
        f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\n"
        "import pathlib\n"
        "from serving import client, models\n"
        f"client.WORKER = pathlib.Path({str(fake)!r})\n"
        "models.resolve = lambda name: models.Model('x', 'x', 'auto', 1)\n"
        "import serve_llama\n"
        f"sys.exit(serve_llama.main(['--out', {str(tmp_path / 'out')!r}]))\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while not (pid_file.is_file() and pid_file.read_text()):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_the_server_gets_the_engines_configuration(tmp_path):
    args = serve_llama.parse(["server", "--out", str(tmp_path)], gpu=False)
    model = models.Model("tiny", "/models/tiny", "auto", 2)
    command = server.serve_command(model, 8731, args)
    joined = " ".join(command)
    assert "/models/tiny" in command
    assert "--port 8731" in joined and "--no-enable-prefix-caching" in joined
    assert "--worker-extension-cls hp_norm_plugin.vllm.probe.WorkerProbe" in joined
    assert json.loads(command[command.index("--compilation-config") + 1]) == {
        "pass_config": {"fuse_norm_quant": False}
    }


def test_one_process_drives_again_and_again(tmp_path):
    """The benchmark client is imported once; a bad command line is an error, not its end."""
    package = tmp_path / "vllm" / "benchmarks"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "serve.py").write_text(
        "import os\n"
        "def add_cli_args(parser): parser.add_argument('--to', required=True)\n"
        "def main(args): open(args.to, 'a').write(f'{os.getpid()} ')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    seen = tmp_path / "seen"
    with EngineClient("client", {}, environment, tmp_path / "log", "load") as client:
        client.wait_until_ready(60)
        client.ask("drive", arguments=["--to", str(seen)])
        with pytest.raises(EngineError, match="load client: "):
            client.ask("drive", arguments=["--to"])
        client.ask("drive", arguments=["--to", str(seen)])
    first, second = seen.read_text().split()
    assert first == second


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


def test_loads_are_rates_or_concurrencies():
    args = SimpleNamespace(request_rates=[2.5], batch_sizes=[1, 8])
    assert server.loads(args) == [{"--request-rate": "2.5"}]
    args.request_rates = None
    assert [load["--max-concurrency"] for load in server.loads(args)] == ["1", "8"]


def test_a_chart_names_every_workload_of_every_panel(tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figures = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    bars = {
        "TTFT": [("decode 1", 1.0, 0.01), ("prefill 8", 0.99, 0.02)],
        "TPOT": [("decode 1", 0.99, 0.001)],
        "ITL": [],
    }
    path = tmp_path / "chart.png"
    assert report.chart(path, "tiny-llama", bars)
    assert path.read_bytes().startswith(b"\x89PNG")
    shared = figures[0].axes[0]
    assert [label.get_text() for label in shared.get_yticklabels()] == ["decode 1", "prefill 8"]
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
        (["--batch-sizes", "0"], "--batch-sizes, --repeats and --engines: must be at least 1"),
        (["--engines", "0"], "--batch-sizes, --repeats and --engines: must be at least 1"),
        (["swap", "--plugin", "layer"], "swap: needs the IR adapter and compilation"),
        (["swap", "--enforce-eager"], "swap: needs the IR adapter and compilation"),
        (["swap", "--variant", "a", "B=1"], "swap: needs the IR adapter and compilation"),
        (["swap", "--quantization", "awq"], "swap: --quantization: must be one that the plugin"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        serve_llama.parse(arguments, gpu=False)
    assert message in capsys.readouterr().err

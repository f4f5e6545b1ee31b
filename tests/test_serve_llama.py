"""What examples/serve_llama.py says and keeps: errors of a line, and what a cut off run has."""

import json
import math
import os
from types import SimpleNamespace

import pytest
from helpers import runs

pytest.importorskip("rich", reason="examples need rich")
import serve_llama  # noqa: E402
from rich.console import Console  # noqa: E402
from serving import comparison, models, offline  # noqa: E402
from serving.child_process import EngineError  # noqa: E402


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


def test_the_brackets_of_a_log_are_shown(monkeypatch, capsys):
    def resolve(name):
        raise EngineError("[rank0]: failed\n  [/usr/lib]: " + 200 * "x")

    monkeypatch.setattr(models, "resolve", resolve)
    assert serve_llama.main([]) == 2
    assert capsys.readouterr().err == "[rank0]: failed\n  [/usr/lib]: " + 200 * "x" + "\n"


def test_a_run_that_is_cut_off_leaves_what_it_measured(tmp_path):
    class Engine:
        def __init__(self):
            self.left = 3

        def ask(self, command, **request):
            self.left -= 1
            if self.left < 0:
                raise EngineError("engine: died")
            return {"first_token_s": 1.0, "all_tokens_s": 2.0, "tokens": [[1, 2]]}

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


@pytest.mark.parametrize(
    "cut_off", [KeyboardInterrupt(), SystemExit(143), EngineError("engine: died")]
)
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


def test_a_lost_terminal_does_not_hide_what_a_run_ended_with(tmp_path, monkeypatch):
    def run(model, args, keep):
        keep({"rows": []})
        raise SystemExit(129)

    def show(found):
        raise OSError("Input/output error")

    monkeypatch.setattr(offline, "run", run)
    args = serve_llama.parse(["--out", str(tmp_path)], gpu=True)
    with pytest.raises(SystemExit) as ended:
        serve_llama.run_kept(offline, SimpleNamespace(name="a-model"), args, Console(), show)
    assert ended.value.code == 129


def test_what_is_not_finite_is_a_word_in_the_json(tmp_path):
    """Python would write Infinity and NaN, which other readers of JSON refuse."""
    args = serve_llama.parse(
        ["server", "--request-rates", "2", "inf", "--out", str(tmp_path)], gpu=False
    )
    path = serve_llama.keep(args, {"rows": [{"ratio": math.nan, "raw": (-math.inf, 1.5, None)}]})
    kept = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert kept["arguments"]["request_rates"] == [2.0, "inf"]
    assert kept["rows"] == [{"ratio": "nan", "raw": ["-inf", 1.5, None]}]


def test_the_brackets_of_a_path_are_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(models, "resolve", lambda name: models.Model("x", "x", "auto", 1))
    monkeypatch.setattr(serve_llama, "run_cache", lambda *_: {"ok": True, "verdict": "[bold] 1"})
    out = tmp_path / "of[a]" / "b"
    assert serve_llama.main(["cache", "--out", str(out)]) == 0
    shown = capsys.readouterr().out.replace("\n", "")
    assert "[bold] 1" in shown and str(out / "serve_llama_cache.json") in shown

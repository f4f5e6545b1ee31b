from collections import Counter

import pytest
import torch
from rich.console import Console

from benchmarks import environment, records, results, run, shapes

CPU = torch.device("cpu")
SMALL = ["--device", "cpu", "--tokens", "1", "2", "--hidden", "64", "--repeats", "2"]
SMALL += ["--providers", "hp_norm", "torch", "copy", "--compile-seconds", "0"]
SMALL += ["--op", "fused_add", "--dtype", "bf16"]


def bench(*arguments):
    return run.run(run.parser().parse_args(list(arguments)), Console(quiet=True))


def test_a_run_writes_every_row(tmp_path):
    out = tmp_path / "out.csv"
    assert bench(*SMALL, "--op", "fused_add", "plain", "--out", str(out)) == 0
    frame = records.read([out])
    assert len(frame) == 2 * 2 * 3
    assert (frame["status"] == "ok").all(), frame[["provider", "reason"]]
    assert (frame["us"] > 0).all()


def test_an_unknown_provider_is_a_skipped_row_and_the_others_run(tmp_path):
    out = tmp_path / "out.csv"
    arguments = [*SMALL, "--out", str(out)]
    arguments[arguments.index("torch")] = "apex"
    assert bench(*arguments) == 0
    rows = records.read([out]).set_index(["provider", "num_tokens"])
    assert rows.loc[("apex", 1)]["status"] == "skipped"
    assert "unknown provider 'apex'" in rows.loc[("apex", 1)]["reason"]
    assert rows.loc[("hp_norm", 2)]["status"] == "ok"


def test_resume_measures_only_what_is_missing(tmp_path):
    out = tmp_path / "out.csv"
    one = [*SMALL]
    one.remove("2")
    bench(*one, "--out", str(out))
    bench(*SMALL, "--out", str(out), "--resume")
    frame = records.read([out])
    assert frame.groupby("num_tokens").size().to_dict() == {1: 3, 2: 3}


def test_resume_tells_the_protocols_apart(tmp_path, cell_rows):
    out = tmp_path / "out.csv"
    writer = records.Writer(out)
    writer.write(cell_rows(1, 1024, {"hp_norm": 1.0}))
    writer.close()
    cases = [shapes.Case("fused_add", "bf16", tokens, 1024) for tokens in (1, 2)]
    assert run.without_finished(cases, out) == run.without_finished(cases, out, "cached")
    assert run.without_finished(cases, out) == cases[1:]
    assert run.without_finished(cases, out, "cold") == cases


def test_the_time_limit_leaves_the_rest_and_says_so(tmp_path):
    out = tmp_path / "out.csv"
    assert bench(*SMALL, "--out", str(out), "--time-limit", "1e-9") == 1
    assert len(records.read([out])) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu_is_one_line_and_an_exit_status(capsys):
    args = run.parser().parse_args([])
    assert run.run(args, Console(width=200)) == 2
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize("name", ["foo", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_one_line(name, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    args = run.parser().parse_args(["--device", name])
    assert run.run(args, Console(width=200)) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("--device: must be ") and line.endswith(f", got {name}")


def test_a_bad_shard_is_one_line(capsys):
    args = run.parser().parse_args(["--device", "cpu", "--shard", "3/2"])
    assert run.run(args, Console(width=200)) == 2
    assert "shard: must be K/N with 1 <= K <= N, got '3/2'" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--tokens", "0"], ["--op", "norm"], ["--dtype", "int8"]])
def test_bad_arguments_are_refused_by_the_parser(arguments, capsys):
    with pytest.raises(SystemExit) as exit_status:
        run.parser().parse_args(arguments)
    assert exit_status.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def cases(*arguments, device="cuda"):
    return run.cases_of(run.parser().parse_args(list(arguments)), torch.device(device))


def test_what_is_run_by_default():
    grid = len(shapes.NUM_TOKENS) * len(shapes.HIDDEN_SIZES)
    kinds = Counter((case.op, case.dtype) for case in cases())
    assert kinds == {(op, dtype): grid for op in shapes.OPS for dtype in ("bf16", "fp16")}
    assert len(cases("--op", "plain", "--dtype", "fp16")) == grid
    assert {case.hidden_size for case in cases(device="cpu")} == {4096}
    assert len(cases("--quick")) == 12
    assert [case.num_tokens for case in cases("--founding")] == [4096] * 20


@pytest.mark.parametrize(
    ("device", "name"),
    [("NVIDIA H100 80GB HBM3", "h100"), ("AMD EPYC 9654, 2 threads", "cpu")],
)
def test_a_csv_is_named_after_date_device_and_what_is_in_it(device, name):
    env = environment.Environment("abc", "2026-01-02T03:04:05", device, "", "", "2.11", 2**20)
    args = run.parser().parse_args(["--op", "plain", "--dtype", "bf16", "fp16"])
    assert run.default_out(env, args) == results.RESULTS / f"2026-01-02-{name}-plain-bf16-fp16.csv"


def test_shards_add_up_to_the_whole():
    parts = [case for k in (1, 2, 3) for case in cases("--shard", f"{k}/3")]
    assert sorted(parts) == sorted(cases())

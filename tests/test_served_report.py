"""The tables and words about served models and building, against what runs left in docs."""

from __future__ import annotations

import re
import statistics
import sys
from pathlib import Path

import pytest

from benchmarks.report import documents

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import served_report  # noqa: E402

README = " ".join((ROOT / "README.md").read_text().split())
SERVED = " ".join((ROOT / "docs" / "served.md").read_text().split())


def served(name):
    """Read what a run of a served model left in 2026, by the rest of its name."""
    (run,) = served_report.read(f"docs/gpu/2026-{name}.json").values()
    return run


WITH_TABLES = [path for path in documents(ROOT) if served_report.BLOCK.search(path.read_text())]


@pytest.mark.parametrize("path", WITH_TABLES, ids=lambda path: path.name)
def test_the_tables_say_what_the_runs_left(path):
    text = path.read_text()
    assert served_report.render(text, str(path.relative_to(ROOT))) == text


def test_a_changed_figure_is_found():
    text = (ROOT / "README.md").read_text()
    table = served_report.BLOCK.search(text)[0]
    row = next(line for line in table.splitlines() if "decode 32" in line)
    ratio = re.search(r"\d\.\d{4} ± ", row)[0]
    changed = text.replace(row, row.replace(ratio, "0.1234 ± "))
    assert changed != text
    assert served_report.render(changed) == text


@pytest.mark.parametrize(
    ("kind", "ratio", "spread", "bound", "words"),
    [
        ("decode", 0.985, 0.001, 0.985, "met"),
        ("decode", 0.986, 0.009, 0.985, "**missed**"),
        ("prefill", 1.001, 0.002, 1.000, "met within its spread"),
        ("prefill", 1.003, 0.002, 1.000, "**missed**"),
        ("decode", 1.500, 0.001, None, ""),
    ],
)
def test_only_a_prefill_has_its_spread(kind, ratio, spread, bound, words):
    assert served_report.verdict(kind, ratio, spread, bound) == words


@pytest.mark.parametrize(
    ("model", "quantization", "kind", "batch", "bound"),
    [
        ("Llama-3.1-8B", None, "decode", 1, 0.990),
        ("Llama-3.1-8B", None, "decode", 8, None),
        ("Llama-3.1-8B", None, "prefill", 8, 1.000),
        ("Llama-3.1-8B", "fp8", "decode", 8, 1.002),
        ("Qwen3-8B", None, "decode", 128, 1.002),
        ("Qwen3-8B", "fp8", "decode", 128, None),
    ],
)
def test_a_bound_is_of_a_model_as_it_is_quantised(model, quantization, kind, batch, bound):
    asked = {"model": model, "quantization": quantization}
    assert served_report.bound_of(asked, {"kind": kind, "batch": batch}) == bound


def test_what_is_said_of_engines_of_their_own():
    unusual = {(row["kind"], row["batch"]): row for row in
               served("11-27-h200-d02c-llama-3.1-8b-bf16")["rows"]}  # fmt: skip
    without_choice = [unusual["decode", batch]["others"]["gpc0"][0] for batch in (1, 8, 32)]
    assert "at {:.3f}, {:.3f} and {:.3f} for batch 1, 8 and 32".format(*without_choice) in SERVED
    alike = served("11-27-h200-b3d28e0-llama-3.1-8b-fp8")
    times = [row["tpot_s"].values() for row in alike["rows"] if "tpot_s" in row]
    apart = [max(each) / min(each) - 1 for each in times]
    words = f"differ by {min(apart) * 100:.1f} to {max(apart):.1%} by what is not the graph"
    assert words.replace("%", " %") in SERVED


def test_what_is_said_of_one_engine():
    runs = [
        served(f"11-28-h200-b742c65-{name}-swap")
        for name in ("llama-3.1-8b", "llama-3.1-8b-batch-32", "qwen3-8b-batch-32")
    ]
    at_one = runs[0]["watched"][0]["graph_s"]
    each = {name: f"{seconds * 1e3:.2f}" for name, seconds in at_one.items()}
    off, on = (
        f"{each[setting]}, {each[f'{setting}-2']} and {each[f'{setting}-3']}"
        for setting in ("off", "on")
    )
    assert f"without the plugin took {off} ms, those with it {on}:" in SERVED

    watched = [row for run in runs for row in run["watched"]]
    rest = [abs(row["rest_mean_s"]["on"] - row["rest_mean_s"]["off"]) for row in watched]
    assert f"with the plugin and without, to {max(rest) * 1e3:.3f} ms" in SERVED
    fp8, gemma = (
        served(f"11-28-h200-b742c65-{name}-swap") for name in ("llama-3.1-8b-fp8", "gemma-3-4b")
    )
    alone = [row["graph_ratio"] for run in (fp8, gemma) for row in run["watched"]]
    assert f"are at {min(alone):.3f} to {max(alone):.3f} of each other" in SERVED
    rest = [turn["rest_s"] for turns in gemma["watched"][-1]["raw"].values() for turn in turns]
    words = f"takes {min(rest) * 1e3:.1f} to {max(rest) * 1e3:.1f} ms at batch 128"
    assert gemma["watched"][-1]["batch"] == 128 and words in SERVED


def test_what_is_said_of_cards():
    """Llama-3.1-8B, a token of 32 requests: the best card, and the eight others."""
    bf16 = "-llama-3.1-8b-bf16"
    best, *others = (
        row["tpot_ratio"]
        for name in (
            "11-28-h200-b742c65-llama-3.1-8b-batch-32-swap",
            *(f"11-27-h200-{run}{bf16}" for run in ("e2a77e1", "3df40ec", "d02c", "108cccf")),
            *(f"11-28-h200-{run}-llama-3.1-8b-swap" for run in ("5f3f33d", "b742c65")),
            *(f"12-01-h200-{run}-llama-3.1-8b-swap" for run in ("023d026", "b0548ab")),
        )
        for row in served(name)["rows"]
        if (row["kind"], row["batch"]) == ("decode", 32)
    )
    least, most = (f"{100 - 100 * ratio:.1f}" for ratio in (max(others), min(others)))
    assert len(others) == 8
    one, eight = f"{100 - 100 * best:.1f} % of a token's time", f"{least} to {most} % on eight"
    assert f"{one} on one card, {eight}" in SERVED
    assert f"{one} at batch 32 on one card, {eight}" in README


def test_what_is_said_of_prefills():
    """Of the Llama in ten runs, and in FP8 in three."""
    runs = [
        *(f"11-27-h200-{run}-llama-3.1-8b-bf16" for run in ("e2a77e1", "3df40ec", "d02c")),
        *(f"11-27-h200-{run}-llama-3.1-8b-bf16" for run in ("108cccf", "99b7")),
        *(f"11-28-h200-{run}-llama-3.1-8b-swap" for run in ("5f3f33d", "b742c65")),
        *(f"12-01-h200-{run}-llama-3.1-8b-swap" for run in ("023d026", "b0548ab")),
        "12-01-h200-1a2b007-llama-3.1-8b-batch-128-swap",
    ]
    prefills = [served(run)["rows"][-1] for run in runs]
    ratios = [row["ttft_ratio"] for row in prefills]
    assert all(row["kind"] == "prefill" for row in prefills) and len(ratios) == 10
    *most, last = (f"{ratio:.4f}" for ratio in ratios)
    assert f"it took {', '.join(most)} and {last} of the time without" in SERVED
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    mean = f"{statistics.fmean(ratios):.4f} ± {error:.4f}"
    last_three = f"in that of the last three {statistics.fmean(ratios[-3:]):.4f}"
    assert f"it is {mean}, {last_three}" in SERVED and f"at {mean} in the mean of" in README
    past = [100 * (row["ttft_ratio"] - row["ttft_spread"] - 1) for row in prefills]
    assert [excess > 0 for excess in past] == [False] * 8 + [True] * 2
    assert f"in the last two of ten runs, by {past[-2]:.2f} and {past[-1]:.2f} %" in SERVED
    fp8 = [
        served(f"{run}-llama-3.1-8b-fp8-swap")["rows"][-1]["ttft_ratio"]
        for run in ("11-28-h200-b742c65", "12-01-h200-023d026", "12-01-h200-b0548ab")
    ]
    assert "it was at {:.3f}, {:.3f} and {:.3f}".format(*fp8) in SERVED


def test_what_is_said_of_128_requests_that_fit():
    (row,) = [row for row in served("12-01-h200-1a2b007-llama-3.1-8b-batch-128-swap")["rows"]
              if row["kind"] == "decode"]  # fmt: skip
    off, on = (f"{row['tpot_mean_s'][name] * 1e3:.3f}" for name in ("off", "on"))
    ratio = f"{row['tpot_ratio']:.4f} ± {row['tpot_spread']:.4f}"
    assert f"takes {off} ms without the plugin and {on} with it: {ratio}" in SERVED
    assert f"a Llama is at [{ratio}]" in README


def test_what_is_said_of_gemma():
    watched = served("12-01-h200-b0548ab-gemma-3-4b-swap")["watched"]
    assert [row["batch"] for row in watched] == [1, 32, 128]
    steps = [f"{row['step_ratio']:.4f}" for row in watched]
    assert "takes {}, {} and {} of what it takes without".format(*steps) in SERVED


def test_what_is_said_of_building():
    text = (ROOT / "docs" / "2026-11-28-building.txt").read_text()
    minutes, seconds = re.search(r"real\t(\d+)m([\d.]+)s", text).groups()
    size = int(re.search(r"(\d+) libhp_norm_cuda.so", text)[1])
    words = f"{minutes} min {float(seconds):.0f} s on two cores, and the CUDA library for six"
    assert words in README and f"and PTX has {size / 1e6:.1f} MB" in README


def test_what_is_said_of_how_far_to_trust_a_ratio():
    """Of online FP8, which has one graph, and of the Llama at batch 1."""
    commits = ("11-28-h200-b742c65", "12-01-h200-023d026", "12-01-h200-b0548ab")
    fp8 = [served(f"{commit}-llama-3.1-8b-fp8-swap")["watched"] for commit in commits]
    for commit, watched in zip(commits, fp8, strict=True):
        graphs = " | ".join(f"{row['graph_ratio']:.4f}" for row in watched)
        assert re.search(rf"\[{commit[-7:]}\]\([^)]*\) \| \w{{4}} \| {graphs} \|", SERVED)
        assert all(row["graph_ratio"] < 1 for row in watched)

    def words(row, over, under):
        found = [each[row]["graph_s"][over] / each[row]["graph_s"][under] for each in fp8]
        return "{:.3f}, {:.3f} and {:.3f}".format(*found)

    assert f"At batch 1 `off` takes {words(0, 'off', 'off-2')} of `off-2`" in SERVED
    assert f"at batch 128 `on-2` takes {words(3, 'on-2', 'off-2')} of `off-2`" in SERVED
    first = [served(f"{commit}-llama-3.1-8b-swap")["watched"][0] for commit in commits[1:]]
    off, second, table = (
        [f"{value:.3f}" for value in values]
        for values in zip(
            *((row["graph_s"]["off"] / row["graph_s"]["off-2"],
               row["graph_s"]["on-2"] / row["graph_s"]["off-2"], row["graph_ratio"])
              for row in first), strict=True)
    )  # fmt: skip
    assert set(off) == {"1.009"} and f"`off` takes {off[0]} of `off-2` on 6a5f" in SERVED
    assert set(second) == {"0.989"} and f"the graph is at {second[0]} on both" in SERVED
    assert f"where the tables have {table[0]} and {table[1]}" in SERVED

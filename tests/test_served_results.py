"""The README's words about served models and building, against what runs left in docs."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = " ".join((ROOT / "README.md").read_text().split())


def served(name):
    """Read what a run of a served model left, by the end of its date and the rest of its name."""
    path = ROOT / "docs" / "gpu" / f"2026-11-{name}.json"
    return json.loads(path.read_text())


def on_over_off(row, what, digits, places=3):
    """The words of a cell: off, on and their ratio; none for no row."""
    if row is None:
        return ""
    off, on = (f"{row[f'{what}_mean_s'][name] * 1e3:.{digits}f}" for name in ("off", "on"))
    ratio, spread = row[f"{what}_ratio"], row[f"{what}_spread"]
    return f"{off}, {on} ms: {ratio:.{places}f} ± {spread:.{places}f}"


def table_of_readme(heading):
    """The cells of the rows below a heading, the first of each apart."""
    text = (ROOT / "README.md").read_text().split(heading)[1].split("\n\n")[0]
    rows = [
        [part.replace("*", "").strip() for part in line.strip("|").split("|")]
        for line in text.splitlines()[2:]
    ]
    return [(first, words) for first, *words in rows]


def test_the_readme_says_what_engines_of_their_own_took():
    runs = [
        served(f"27-h200-{name}")
        for name in (
            "e2a77e1-llama-3.1-8b-bf16",
            "3df40ec-llama-3.1-8b-bf16",
            "d02c-llama-3.1-8b-bf16",
            "3df40ec-qwen3-8b",
        )
    ]
    columns = [{(row["kind"], row["batch"]): row for row in run["rows"]} for run in runs]

    def cell(row):
        prefill = row is not None and row["kind"] == "prefill"
        return on_over_off(row, *(("ttft", 1) if prefill else ("tpot", 3)))

    table = table_of_readme("| batch |")
    works = [
        ("prefill", 8) if first.startswith("prefill") else ("decode", int(first.split(",")[0]))
        for first, _ in table
    ]
    assert works == list(columns[0])
    for work, (_, words) in zip(works, table, strict=True):
        assert words == [cell(column.get(work)) for column in columns]
    without_choice = [columns[2]["decode", batch]["others"]["gpc0"][0] for batch in (1, 8, 32)]
    assert "at {:.3f}, {:.3f} and {:.3f} for batch 1, 8 and 32".format(*without_choice) in README
    alike = served("27-h200-b3d28e0-llama-3.1-8b-fp8")
    times = [row["tpot_s"].values() for row in alike["rows"] if "tpot_s" in row]
    apart = [max(each) / min(each) - 1 for each in times]
    words = f"differ by {min(apart) * 100:.1f} to {max(apart):.1%} by what is not the graph"
    assert words.replace("%", " %") in README


def test_the_readme_says_what_one_engine_took():
    runs = [
        served(f"28-h200-b742c65-{name}-swap")
        for name in ("llama-3.1-8b", "llama-3.1-8b-batch-32", "qwen3-8b-batch-32")
    ]
    table = table_of_readme("| batch, one engine |")
    for first, words in table:
        batch = int(first.split(",")[0])
        expected = []
        for run in runs:
            graphs = {row["batch"]: row for row in run["watched"]}
            decodes = {row["batch"]: row for row in run["rows"] if row["kind"] == "decode"}
            expected += [
                on_over_off(graphs.get(batch), "graph", 3, places=4),
                on_over_off(decodes.get(batch), "tpot", 3),
            ]
        assert words == expected
    assert len(table) == 4

    at_one = runs[0]["watched"][0]["graph_s"]
    each = {name: f"{seconds * 1e3:.2f}" for name, seconds in at_one.items()}
    off, on = (
        f"{each[setting]}, {each[f'{setting}-2']} and {each[f'{setting}-3']}"
        for setting in ("off", "on")
    )
    assert f"without the plugin took {off} ms, those with it {on}:" in README

    watched = [row for run in runs for row in run["watched"]]
    rest = [abs(row["rest_mean_s"]["on"] - row["rest_mean_s"]["off"]) for row in watched]
    assert f"with the plugin and without, to {max(rest) * 1e3:.3f} ms" in README
    fp8, gemma = (
        served(f"28-h200-b742c65-{name}-swap") for name in ("llama-3.1-8b-fp8", "gemma-3-4b")
    )
    alone = [row["graph_ratio"] for run in (fp8, gemma) for row in run["watched"]]
    assert f"are at {min(alone):.3f} to {max(alone):.3f} of each other" in README
    rest = [turn["rest_s"] for turns in gemma["watched"][-1]["raw"].values() for turn in turns]
    words = f"takes {min(rest) * 1e3:.1f} to {max(rest) * 1e3:.1f} ms at batch 128"
    assert gemma["watched"][-1]["batch"] == 128 and words in README


def test_the_readme_says_what_cards_gained():
    """Llama-3.1-8B, a token of 32 requests: the best card, and the six others."""
    bf16 = "-llama-3.1-8b-bf16"
    best, *others = (
        row["tpot_ratio"]
        for name in (
            "28-h200-b742c65-llama-3.1-8b-batch-32-swap",
            *(f"27-h200-{run}{bf16}" for run in ("e2a77e1", "3df40ec", "d02c", "108cccf")),
            *(f"28-h200-{run}-llama-3.1-8b-swap" for run in ("5f3f33d", "b742c65")),
        )
        for row in served(name)["rows"]
        if (row["kind"], row["batch"]) == ("decode", 32)
    )
    least, most = (f"{100 - 100 * ratio:.1f}" for ratio in (max(others), min(others)))
    gained = f"{100 - 100 * best:.1f} % of a token's time on one card, {least} to {most} % on six"
    assert len(others) == 6 and gained in README


def test_the_readme_says_what_building_took():
    text = (ROOT / "docs" / "2026-11-28-building.txt").read_text()
    minutes, seconds = re.search(r"real\t(\d+)m([\d.]+)s", text).groups()
    size = int(re.search(r"(\d+) libhp_norm_cuda.so", text)[1])
    words = f"{minutes} min {float(seconds):.0f} s on two cores, and the CUDA library for six"
    assert words in README and f"and PTX has {size / 1e6:.1f} MB" in README

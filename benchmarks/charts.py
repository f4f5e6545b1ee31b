"""The charts of the README: ratio to the best peer as a heat map, bandwidth against the copy."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from benchmarks.results import Results
from benchmarks.shapes import Case

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.colors import TwoSlopeNorm  # noqa: E402

BANDWIDTH_HIDDEN_SIZES = (4096, 8192, 16384)


def heat_map(results: Results, path: Path, op: str = "fused_add", dtype: str = "bf16") -> bool:
    """Draw the ratio to the best peer over tokens and width; False when there is nothing."""
    cells = results.part(op, dtype)
    if cells.empty:
        return False
    table = cells.pivot_table(index="hidden_size", columns="num_tokens", values="ratio_to_peer")
    values = table.to_numpy()
    height, width = values.shape
    figure, axes = plt.subplots(figsize=(2.5 + 0.62 * width, 1.6 + 0.36 * height))
    norm = TwoSlopeNorm(vcenter=1.0, vmin=min(0.8, np.nanmin(values)), vmax=2.0)
    image = axes.imshow(values, norm=norm, cmap="RdYlGn", aspect="auto")
    for row, column in np.argwhere(~np.isnan(values)):
        text = f"{values[row, column]:.2f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8)
    axes.set_xticks(range(width), table.columns)
    axes.set_yticks(range(height), table.index)
    axes.set_xlabel("num_tokens")
    axes.set_ylabel("hidden_size")
    axes.set_title(f"{results.device}, {op} {dtype}: time of the best peer over ours")
    figure.colorbar(image, ax=axes, pad=0.02)
    _save(figure, path)
    return True


def bandwidth(results: Results, path: Path, op: str = "fused_add", dtype: str = "bf16") -> bool:
    """Draw bandwidth over tokens for us, the best peer and the copy; False without cells."""
    cells = results.part(op, dtype)
    widths = [size for size in BANDWIDTH_HIDDEN_SIZES if (cells["hidden_size"] == size).any()]
    if not widths:
        return False
    figure, all_axes = plt.subplots(
        1,
        len(widths),
        figsize=(4.2 * len(widths), 3.8),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    series = (
        ("us", "hp_norm", "o-"),
        ("best_peer_us", "best peer", "s--"),
        ("copy_us", "copy", ":"),
    )
    for axes, hidden_size in zip(all_axes[0], widths, strict=True):
        part = cells[cells["hidden_size"] == hidden_size].sort_values("num_tokens")
        for column, label, style in series:
            axes.plot(part["num_tokens"], _terabytes(part, column), style, label=label, ms=4)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_title(f"hidden_size {hidden_size}")
        axes.set_xlabel("num_tokens")
        axes.grid(alpha=0.3)
    all_axes[0][0].set_ylabel("TB/s read and written")
    all_axes[0][0].legend()
    figure.suptitle(f"{results.device}, {op} {dtype}; below 512 tokens the inputs are in L2")
    _save(figure, path)
    return True


def _terabytes(cells: pd.DataFrame, column: str) -> list[float]:
    return [
        Case(cell.op, cell.dtype, cell.num_tokens, cell.hidden_size).traffic_bytes
        / getattr(cell, column)
        / 1e6
        for cell in cells.itertuples()
    ]


def _save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of matplotlib in it, an unchanged chart stays an unchanged file.
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)

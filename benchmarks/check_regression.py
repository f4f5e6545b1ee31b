"""``make bench-check OLD=... NEW=...``: name every cell that lost more than 3 %.

Compared are ratios, to the copy and to the best peer of the same file, never times: two runs of
one binary on two machines, or on one machine at two clocks, then agree.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks import analysis, records, terminal

MAX_LOSS = 0.03
RATIOS = {"ratio_to_copy": "the copy", "ratio_to_peer": "the best peer"}
_CELL = ["op", "dtype", "num_tokens", "hidden_size", "protocol"]


@dataclass(frozen=True)
class Loss:
    """A cell whose ratio fell from ``old`` to ``new``."""

    cell: str
    to: str
    old: float
    new: float

    def __str__(self) -> str:
        change = self.new / self.old - 1
        return f"{self.cell}: ratio to {self.to} {self.old:.3f} -> {self.new:.3f} ({change:+.1%})"


def compare(
    old: pd.DataFrame, new: pd.DataFrame, max_loss: float = MAX_LOSS
) -> tuple[list[Loss], int, int]:
    """Losses, worst first; how many cells were compared; how many of OLD are not in NEW."""
    cells = [analysis.ours_against_peers(analysis.latest(frame)) for frame in (old, new)]
    both = cells[0].merge(cells[1], on=_CELL, suffixes=("_old", "_new"))
    losses = []
    for cell in both.itertuples():
        name = f"{cell.op} {cell.dtype} {cell.num_tokens} x {cell.hidden_size} {cell.protocol}"
        for column, to in RATIOS.items():
            before, after = getattr(cell, f"{column}_old"), getattr(cell, f"{column}_new")
            if after < before * (1 - max_loss):
                losses.append(Loss(name, to, before, after))
    losses.sort(key=lambda loss: loss.new / loss.old)
    return losses, len(both), len(cells[0]) - len(both)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0 without losses, 1 with some, 2 when nothing could be compared."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check_regression")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--max-loss", type=float, default=MAX_LOSS, help="default: 0.03")
    args = parser.parse_args(arguments)
    console = terminal.console()
    try:
        losses, compared, missing = compare(
            records.read([args.old]), records.read([args.new]), args.max_loss
        )
    except (ValueError, OSError) as error:
        console.print(str(error), style="red", markup=False)
        return 2
    for loss in losses:
        console.print(str(loss), style="red", markup=False, highlight=False)
    if missing:
        console.print(f"{missing} cells of {args.old} are not in {args.new}", style="yellow")
    if not compared:
        console.print("no cell is in both files, nothing was compared", style="red")
        return 2
    cells = len({loss.cell for loss in losses})
    console.print(f"{compared} cells compared, {cells} lost more than {args.max_loss:.0%}")
    return 1 if losses else 0


if __name__ == "__main__":
    sys.exit(main())

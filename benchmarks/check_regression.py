"""``make bench-check NEW=...``: name every cell that lost more than 3 % to the committed results.

Compared are ratios, to the copy and to the best peer of the same file, never times: two runs of
one binary on two machines, or on one machine at two clocks, then agree.  A file without peers (ours
and the copy) is compared by its ratio to the copy, and with the committed ones of its kind.
``OLD=...`` compares with another file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks import analysis, records, results, terminal
from benchmarks.providers import COPY, EMPTY, OURS

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


@dataclass(frozen=True)
class Comparison:
    """What became of the cells of OLD in NEW.

    ``losses``, worst first; ``failed``, the cells that ours raised or was wrong in, with the
    reason; how many were compared by a ratio, and how many of OLD were not.
    """

    losses: list[Loss]
    failed: list[str]
    compared: int
    missing: int


def _name(cell: tuple) -> str:
    return f"{cell.op} {cell.dtype} {cell.num_tokens} x {cell.hidden_size} {cell.protocol}"


def compare(old: pd.DataFrame, new: pd.DataFrame, max_loss: float = MAX_LOSS) -> Comparison:
    """Compare the newest commit of two results.

    Raises
    ------
    ValueError
        If a cell is in one of them more than once: it then has results of several devices.

    """
    old, new = analysis.latest(old), analysis.latest(new)
    before, after = analysis.our_cells(old), analysis.our_cells(new)
    both = before.merge(after, on=_CELL, suffixes=("_old", "_new"), validate="one_to_one")
    losses, compared = [], 0
    for cell in both.itertuples():
        ratios = {to: (getattr(cell, f"{column}_old"), getattr(cell, f"{column}_new"))
                  for column, to in RATIOS.items()}  # fmt: skip
        compared += any(was > 0 and now > 0 for was, now in ratios.values())  # neither is NaN
        losses += [
            Loss(_name(cell), to, was, now)
            for to, (was, now) in ratios.items()
            if now < was * (1 - max_loss)
        ]
    losses.sort(key=lambda loss: loss.new / loss.old)
    broken = new[(new["provider"] == OURS) & (new["status"] == records.FAILED)]
    broken = before[_CELL].merge(broken, on=_CELL)
    failed = [f"{_name(cell)}: {cell.reason}" for cell in broken.itertuples()]
    return Comparison(losses, failed, compared, len(before) - compared)


def committed(path: Path, new: pd.DataFrame) -> pd.DataFrame:
    """The committed rows of the devices, operators and dtypes of a new result.

    One that is committed itself is compared with what was before its commit.
    """
    alone = set(new["provider"]) <= {OURS, COPY, EMPTY}
    folder = results.DTYPES if alone else results.RESULTS
    old = records.read(sorted(folder.glob("*.csv")))
    if path.resolve().parent == folder:
        old = old[~old["commit"].isin(new["commit"])]
    return old.merge(new[["device", "op", "dtype"]].drop_duplicates())


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0 without losses and failures, 1 with some, 2 when nothing was compared."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check_regression")
    parser.add_argument("old", type=Path, nargs="?", help="default: the committed results")
    parser.add_argument("new", type=Path)
    parser.add_argument("--max-loss", type=float, default=MAX_LOSS, help="default: 0.03")
    args = parser.parse_args(arguments)
    console = terminal.console()
    try:
        new = records.read([args.new])
        old = records.read([args.old]) if args.old else committed(args.new, new)
        found = compare(old, new, args.max_loss)
    except (ValueError, OSError) as error:
        console.print(str(error), style="red", markup=False)
        return 2
    for text in [*map(str, found.losses), *(f"FAILED: {cell}" for cell in found.failed)]:
        console.print(text, style="red", markup=False, highlight=False)
    if found.missing:
        before = args.old or "the committed results"
        text = f"{found.missing} cells of {before} have no ratio to compare in {args.new}"
        console.print(text, style="yellow", markup=False)
    if not found.compared and not found.failed:
        console.print("no cell is in both files, nothing was compared", style="red")
        return 2
    cells = len({loss.cell for loss in found.losses})
    console.print(f"{found.compared} cells compared, {cells} lost more than {args.max_loss:.0%}")
    return 1 if found.losses or found.failed else 0


if __name__ == "__main__":
    sys.exit(main())

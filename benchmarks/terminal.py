"""What a run shows: progress while it goes, and the table of ratios when it is done."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks import analysis
from benchmarks.providers import COPY
from benchmarks.records import OK, Row

LOG_WIDTH = 200  # the widest table; a log is not a terminal and says nothing of its own width


def console() -> Console:
    """The console of a command: as wide as the terminal, or as every table needs."""
    return Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)


class Reporter:
    """Progress bars on a terminal, one line per step where the output goes to a file."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._task = None
        self._total = 0
        self._last = ""

    @contextmanager
    def phase(self, title: str, total: int) -> Iterator[None]:
        """A phase of ``total`` steps, each of which calls :meth:`step`."""
        self._total = total
        if not self.console.is_terminal:
            self.console.print(f"{title}: {total}")
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[last]}"),
        )
        with Progress(*columns, console=self.console) as progress:
            self._progress = progress
            self._task = progress.add_task(title, total=total, last="")
            yield
        self._progress = None

    def step(self, done: int, text: str, line: bool = True) -> None:
        """Report that ``done`` steps are finished; ``line`` prints it where there is no bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, last=text)
        elif line:
            self.console.print(
                f"[{done}/{self._total}] {text}", markup=False, highlight=False, soft_wrap=True
            )


def summary_of(rows: Iterable[Row]) -> str:
    """One line about one cell: every time measured, who has none, and what is odd about it."""
    rows = list(rows)
    times = [f"{row.provider} {row.us:.4g}" for row in rows if row.us is not None]
    absent = [f"{row.provider} {row.status}" for row in rows if row.status != OK]
    remarks = sorted({row.reason for row in rows if row.status == OK and row.reason})
    head = f"{rows[0].op} {rows[0].dtype} {rows[0].num_tokens} x {rows[0].hidden_size}: "
    return head + ", ".join([*times, *absent, *remarks])


def _style(ratio: float) -> str:
    return "green" if ratio >= 1.05 else "yellow" if ratio >= 1.0 else "red"


def ratio_table(frame: pd.DataFrame, title: str) -> Table:
    """Ratio to the best peer (and to the copy), hidden size by number of tokens."""
    table = Table(title=title, caption="ratio to the best peer / ratio to the copy")
    tokens = sorted(frame["num_tokens"].unique())
    table.add_column("hidden size", justify="right")
    for count in tokens:
        table.add_column(str(count), justify="right")
    by_cell = frame.set_index(["hidden_size", "num_tokens"])
    for hidden_size in sorted(frame["hidden_size"].unique()):
        texts = []
        for count in tokens:
            if (hidden_size, count) not in by_cell.index:
                texts.append("-")
                continue
            cell = by_cell.loc[(hidden_size, count)]
            style = _style(cell["ratio_to_peer"])
            copy = f"{cell['ratio_to_copy']:.2f}" if cell["ratio_to_copy"] > 0 else "-"
            texts.append(f"[{style}]{cell['ratio_to_peer']:.2f}[/] [dim]{copy}[/]")
        table.add_row(str(hidden_size), *texts)
    return table


def print_results(console: Console, frame: pd.DataFrame) -> None:
    """Print a table of ratios per operator and dtype, and why rows have no time, by provider."""
    cells = analysis.ours_against_peers(frame)
    for (op, dtype), part in cells.groupby(["op", "dtype"], sort=False):
        console.print(ratio_table(part, f"hp_norm {op} {dtype}"))
    for (provider, status, reason), part in frame[frame["status"] != OK].groupby(
        ["provider", "status", "reason"], sort=False
    ):
        shown = f"{provider}: {len(part)} rows {status}: {reason}"
        console.print(shown, markup=False, highlight=False)
    if not (frame["provider"] == COPY).any():
        console.print("no copy was timed, so there are no ratios to it")

"""The committed results: which rows a report is made of, and where the rows of a device are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks import analysis, records
from benchmarks.environment import ROOT

RESULTS = ROOT / "benchmarks" / "results"
DTYPES = RESULTS / "dtypes"  # several dtypes in one process, no peers
DEFAULT_DEVICE = "H200"


def short_name(device: str) -> str:
    """``H100`` for ``NVIDIA H100 80GB HBM3``; ``CPU`` for what is not an NVIDIA GPU."""
    words = device.split()
    return words[1] if len(words) > 1 and words[0] == "NVIDIA" else "CPU"


@dataclass(frozen=True)
class Results:
    """The rows of one device and the cells in which we can be compared with a peer.

    ``dtypes``: rows of several dtypes that one process timed, without peers.  They are rows apart,
    since a short call takes a few percent less time where no peers are in the process.
    """

    device: str
    rows: pd.DataFrame
    cells: pd.DataFrame
    dtypes: pd.DataFrame

    def part(self, op: str, dtype: str) -> pd.DataFrame:
        """The cells of one operator and dtype in which a peer was timed, too."""
        return _of(self.cells, op, dtype)

    def without_peers(self, op: str, dtype: str) -> pd.DataFrame:
        """The cells of one operator and dtype of the process that had no peers in it."""
        return _of(analysis.our_cells(analysis.in_grid(self.dtypes)), op, dtype)

    def times(self, op: str, dtype: str) -> pd.DataFrame:
        """Microseconds by (num_tokens, hidden_size), one column per provider."""
        return _of(self.rows, op, dtype).pivot_table(
            index=["num_tokens", "hidden_size"], columns="provider", values="us", sort=True
        )


def _of(frame: pd.DataFrame, op: str, dtype: str) -> pd.DataFrame:
    return frame[(frame["op"] == op) & (frame["dtype"] == dtype)]


def load(paths: Iterable[Path], dtype_paths: Iterable[Path] = ()) -> dict[str, Results]:
    """Results by short device name, each of the one device that was measured last under it.

    Rows of a forced protocol are left out.
    """
    dtypes = _of_devices(dtype_paths)
    return {
        name: Results(
            name,
            rows,
            analysis.ours_against_peers(analysis.in_grid(rows)),
            dtypes.get(name, rows),
        )
        for name, rows in _of_devices(paths).items()
    }


def _of_devices(paths: Iterable[Path]) -> dict[str, pd.DataFrame]:
    frame = analysis.latest(analysis.default_protocol(records.read(paths)))
    found = {}
    for name, rows in frame.groupby(frame["device"].map(short_name), sort=True):
        newest = rows.sort_values("date", kind="stable")["device"].iloc[-1]
        found[name] = rows[rows["device"] == newest].reset_index(drop=True)
    return found


def of_device(found: dict[str, Results], name: str) -> Results:
    """The results of a device, empty when there are none."""
    if name in found:
        return found[name]
    nothing = records.read([])
    return Results(name, nothing, analysis.ours_against_peers(nothing), nothing)

"""Ratios of our operator to the best peer and to the copy, and the bounds they have to meet."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from benchmarks import stats, timing
from benchmarks.providers import COPY, CPU_PEERS, OURS, PEERS
from benchmarks.records import KEY, OK
from benchmarks.shapes import BANDS, HIDDEN_SIZES, Band

# The spread that a single cell may show; the means are allowed none.
CELL_SPREAD = 0.02
MAX_FP16_OVER_BF16 = 1.03


def default_protocol(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows timed under the protocol that their number of tokens is judged by."""
    return frame[frame["protocol"] == frame["num_tokens"].map(timing.protocol_for)]


def latest(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep, per device, operator, dtype and protocol, the rows of the commit measured last.

    The grid never mixes commits: shards of one commit add up, a newer commit replaces all of them.
    The founding table's widths between the grid's are a run of their own, and stay until they are
    measured again. A cell that was measured twice at one commit keeps its newest rows.
    """
    if frame.empty:
        return frame
    frame = frame.sort_values("date", kind="stable")
    group = ["device", "op", "dtype", "protocol", frame["hidden_size"].isin(HIDDEN_SIZES)]
    frame = frame[frame["commit"] == frame.groupby(group)["commit"].transform("last")]
    return frame.drop_duplicates([*KEY, "provider"], keep="last").reset_index(drop=True)


def in_grid(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the grid's widths: those of the founding table alone met fewer peers."""
    return frame[frame["hidden_size"].isin(HIDDEN_SIZES)]


def is_peer(frame: pd.DataFrame) -> pd.Series:
    """Which rows are of a peer; plain torch counts as one on the CPU alone."""
    on_cpu = frame["cuda"] == ""
    return frame["provider"].isin(PEERS) | (on_cpu & frame["provider"].isin(CPU_PEERS))


def our_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """One line per cell in which we have a time.

    Columns: the cell's key; ``us`` (ours), ``best_peer_us`` and ``copy_us`` in microseconds a call;
    ``us_spread``, ``rule`` and ``best_peer``; and the ratios ``ratio_to_peer`` and
    ``ratio_to_copy`` (above 1: we are faster).  What no peer, or no copy, was timed for is NaN.
    """
    timed = frame[frame["status"] == OK]
    ours = timed[timed["provider"] == OURS].set_index(KEY)[["us", "us_spread", "rule"]]
    of_peers = timed[is_peer(timed)].sort_values("us")
    best = of_peers.drop_duplicates(KEY).set_index(KEY)[["provider", "us"]]
    copy = timed[timed["provider"] == COPY].set_index(KEY)["us"].rename("copy_us")
    best.columns = ["best_peer", "best_peer_us"]
    cells = ours.join(best).join(copy).reset_index()
    cells["ratio_to_peer"] = cells["best_peer_us"] / cells["us"]
    cells["ratio_to_copy"] = cells["copy_us"] / cells["us"]
    return cells.sort_values(KEY, kind="stable").reset_index(drop=True)


def ours_against_peers(frame: pd.DataFrame) -> pd.DataFrame:
    """The lines of ``our_cells`` in which at least one peer has a time, too."""
    return our_cells(frame).dropna(subset=["best_peer_us"]).reset_index(drop=True)


@dataclass(frozen=True)
class Bound:
    """A bound, what was reached, and where the worst cell lies."""

    name: str
    bound: float
    reached: float
    where: str = ""
    at_most: bool = False
    spread: float = 0.0

    @property
    def verdict(self) -> str:
        """``met``, ``met within the spread of a cell``, ``NOT met`` or ``not measured``."""
        if self.reached != self.reached:
            return "not measured"
        sign = -1 if self.at_most else 1
        if sign * (self.reached - self.bound) >= 0:
            return "met"
        if sign * (self.reached - self.bound * (1 - sign * self.spread)) >= 0:
            return f"met within {self.spread:.0%}"
        return "NOT met"

    @property
    def is_met(self) -> bool:
        """Whether the verdict is one of the met ones."""
        return self.verdict.startswith("met")


def worst_cell(
    name: str, bound: float, cells: pd.DataFrame, column: str, at_most: bool = False,
    spread: float = CELL_SPREAD,
) -> Bound:  # fmt: skip
    """The bound of a column's worst value: the cell that it is in, and how many cells miss it."""
    values = cells[column].dropna()
    if values.empty:
        return Bound(name, bound, float("nan"), at_most=at_most)
    cell = cells.loc[values.idxmax() if at_most else values.idxmin()]
    missed = int((values > bound if at_most else values < bound).sum())
    where = f"{cell['num_tokens']} x {cell['hidden_size']}"
    if missed > 1:
        where += f"; {missed} cells miss it"
    return Bound(name, bound, float(cell[column]), where, at_most, spread)


def band_bounds(cells: pd.DataFrame, band: Band) -> list[Bound]:
    """The bounds of one band: mean and worst cell against the peers, and against the copy."""
    inside = cells[cells["num_tokens"].between(band.first, band.last)]
    limits = [("the best peer", "ratio_to_peer", band.min_geometric_mean, band.min_cell)]
    if band.min_copy_ratio is not None:
        limits.append(("the copy", "ratio_to_copy", band.min_copy_ratio, band.min_copy_ratio))
    bounds = []
    for against, column, least_mean, least in limits:
        title = f"{band.name} tokens"
        mean = stats.geometric_mean(inside[column].dropna())
        bounds += [
            Bound(f"{title}: geometric mean to {against}", least_mean, mean),
            worst_cell(f"{title}: worst cell to {against}", least, inside, column),
        ]
    return bounds


def fp16_bound(rows: pd.DataFrame) -> Bound:
    """How much longer fp16 takes than bf16, in the worst cell that both were timed in."""
    ours = rows[(rows["provider"] == OURS) & (rows["op"] == "fused_add") & (rows["status"] == OK)]
    ours = in_grid(ours)
    key = [name for name in KEY if name != "dtype"]
    both = ours[ours["dtype"] == "fp16"].merge(ours[ours["dtype"] == "bf16"], on=key)
    both["ratio"] = both["us_x"] / both["us_y"]
    name = "fp16 over bf16: worst cell"
    return worst_cell(name, MAX_FP16_OVER_BF16, both, "ratio", at_most=True, spread=0.0)


def plain_bound(cells: pd.DataFrame) -> Bound:
    """Plain rms_norm in bf16: the worst cell against the best peer."""
    plain = cells[(cells["op"] == "plain") & (cells["dtype"] == "bf16")]
    return worst_cell("plain rms_norm: worst cell to the best peer", 1.0, plain, "ratio_to_peer")


def all_bounds(cells: pd.DataFrame, dtypes: pd.DataFrame) -> list[Bound]:
    """Every bound that the results of one device are judged by.

    ``cells`` as ``ours_against_peers`` makes them; ``dtypes`` has rows of several dtypes that one
    process timed.
    """
    fused = cells[(cells["op"] == "fused_add") & (cells["dtype"] == "bf16")]
    bounds = [bound for band in BANDS for bound in band_bounds(fused, band)]
    return [*bounds, fp16_bound(dtypes), plain_bound(cells)]

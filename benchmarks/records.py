"""One CSV row per provider and case: writing, reading, and what the columns mean."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd

OK, SKIPPED, FAILED = "ok", "skipped", "failed"


@dataclass(frozen=True)
class Row:
    """A measurement, or the reason why there is none.

    ``date`` is the start of the run, the clocks were read under load.  ``us`` is the median time of
    one call in microseconds, ``us_spread`` the interquartile range over the median, ``gb_per_s``
    the bytes that a call has to move (``Case.traffic_bytes``) over ``us``, in 10^9 bytes a second;
    ``ratio_to_copy`` is the copy's time over ``us`` (1 is the copy's bandwidth, more is better).
    ``rule`` is the launch rule that ours took.  ``status`` is ``ok``, ``skipped`` (not available,
    or not enough memory) or ``failed`` (raised, or its result did not pass the check); ``reason``
    says why, and of an ``ok`` row that its spread is suspicious.
    """

    commit: str
    date: str
    device: str
    sm_clock_mhz: int | None
    mem_clock_mhz: int | None
    driver: str
    cuda: str
    torch: str
    provider: str
    provider_version: str
    op: str
    dtype: str
    num_tokens: int
    hidden_size: int
    protocol: str
    us: float | None
    us_spread: float | None
    gb_per_s: float | None
    ratio_to_copy: float | None
    rule: str
    status: str
    reason: str


COLUMNS = [field.name for field in fields(Row)]
KEY = ["device", "op", "dtype", "num_tokens", "hidden_size", "protocol"]


def _format(value: object) -> object:
    """Four significant digits: the spread of a median is above the fifth."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else value


class Writer:
    """Append rows to a CSV as they come, so that a run cut short keeps what it measured."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists() or path.stat().st_size == 0
        self._file = path.open("a", newline="")
        self._csv = csv.DictWriter(self._file, COLUMNS, lineterminator="\n")
        if is_new:
            self._csv.writeheader()

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows and flush them to disk."""
        for row in rows:
            self._csv.writerow({name: _format(value) for name, value in asdict(row).items()})
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(paths: Iterable[Path]) -> pd.DataFrame:
    """Read result CSVs into one frame; empty texts stay empty texts.

    Raises
    ------
    ValueError
        If a file lacks one of the columns, which names the file and the columns.

    """
    frames = []
    for path in paths:
        texts = dict.fromkeys(
            ["commit", "date", "driver", "cuda", "torch", "provider_version", "rule", "reason"], str
        )
        frame = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values={"us": [""]})
        missing = [name for name in COLUMNS if name not in frame.columns]
        if missing:
            raise ValueError(f"{path}: not a benchmark result, it lacks {', '.join(missing)}")
        frames.append(frame[COLUMNS])
    if not frames:
        return pd.DataFrame(columns=COLUMNS)
    frame = pd.concat(frames, ignore_index=True)
    for name in ("us", "us_spread", "gb_per_s", "ratio_to_copy", "sm_clock_mhz", "mem_clock_mhz"):
        frame[name] = pd.to_numeric(frame[name], errors="coerce")
    return frame

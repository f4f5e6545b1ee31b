"""Medians, spreads, and what a profile says about norm kernels."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from typing import Any

# Our kernels and operators carry the namespace hp_norm; Inductor names a kernel after the
# operations that it fused, and a norm is the only one of a transformer with rsqrt in it.
OURS = re.compile(r"hp_norm")
NORM = re.compile(r"hp_norm|rsqrt|rms_?norm|RMSNorm", re.IGNORECASE)


def spread(values: Sequence[float]) -> float | None:
    """Return half the distance between the quartiles over the median: a robust relative error.

    None of a single value, which says nothing about the next one; nan where the median is 0.
    """
    if len(values) < 2:
        return None
    low, high = min(values), max(values)
    if len(values) > 2:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return _over((high - low) / 2, statistics.median(values))


def paired_ratio(on: Sequence[float], off: Sequence[float]) -> tuple[float, float | None]:
    """Return the median of on/off over the interleaved pairs, and its spread.

    Neighbours in time are compared, so that a clock that drifts over the run cancels. nan where
    there is nothing to compare with: a server whose answers come in one piece has no time between
    tokens.
    """
    ratios = [_over(a, b) for a, b in zip(on, off, strict=True)]
    return statistics.median(ratios), spread(ratios)


def _over(value: float, base: float) -> float:
    return value / base if base else math.nan


def ratio_of_means(on: Sequence[float], off: Sequence[float]) -> tuple[float, float]:
    """Return mean(on) over mean(off), a value an engine, and the standard error of the ratio.

    Engines of one graph differ by up to 2 %, however often each is measured, so engines are what
    repeats; and the compilations of one, by less (docs/notes/2026-11-28-one-engine.md). nan where
    there is nothing to compare with.
    """
    means = statistics.fmean(on), statistics.fmean(off)
    relative = [
        _over(statistics.variance(group) / len(group), mean**2) if len(group) > 1 else 0.0
        for group, mean in zip((on, off), means, strict=True)
    ]
    ratio = _over(*means)
    return ratio, ratio * sum(relative) ** 0.5


def norm_share(profile: dict[str, Any]) -> dict[str, float]:
    """Sum a profile: time a step, the norms' part of it, our kernels and their number."""
    steps = profile["steps"]
    kernels = profile["kernels"]

    def total(pattern: re.Pattern[str] | None, field: str) -> float:
        rows = [row for row in kernels if pattern is None or pattern.search(row["name"])]
        return sum(row[field] for row in rows) / steps

    return {
        "kernel_us_per_step": total(None, "time_us"),
        "norm_us_per_step": total(NORM, "time_us"),
        "norms_per_step": total(NORM, "count"),
        "hp_norm_us_per_step": total(OURS, "time_us"),
        "hp_norm_per_step": total(OURS, "count"),
    }


def same_tokens(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]) -> dict[str, float]:
    """Compare two greedy generations of the same prompts, token by token."""
    pairs = [pair for rows in zip(a, b, strict=True) for pair in zip(*rows, strict=True)]
    rows_equal = sum(list(x) == list(y) for x, y in zip(a, b, strict=True))
    return {
        "share_equal": sum(x == y for x, y in pairs) / max(1, len(pairs)),
        "sequences_equal": rows_equal,
        "sequences": len(a),
        "tokens": len(pairs),
    }

"""The few statistics that the results are summed up with."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence


def relative_iqr(samples: Sequence[float]) -> float:
    """Interquartile range over the median; 0 for a single sample."""
    if len(samples) < 2:
        return 0.0
    lower, _, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return (upper - lower) / statistics.median(samples)


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean; NaN for no values, so that an empty band never reads as met."""
    values = list(values)
    return statistics.geometric_mean(values) if values else math.nan


def balanced_orders(names: Sequence[str], repeats: int) -> list[list[str]]:
    """One order per repeat; in as many repeats as names every name takes every place once.

    Successive repeats start one place later, and every second round through the places runs
    backwards, so that no name always follows the same neighbour.
    """
    orders = []
    for repeat in range(repeats):
        start = repeat % len(names)
        order = [*names[start:], *names[:start]]
        orders.append(order[::-1] if repeat // len(names) % 2 else order)
    return orders

"""The kernels of a prefill, or of decode steps alone, of an engine or of a server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from serving import stats

MOST_TOKENS = 17  # of a profiled request: its prefill and 16 decode steps
KEPT = 20  # kernels of a profile that are written down, the longest


def output_len(measured: int) -> int:
    """Return how many tokens a profiled request generates, of the measured one's."""
    return min(measured, MOST_TOKENS)


def take(
    start: Callable[[], Any],
    generate: Callable[[int], Any],
    stop: Callable[[], list[dict[str, Any]]],
    output_len: int,
) -> dict[str, Any]:
    """Return the kernels (on a CPU: operators) of a prefill, or of decode steps.

    Of one token it is the prefill, of more the `output_len - 1` decode steps: two profiles, of one
    token and of all, are subtracted.

    Parameters
    ----------
    start, stop
        Begin and end a profile; `stop` returns `WorkerProbe`'s rows.
    generate
        Generates so many tokens.
    output_len
        How many tokens are all.

    """
    fields = ("count", "time_us", "until_next_us")
    by_name: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(fields, 0.0))
    # The first, of sign 0, is for what only a first profile has.
    prefill, decode = ((1, 0), (1, 1)), ((1, 0), (1, -1), (output_len, 1))
    for tokens, sign in decode if output_len > 1 else prefill:
        start()
        generate(tokens)
        for row in stop():
            for field in fields:
                by_name[row["name"]][field] += sign * row.get(field, 0.0)
    kernels = [
        {"name": name, **sums, "count": int(sums["count"])}
        for name, sums in by_name.items()
        if sums["count"] > 0
    ]
    kernels.sort(key=lambda row: -row["time_us"])
    return {"steps": max(1, output_len - 1), "kernels": kernels}


def summarised(profile: dict[str, Any]) -> dict[str, Any]:
    """Return a profile with the norms' part of it, and the longest of its kernels."""
    summary = stats.norm_share(profile)
    return {**profile, "summary": summary, "kernels": profile["kernels"][:KEPT]}

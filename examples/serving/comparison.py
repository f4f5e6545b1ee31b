"""What is said of a workload that engines, or compilations, did with the plugin off and on."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from serving import stats

OFF = "off"
ON = "on"


def named(setting: str, number: int) -> str:
    """Return the name of an engine of a setting, counted from 1: `off`, `off-2`, `off-3`."""
    return setting if number == 1 else f"{setting}-{number}"


def more_of(setting: str, names: Iterable[str]) -> list[str]:
    """Return the engines of a setting, off or on, as they are `named`."""
    return [name for name in names if re.fullmatch(rf"{setting}(-\d+)?", name)]


def turns(names: Iterable[str], warmup: int, repeats: int) -> Iterator[tuple[str, bool]]:
    """Yield whose turn it is, there and back, and whether it counts: not while warming up.

    In one order, what every second measurement has in common would be all of one setting's.
    """
    order = list(names)
    for repeat in range(-warmup, repeats):
        for name in order:
            yield name, repeat >= 0
        order.reverse()


def summarise(work: dict[str, Any], runs: dict[str, Any]) -> dict[str, Any]:
    """Turn one workload's raw runs into a row: medians, ratios, and whether the tokens agree."""
    row: dict[str, Any] = {**work, "repeats": len(runs[OFF]["first_token_s"])}
    judged = first = {name: run["first_token_s"] for name, run in runs.items()}
    row |= compare("ttft", first)
    if work["output_len"] > 1:
        judged = times_per_output_token(runs, work)
        row |= compare("tpot", judged)
        row["tokens_off_on"] = stats.same_tokens(runs[OFF]["tokens"][-1], runs[ON]["tokens"][-1])
        row["tokens_off_off"] = stats.same_tokens(runs[OFF]["tokens"][0], runs[OFF]["tokens"][-1])
    row["others"] = {
        name: stats.paired_ratio(judged[name], judged[OFF])
        for name in runs
        if name not in (OFF, ON)
    }
    row["raw"] = {
        name: {k: v for k, v in run.items() if k != "tokens"} for name, run in runs.items()
    }
    return row


def times_per_output_token(runs: dict[str, Any], work: dict[str, Any]) -> dict[str, list[float]]:
    """Return the seconds of a token behind the first, of each repeat, as vLLM's client has them.

    Not the median of an engine's steps, whose answers arrive unevenly: at batch 128 it was up to
    5 % below the steps by the GPU's clock, and not by the same in both settings (H200, 2026-12-01,
    docs/notes/2026-12-01-time-per-output-token.md).
    """

    def of(run: dict[str, Any]) -> list[float]:
        times = zip(run["first_token_s"], run["all_tokens_s"], strict=True)
        return [(last - first) / (work["output_len"] - 1) for first, last in times]

    return {name: of(run) for name, run in runs.items()}


def compare(what: str, times: dict[str, Sequence[float]]) -> dict[str, Any]:
    """Return the fields of a row that say of one kind of time what each engine took, and on/off.

    With several engines of a setting, the ratio is of their means, and its spread the standard
    error between engines; with one of each, the median over the interleaved pairs.
    """
    medians = {name: statistics.median(values) for name, values in times.items()}
    ons, offs = ([medians[name] for name in more_of(setting, medians)] for setting in (ON, OFF))
    if len(ons) + len(offs) > 2:
        ratio, spread = stats.ratio_of_means(ons, offs)
    else:
        ratio, spread = stats.paired_ratio(times[ON], times[OFF])
    means = {OFF: sum(offs) / len(offs), ON: sum(ons) / len(ons)}
    return {
        f"{what}_s": medians,
        f"{what}_mean_s": means,
        f"{what}_ratio": ratio,
        f"{what}_spread": spread,
    }

"""``python -m benchmarks.choose``: launch rules from sweeps.

Reads CSVs of ``benchmarks/sweep.cu`` or of ``benchmarks.tune``, one a card, and prints lines for
``csrc/cuda/launch_rules_table.inc``: for each number of tokens the widths split into segments of
one configuration each, and numbers of tokens that agree joined, so that what is lost to the best
configuration of each shape, plus a price for every rule, is least.  A configuration counts only
where every card has measured it, with the larger of its losses.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd

from benchmarks import shapes, tune
from benchmarks.providers import CANDIDATE
from hp_norm_plugin import rules

RULE_PRICE = 0.03  # in logarithms of time: a rule has to win 3 % at one shape, or 1 % at three
LARGE_LOSS, LARGE_LOSS_PRICE = 0.02, 8.0  # what a shape loses above 2 % counts so many times more
# A trigger behind the loads is 10 % slower on some cards where a call is short
# (docs/notes/2026-11-26-another-card.md), and one card's sweep does not show it.
ROBUST_TOKENS = 256
EARLY, AT_END = rules.OPTIONS["trigger_early"], rules.OPTIONS["trigger_at_end"]
# As the table calls them. It has no others: the launcher decides on narrow and re-reading kernels.
NAMES = {
    "trigger_early": "kEarly",
    "prefetch_residual": "kRes",
    "prefetch_ahead": "kAhead",
    "staged": "kStage",
    "trigger_at_end": "kEnd",
    "cached": "kL1",
    "keep_output": "kKeep",
    "fill_gpu": "kFill",
    "pair_ctas": "kPairs",
    "lean": "kLean",
    "read_once": "kFirstOut",
    "keep_ahead": "kStays",
    "two_per_sm": "kTwo",
}
VEC_BYTES = 16

Piece = TypeVar("Piece")

Config = tuple[int, int, int, int]  # vectors a thread, rows a CTA, CTAs a row, options
Losses = dict[tuple[int, int], dict[Config, float]]  # by (num_tokens, hidden_size)


@dataclass(frozen=True)
class Choice:
    """A configuration for some numbers of tokens up to one, and widths up to one."""

    num_tokens: int
    hidden_size: int
    config: Config


def read(path: Path, op: str) -> Losses:
    """What each configuration loses to the best of its shape on one card, as a logarithm.

    Raises
    ------
    ValueError
        If the file is neither of the two kinds of CSV, which names the file.

    """
    frame = pd.read_csv(path)
    sizes = ["vecs_per_thread", "rows_per_cta", "ctas_per_row", "options"]
    columns = {"op", "num_tokens", "hidden_size", "us"}
    if not (columns | {"provider"} <= {*frame} or columns | {*sizes} <= {*frame}):
        raise ValueError(f"{path}: neither of benchmarks/sweep.cu nor of benchmarks.tune")
    frame = frame[(frame["op"] == op) & frame["us"].notna()]
    if "provider" in frame:
        frame = frame[frame["provider"].str.startswith(f"{CANDIDATE}{VEC_BYTES}B")]
        configs = frame["provider"].map(lambda name: astuple(tune.config_of(name))[1:])
    else:
        configs = pd.Series(list(frame[sizes].itertuples(index=False, name=None)), frame.index)
    found: dict[tuple[int, int], dict[Config, float]] = {}
    for tokens, width, config, us in zip(
        frame["num_tokens"], frame["hidden_size"], configs, frame["us"], strict=True
    ):
        if set(_option_names(config)) <= NAMES.keys():
            found.setdefault((int(tokens), int(width)), {})[config] = float(us)
    return {
        shape: {config: math.log(us / min(times.values())) for config, us in times.items()}
        for shape, times in found.items()
    }


def _option_names(config: Config) -> list[str]:
    return rules.Config(VEC_BYTES, *config).option_names()


def merge(cards: Sequence[Losses], robust_tokens: int = ROBUST_TOKENS) -> Losses:
    """The larger loss of each configuration that every card with the shape has.

    Up to ``robust_tokens`` only of those that trigger early or at the end.
    """
    merged: Losses = {}
    for shape in sorted(set().union(*cards)):
        of_cards = [card[shape] for card in cards if shape in card]
        merged[shape] = {
            config: max(losses[config] for losses in of_cards)
            for config in set.intersection(*map(set, of_cards))
            if shape[0] > robust_tokens or config[3] & (EARLY | AT_END)
        }
    return merged


def price(loss: float) -> float:
    """What a loss counts."""
    return loss + LARGE_LOSS_PRICE * max(0.0, loss - LARGE_LOSS)


def cheapest_split(
    count: int, best: Callable[[int, int], tuple[float, Piece]]
) -> tuple[float, tuple[tuple[int, Piece], ...]]:
    """Split ``range(count)`` into runs: the least price, and each run's last index and piece.

    ``best(start, end)`` is the price of one run and what is to be had for it.
    """
    splits: list = [(0.0, ())]
    for end in range(1, count + 1):
        options = []
        for start in range(end):
            cost, piece = best(start, end)
            before, earlier = splits[start]
            options.append((before + cost, (*earlier, (end - 1, piece))))
        splits.append(min(options))
    return splits[-1]


def choose(losses: Losses, rule_price: float = RULE_PRICE) -> list[Choice]:
    """The rules, in the order in which the table has to have them.

    Raises
    ------
    ValueError
        If no configuration is left for a shape.

    """
    all_tokens = sorted({tokens for tokens, _ in losses})
    widths = sorted({width for _, width in losses})

    @functools.cache
    def shape_price(tokens: int, width: int) -> dict[Config, float]:
        return {c: price(loss) for c, loss in losses.get((tokens, width), {}).items()}

    def rule(tokens: Sequence[int], segment: Sequence[int]) -> tuple[float, Config | None]:
        of_shapes = [shape_price(t, w) for t in tokens for w in segment]
        common = set.intersection(*map(set, of_shapes))
        sums = ((sum(prices[config] for prices in of_shapes), config) for config in common)
        cost, config = min(sums, default=(math.inf, None))
        return cost + rule_price, config

    def rules_for(tokens: Sequence[int]) -> tuple[float, tuple[tuple[int, Config], ...]]:
        return cheapest_split(len(widths), lambda start, end: rule(tokens, widths[start:end]))

    cost, found = cheapest_split(
        len(all_tokens), lambda start, end: rules_for(all_tokens[start:end])
    )
    if math.isinf(cost):
        raise ValueError("no configuration is left for a shape: more of them, or fewer cards")
    return [
        Choice(all_tokens[last_tokens], widths[last_width], config)
        for last_tokens, of_widths in found
        for last_width, config in of_widths
    ]


def line(choice: Choice, op: str, last: bool, evidence: str) -> str:
    """The choice as the table has it."""
    vecs, rows, ctas, _ = choice.config
    names = " | ".join(NAMES[option] for option in _option_names(choice.config)) or "0"
    rule_op = "kAddOp" if op == "fused_add" else "kPlainOp"
    limit = "kNoLimit" if last else choice.num_tokens
    config = f"{{{VEC_BYTES}, {vecs}, {rows}, {ctas}, {names}}}"
    row_bytes = shapes.Case(op, "bf16", choice.num_tokens, choice.hidden_size).row_bytes
    return f"    {{90, 99, {rule_op}, {row_bytes}, {limit}, {config}, {evidence}}},"


def lost(choices: Iterable[Choice], losses: Losses) -> dict[tuple[int, int], float]:
    """What the rules lose at each shape."""
    ordered = list(choices)
    return {
        (tokens, width): of_shape[
            next(c for c in ordered if tokens <= c.num_tokens and width <= c.hidden_size).config
        ]
        for (tokens, width), of_shape in losses.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choose", description=__doc__)
    parser.add_argument("sweeps", type=Path, nargs="+", help="CSVs, one a card")
    parser.add_argument("--op", choices=shapes.OPS, default="fused_add")
    parser.add_argument("--price", type=float, default=RULE_PRICE, help="of a rule")
    parser.add_argument("--robust-tokens", type=int, default=ROBUST_TOKENS)
    parser.add_argument("--evidence", default="kSweep", help="its name in the table")
    args = parser.parse_args(arguments)
    try:
        losses = merge([read(path, args.op) for path in args.sweeps], args.robust_tokens)
        if not losses:
            raise ValueError(f"no {args.op} in {', '.join(map(str, args.sweeps))}")
        choices = choose(losses, args.price)
    except (ValueError, OSError) as error:
        print(f"choose: {error}", file=sys.stderr)
        return 2
    most = max(choice.num_tokens for choice in choices)
    for choice in choices:
        print(line(choice, args.op, choice.num_tokens == most, args.evidence))
    of_shapes = lost(choices, losses)
    worst = max(of_shapes, key=of_shapes.get)
    mean = math.exp(sum(of_shapes.values()) / len(of_shapes))
    print(
        f"// {len(choices)} rules for {len(of_shapes)} shapes: {mean - 1:.1%} over the best, at "
        f"most {math.exp(of_shapes[worst]) - 1:.1%} ({worst[0]} x {worst[1]})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

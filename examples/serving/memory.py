"""Whether a model fits into a machine without a GPU: asked before anything is started."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from serving import agreement, models

BYTES = 2  # of a bf16
GIB = 2**30


def weight_bytes(config: dict[str, Any]) -> int:
    """Return the bytes of a model's matrices in bf16; its norms are less than a thousandth."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    queries = hidden * heads * config["head_dim"]
    keys = hidden * config["num_key_value_heads"] * config["head_dim"]
    layer = 2 * queries + 2 * keys + 3 * hidden * config["intermediate_size"]
    embeddings = 1 if config["tie_word_embeddings"] else 2
    vocabulary = embeddings * config["vocab_size"] * hidden
    return BYTES * (config["num_hidden_layers"] * layer + vocabulary)


def available_bytes() -> int:
    """Return what Linux could give to new processes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    words = next(line for line in lines if line.startswith("MemAvailable")).split()
    return int(words[1]) * 1024


def engines(args: argparse.Namespace) -> int:
    """Return how many engines or servers of a mode are alive at the same time."""
    at_once = {
        "offline": 2 * args.engines + len(args.variants),
        "server": 2,
        "tokens": len(agreement.PLANS),
        "cache": 1,
        "swap": 1,
    }
    return at_once[args.mode]


def check(args: argparse.Namespace) -> None:
    """Raise ValueError when the weights of an architecture do not fit into memory.

    Of a checkpoint nothing is known yet. What does not fit would be killed by the system after
    minutes, without a word.
    """
    if args.model not in models.architecture_names():
        return
    config = json.loads((models.ARCHITECTURES / f"{args.model}.json").read_text())
    number = engines(args)
    needed, available = number * weight_bytes(config), available_bytes()
    if needed > available:
        raise ValueError(
            f"--model {args.model}: the weights of {number} engine{'s' if number > 1 else ''} "
            f"must fit into the {available / GIB:.1f} GiB of memory available, "
            f"got {needed / GIB:.1f} GiB"
        )

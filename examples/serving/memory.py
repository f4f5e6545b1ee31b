"""Whether a model and its requests fit into memory: asked before anything is started."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from serving import agreement, models, offline

BYTES = 2  # of a bf16
GIB = 2**30
KV_BLOCK = {"gpu": 16, "cpu": 128}  # tokens, as vLLM has it by default


def weight_bytes(config: dict[str, Any]) -> int:
    """Return the bytes of a model's matrices in bf16; its norms are less than a thousandth."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    queries = hidden * heads * config["head_dim"]
    keys = hidden * config["num_key_value_heads"] * config["head_dim"]
    layer = 2 * queries + 2 * keys + 3 * hidden * config["intermediate_size"]
    embeddings = 1 if config["tie_word_embeddings"] else 2
    vocabulary = embeddings * config["vocab_size"] * hidden
    return BYTES * (config["num_hidden_layers"] * layer + vocabulary)


def kv_cache_bytes(config: dict[str, Any], requests: int, tokens: int, block: int) -> int:
    """Return the bytes of the keys and values of so many requests of so many tokens each.

    In whole blocks, and one that vLLM keeps for itself; a layer that looks back over a window
    alone is counted as any other.
    """
    blocks = requests * -(-tokens // block) + 1
    heads = config["num_hidden_layers"] * config["num_key_value_heads"]
    return blocks * block * 2 * heads * config["head_dim"] * BYTES


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
    """Raise ValueError when an architecture or its requests do not fit into memory.

    Of a checkpoint nothing is known yet.
    """
    if args.model not in models.architecture_names():
        return
    config = json.loads((models.ARCHITECTURES / f"{args.model}.json").read_text())
    if args.mode in ("offline", "server", "swap"):
        _check_kv_cache(args, config)
    if not args.gpu:
        _check_weights(args, config)


def _check_kv_cache(args: argparse.Namespace, config: dict[str, Any]) -> None:
    """A request too many would wait for a block, and the times would be those of a smaller batch.

    Of the workloads the one that needs most is asked for, so that the next run is not refused.
    """
    block = KV_BLOCK["gpu" if args.gpu else "cpu"]
    batches = [
        (work["batch"], work["input_len"] + work["output_len"]) for work in offline.workloads(args)
    ]
    most, requests, tokens = max((kv_cache_bytes(config, *each, block), *each) for each in batches)
    needed = most / GIB
    if needed > args.kv_cache_gib:
        raise ValueError(
            f"--kv-cache-gib: must hold {requests} request{'s' if requests > 1 else ''} of "
            f"{tokens} tokens, {math.ceil(needed * 1e3) / 1e3:g} GiB of {args.model}, "
            f"got {args.kv_cache_gib:g}"
        )


def _check_weights(args: argparse.Namespace, config: dict[str, Any]) -> None:
    """What does not fit would be killed by the system after minutes, without a word."""
    number = engines(args)
    needed, available = number * weight_bytes(config), available_bytes()
    if needed > available:
        raise ValueError(
            f"--model {args.model}: the weights of {number} engine{'s' if number > 1 else ''} "
            f"must fit into the {available / GIB:.1f} GiB of memory available, "
            f"got {needed / GIB:.1f} GiB"
        )

"""The grid of shapes, the bands it is judged in, and the bytes that each shape has to move."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

OPS = ("fused_add", "plain")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

NUM_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
# Powers of two, and the widths of models people serve.
HIDDEN_SIZES = (
    *(1024, 2048, 2560, 2880, 3072, 3584, 4096, 5120, 6144, 7168, 8192),
    *(12288, 14336, 16384, 18432, 20480, 24576, 28672, 32768),
)
QUICK_NUM_TOKENS = (1, 32, 1024, 4096)
QUICK_HIDDEN_SIZES = (2048, 4096, 8192)
CPU_NUM_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CPU_HIDDEN_SIZES = (4096,)

# The table the project started from: a prefill of 4096 tokens at every multiple of 1024.
FOUNDING_NUM_TOKENS = 4096
FOUNDING_HIDDEN_SIZES = (*range(1024, 16384 + 1, 1024), 20480, 24576, 28672, 32768)


@dataclass(frozen=True, order=True)
class Case:
    """One cell of the grid: an operator at one size and dtype."""

    op: str
    dtype: str
    num_tokens: int
    hidden_size: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of x, residual and weight."""
        return DTYPES[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of x."""
        return self.hidden_size * self.torch_dtype.itemsize

    @property
    def tensor_bytes(self) -> int:
        """Bytes of x (and of residual, and of each output)."""
        return self.num_tokens * self.row_bytes

    @property
    def input_bytes(self) -> int:
        """Bytes of the inputs that rotate from call to call; the weight is shared by all."""
        return self.tensor_bytes * (2 if self.op == "fused_add" else 1)

    @property
    def traffic_bytes(self) -> int:
        """Bytes that one call has to read and write: ``2 * (x + residual) + weight``."""
        return 2 * self.input_bytes + self.row_bytes

    def __str__(self) -> str:
        return f"{self.op} {self.dtype} {self.num_tokens} x {self.hidden_size}"


@dataclass(frozen=True)
class Band:
    """A range of token counts, both ends in it, and the least acceptable ratios of times there.

    To the best peer, as a geometric mean and in each cell, and to the copy, as both.
    """

    name: str
    first: int
    last: int
    min_geometric_mean: float
    min_cell: float
    min_copy_ratio: float | None = None


BANDS = (
    Band("1 to 8", 1, 8, 1.40, 1.15),
    Band("16 to 256", 16, 256, 1.30, 1.08),
    Band("512 to 1024", 512, 1024, 1.06, 1.00),
    Band("2048 and more", 2048, 2**31, 1.03, 1.00, min_copy_ratio=1.00),
)


def grid(
    ops: Iterable[str],
    dtypes: Iterable[str],
    num_tokens: Iterable[int],
    hidden_sizes: Iterable[int],
) -> Iterator[Case]:
    """Cases ordered so that one hidden size is finished before the next one is compiled.

    A shape's dtypes follow each other. Their ratio is judged to 3 %, and by where its rows lie a
    kernel differs by up to 15 % (H200, 2026-12-01): what is allocated next, of the same sizes,
    tends to be what was freed last.
    """
    tokens = sorted(set(num_tokens))
    for op in ops:
        for hidden_size in sorted(set(hidden_sizes)):
            for count in tokens:
                for dtype in dtypes:
                    yield Case(op, dtype, count, hidden_size)


def positive_int(text: str) -> int:
    """Parse an integer of at least 1; a ValueError, which argparse words, for anything else."""
    value = int(text)
    if value < 1:
        raise ValueError(f"must be at least 1, got {value}")
    return value


def parse_shard(text: str) -> tuple[int, int]:
    """Parse ``K/N``, with K from 1 to N.

    Raises
    ------
    ValueError
        If the text is not of that form.

    """
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise ValueError(f"shard: must be K/N with 1 <= K <= N, got {text!r}")
    return int(index), int(count)


def shard(hidden_sizes: Iterable[int], index: int, count: int) -> list[int]:
    """Every count-th hidden size: peers compile per hidden size, so one is never in two shards."""
    return sorted(set(hidden_sizes))[index - 1 :: count]

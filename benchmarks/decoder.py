"""Decoder layers of a Llama's shape as a CUDA graph, with a norm or without: the products, and what
else of a layer is asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import stopwatch
from benchmarks.provider import Call
from benchmarks.shapes import Case

LAYERS = 8
NORMS_PER_LAYER = 2
# Rows of each product's matrix over the hidden size: q, k and v of a grouped-query attention, and
# a gated MLP of 3.5 times the width, as in Llama 3.
QKV, GATE_UP, DOWN = 1.5, 7, 3.5
QUERIES_PER_KEY = 4
HEAD_SIZE = 128


def matrix(normal: Callable[..., Tensor], rows: int, columns: int) -> Tensor:
    """A random matrix that keeps the size of what it multiplies, [rows, columns]."""
    # As a model holds its weights, [out, in]: the layout decides which kernel cuBLAS takes.
    return (normal(columns, rows) / rows**0.5).t()


class Layer:
    """The matrices of one decoder layer, the weights of its norms, and its keys and values."""

    def __init__(
        self, hidden: int, normal: Callable[..., Tensor], num_tokens: int, past: int
    ) -> None:
        self.qkv = matrix(normal, hidden, int(QKV * hidden))
        self.out = matrix(normal, hidden, hidden)
        self.gate_up = matrix(normal, hidden, GATE_UP * hidden)
        self.down = matrix(normal, int(DOWN * hidden), hidden)
        self.norms = [normal(hidden) * 0.25 + 1 for _ in range(NORMS_PER_LAYER)]
        heads = hidden // QUERIES_PER_KEY // head_size(hidden)
        shape = (num_tokens, heads, past, head_size(hidden))
        self.keys, self.values = (normal(*shape) if past else None for _ in range(2))


def head_size(hidden: int) -> int:
    """Elements of a head; fewer where a row is too short for one head of keys."""
    return min(HEAD_SIZE, hidden // QUERIES_PER_KEY)


class Chain:
    """The buffers of one shape, and the graphs that run through them.

    Parameters
    ----------
    case
        Tokens, hidden size and dtype. Each token is a sequence of its own, as in decode.
    device
        On a CPU, in tests, there is no graph.
    past
        How many tokens each sequence attends to. 0 leaves out attention and the gate, and every
        product reads what the one before wrote.

    """

    def __init__(self, case: Case, device: torch.device, past: int = 0) -> None:
        rows, hidden = case.num_tokens, case.hidden_size
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            kind = {"device": device, "dtype": case.torch_dtype, "generator": generator}
            return torch.randn(shape, **kind)

        self.past = past
        self.layers = [Layer(hidden, normal, rows, past) for _ in range(LAYERS)]
        self.x0, self.residual0 = normal(rows, hidden), normal(rows, hidden)
        self.x, self.residual = self.x0.clone(), self.residual0.clone()
        self.wide = self.x.new_empty(rows, GATE_UP * hidden)
        self.narrow = [torch.empty_like(self.x) for _ in range(2)]
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def reset(self) -> None:
        """Write the first values again: an in-place norm lets its residual grow."""
        self.x.copy_(self.x0)
        self.residual.copy_(self.residual0)

    def _product(self, x: Tensor, matrix: Tensor, out: Tensor) -> Tensor:
        columns = matrix.shape[1]
        return torch.mm(x[:, : matrix.shape[0]], matrix, out=out[:, :columns])

    def _attend(self, layer: Layer, qkv: Tensor) -> Tensor:
        rows, hidden = self.x.shape
        queries = qkv[:, :hidden].reshape(rows, -1, 1, head_size(hidden))
        mixed = functional.scaled_dot_product_attention(
            queries, layer.keys, layer.values, enable_gqa=True
        )
        return mixed.reshape(rows, hidden)

    def _gate(self, _layer: Layer, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=1)
        return functional.silu(gate).mul_(up)

    def _run(self, norm: Call | None) -> None:
        x, residual = self.x, self.residual
        for layer in self.layers:
            halves = (
                (layer.qkv, self._attend, layer.out),
                (layer.gate_up, self._gate, layer.down),
            )
            for half, weight, out in zip(halves, layer.norms, self.narrow, strict=True):
                first, between, second = half
                inner = self._product(x, first, self.wide)
                if self.past:
                    inner = between(layer, inner)
                x = self._product(inner, second, out)
                if norm is not None:
                    outputs = norm(x, residual, weight)
                    x, residual = (x, residual) if outputs is None else outputs

    def capture(self, norm: Call | None) -> Callable[[], None]:
        """Capture the chain with a norm, or without; on a CPU, in tests, there is no graph."""

        def run() -> None:
            self._run(norm)

        return run if self.stream is None else stopwatch.captured(self.stream, run, run)

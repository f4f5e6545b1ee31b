"""The operators under torch.library's own checks and torch.compile."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_same_bits, make_case

import hp_norm_plugin as hp
from hp_norm_plugin import library

library.load_libraries()
OPS = torch.ops.hp_norm


def samples(device):
    for dtype in (torch.bfloat16, torch.float32):
        case = make_case(3, 264, dtype).to(device)
        yield OPS.rms_norm.default, (case.x, case.weight, 1e-6)
        yield OPS.rms_norm.default, (case.x[:, :256], None, 1e-6)
        yield OPS.fused_add_rms_norm.default, (case.x, case.residual, case.weight, 1e-6)
        yield OPS.fused_add_rms_norm_.default, (case.x, case.residual, case.weight, 1e-6)
        strided = case.x.repeat(1, 2)[:, :264], case.residual.repeat(1, 2)[:, :264]
        yield OPS.fused_add_rms_norm_.default, (*strided, case.weight, 1e-6)


def test_opcheck(device):
    for op, args in samples(device):
        results = torch.library.opcheck(op, args, {"weight_offset": 0.0})
        assert set(results.values()) == {"SUCCESS"}, (op, results)


def block(x, residual, weight):
    """A piece of a model: an operator of each kind between other operations."""
    x, residual = hp.fused_add_rms_norm(x * 2, residual, weight, 1e-6)
    y = hp.rms_norm(x + 1, weight, 1e-6, weight_offset=1.0)
    y, residual = y.clone(), residual.clone()
    hp.fused_add_rms_norm_(y, residual, None, 1e-5, round_before_weight=True)
    return y * 3, residual


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(device, dynamic):
    compiled = torch.compile(block, fullgraph=True, dynamic=dynamic)
    for num_tokens in (5, 9, 2) if dynamic else (5,):
        case = make_case(num_tokens, 128, torch.bfloat16).to(device)
        with torch.inference_mode():
            expected = block(case.x, case.residual, case.weight)
            actual = compiled(case.x, case.residual, case.weight)
        for a, e in zip(actual, expected, strict=True):
            assert_same_bits(a, e)


def test_a_number_of_tokens_that_dynamo_does_not_know(device):
    """As vLLM has it with dynamic shapes of type "unbacked": no check may ask for it."""
    torch._dynamo.reset()
    case = make_case(5, 128, torch.bfloat16).to(device)
    for rows in (case.x, case.residual):
        torch._dynamo.decorators.mark_unbacked(rows, 0)

    def piece(x, residual, weight):
        out, residual_out = hp.fused_add_rms_norm(x, residual, weight, 1e-6)
        hp.fused_add_rms_norm_(out, residual_out, weight, 1e-6)
        return hp.rms_norm(out, weight, 1e-6), residual_out

    with torch.inference_mode():
        actual = torch.compile(piece, fullgraph=True)(case.x, case.residual, case.weight)
        expected = piece(case.x, case.residual, case.weight)
    for a, e in zip(actual, expected, strict=True):
        assert_same_bits(a, e)


def test_one_graph_serves_every_number_of_tokens(device):
    torch._dynamo.reset()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(block, backend=count, fullgraph=True, dynamic=True)
    for num_tokens in (2, 7, 33, 64):
        case = make_case(num_tokens, 128, torch.float16).to(device)
        compiled(case.x, case.residual, case.weight)
    assert len(graphs) == 1
    names = [str(node.target) for node in graphs[0].graph.nodes]
    assert sum("hp_norm" in name for name in names) == 3

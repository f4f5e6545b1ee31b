"""The table of kernels; the profiler itself needs a GPU."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console

from benchmarks import step_profile


def test_the_longest_comes_first_and_short_kernels_are_left_out(capsys):
    profiles = {
        "products only": {"product": 80.0, "tiny": 0.5},
        "ours": {"product": 82.0, "norm": 2.0, "tiny": 0.9},
    }
    step_profile.show(Console(width=100), "a case", profiles)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in rows]
    assert cells == [["product", "80.00", "82.00"], ["norm", "", "2.00"]]


@pytest.mark.gpu
def test_every_kernel_of_a_graph_has_a_time():
    x = torch.ones(1 << 20, device="cuda")
    x.add_(1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(4):
            x.add_(1)
            x.sin_()
    found = step_profile.of(graph.replay, 4)
    assert len(found) == 2
    assert all(0 < us < 1000 for us in found.values())

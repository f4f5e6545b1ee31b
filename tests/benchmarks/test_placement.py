"""benchmarks/placement.py: how the probe's SM ids are read, the refusal, and what norms decide."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from helpers import find_nvcc

from benchmarks import placement, providers
from benchmarks.shapes import Case
from hp_norm_plugin import first_gpc

# The probe's clusters on an H200, as it wrote them: first the GPCs with a pair of SMs more.
MORE = [126, 128, 130, 124]


@pytest.mark.parametrize("first", range(placement.GPCS))
def test_the_first_gpc_is_read_from_the_first_round(first):
    one_round = [2 * ((first + place) % placement.GPCS) for place in range(placement.GPCS)]
    later = [sm + 2 * placement.GPCS for sm in one_round]
    assert placement.began_at([*MORE, *one_round, *later]) == first


def test_only_the_kernel_behind_the_marked_one_is_timed():
    kernels = [(0, 1, "stay"), (2, 5, "stay"), (6, 16, "product"), (17, 19, "reduction")]
    kernels += [(20, 21, "stay"), (22, 34, "product")]
    assert placement.times_behind("stay", kernels) == [10, 12]


def test_leads_are_whole_clusters():
    assert all(ctas % cluster == 0 for ctas, cluster in placement.LEADS.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_another_gpu_or_none_is_refused(capsys):
    assert placement.main(["placement.so"]) == 2
    assert "no H100 or H200 here" in capsys.readouterr().out


@pytest.fixture(scope="module")
def launches(tmp_path_factory):
    """What benchmarks/placement.cu launches, on a GPU that it knows."""
    if torch.cuda.get_device_capability() != (9, 0) or find_nvcc() is None:
        pytest.skip("needs nvcc and an H100 or H200")
    library = tmp_path_factory.mktemp("placement") / "placement.so"
    source = Path(placement.__file__).with_suffix(".cu")
    subprocess.run(
        [find_nvcc(), "-std=c++20", "-O3", "-arch=sm_90", "-shared", "-Xcompiler", "-fPIC",
         "-o", library, source], check=True,
    )  # fmt: skip
    return placement.Launches(library, torch.cuda.Stream())


@pytest.mark.gpu
@pytest.mark.parametrize("gpc", first_gpc.CANDIDATES)
def test_the_grid_behind_a_norm_begins_at_the_gpc_that_was_set(launches, gpc):
    """Whatever was launched before. In 40 of 40 cases each on four H200s, 2026-11-27."""
    device = launches.stream.device
    case = Case("fused_add", "bf16", 8, 4096)
    products = placement.Products(case, 28672)
    norm = providers.load(providers.OURS, device).bind(case)
    first_gpc.set_first_gpc(gpc, device)
    try:
        firsts = placement.firsts_behind_norm(launches, products, norm, 20)
    finally:
        first_gpc.set_first_gpc(0, device)
    assert firsts[gpc] >= 19, firsts

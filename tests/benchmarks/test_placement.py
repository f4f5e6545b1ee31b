"""benchmarks/placement.py without its GPU: how the probe's SM ids are read, and the refusal."""

from __future__ import annotations

import pytest
import torch

from benchmarks import placement

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

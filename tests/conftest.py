"""What the operator's tests share: the devices, input makers, and comparisons to the contract."""

from __future__ import annotations

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def pytest_collection_modifyitems(items):
    """Tests marked gpu are skipped, and say so, where there is none."""
    for item in items:
        if not HAS_GPU and ("gpu" in item.keywords or "sanitizer" in item.keywords):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(20261122)

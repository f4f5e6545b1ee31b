"""What all tests share: the devices, a seed, and examples/ on the path."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers import EXAMPLES, HAS_GPU

sys.path.insert(0, str(EXAMPLES))


def pytest_collection_modifyitems(items):
    """Engines come first, since they take longest: tests run in two processes.

    Tests marked gpu are skipped, and say so, where there is none.
    """
    items.sort(key=lambda item: "engine" not in item.keywords)
    for item in items:
        if not HAS_GPU and ("gpu" in item.keywords or "sanitizer" in item.keywords):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(20261122)
    yield
    assert torch.is_grad_enabled(), "the test left autograd off for those after it"

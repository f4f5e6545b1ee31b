"""What a profile says of the kernels of a step; the profiler itself runs in the engine tests."""

from types import SimpleNamespace

import torch

from hp_norm_plugin.vllm import probe

CUDA, CPU = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU


def event(name, start, device=CUDA):
    return SimpleNamespace(
        name=name, device_type=device, time_range=SimpleNamespace(start=start, end=start + 1)
    )


def test_a_kernel_pays_until_the_next_one_starts():
    events = [
        event("product", 30),
        event("norm", 10),
        event("launch", 12, CPU),
        event("norm", 50),
        event("product", 54),
    ]
    assert probe.until_next(events) == {"norm": 20 + 4, "product": 20}


def test_no_kernels_no_times():
    assert probe.until_next([event("launch", 1, CPU)]) == {}

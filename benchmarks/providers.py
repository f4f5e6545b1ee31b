"""The providers by name, the groups they are reported in, and how they are loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from benchmarks import peers
from benchmarks.provider import Provider, UnavailableError, one_line

OURS = "hp_norm"
COPY = "copy"
EMPTY = "empty_kernel"
CANDIDATE = "candidate:"  # begins the name of our operator forced to a launch: benchmarks.tune
PEERS = ("flashinfer_cute", "flashinfer_cuda", "quack", "vllm_c", "inductor")
CPU_PEERS = ("vllm_c", "inductor", "torch")

_LOADERS: dict[str, Callable[[torch.device], Provider]] = {
    OURS: peers.hp_norm,
    "flashinfer_cute": peers.flashinfer_cute,
    "flashinfer_cuda": peers.flashinfer_cuda,
    "quack": peers.quack,
    "vllm_c": peers.vllm_c,
    "inductor": peers.inductor,
    "torch": peers.torch_native,
    COPY: peers.copy,
    EMPTY: peers.empty_kernel,
}
NAMES = tuple(_LOADERS)


def default_names(device: torch.device) -> tuple[str, ...]:
    """What is timed when nothing is asked for."""
    if device.type == "cpu":
        return (OURS, *CPU_PEERS, COPY)
    return (OURS, *PEERS, COPY, EMPTY)


def load(name: str, device: torch.device) -> Provider:
    """Load one provider.

    Raises
    ------
    UnavailableError
        With a one-line reason: unknown name, missing package, or a package that cannot be used
        on this device.

    """
    if name not in _LOADERS:
        raise UnavailableError(f"unknown provider {name!r}, known are {', '.join(NAMES)}")
    try:
        return _LOADERS[name](device)
    except UnavailableError:
        raise
    except Exception as error:  # a broken peer must not stop the others
        raise UnavailableError(one_line(f"{name}: {type(error).__name__}: {error}")) from error


def load_all(names: Sequence[str], device: torch.device) -> tuple[list[Provider], dict[str, str]]:
    """Load the named providers; return them and, for the rest, the reason by name."""
    loaded, reasons = [], {}
    for name in names:
        try:
            loaded.append(load(name, device))
        except UnavailableError as error:
            reasons[name] = str(error)
    return loaded, reasons

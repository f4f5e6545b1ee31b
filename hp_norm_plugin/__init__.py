"""Fused residual-add + RMSNorm for LLM serving: CUDA and CPU operators, and a vLLM plugin."""

import importlib

__version__ = "0.1.0"

MAX_HIDDEN_SIZE = 65536  # here, and not with the checks that need it, for those who have no torch

_FROM = {
    "LibraryError": "library",
    "LibraryStatus": "library",
    "explain": "rules",
    "fused_add_rms_norm": "ops",
    "fused_add_rms_norm_": "ops",
    "library_status": "library",
    "load_libraries": "library",
    "rms_norm": "ops",
    "supports": "ops",
}
__all__ = list(_FROM)


def __getattr__(name: str) -> object:
    """Import a public name at its first use.

    `hp_norm_plugin.ops` loads the compiled library and raises where it is broken. The vLLM plugin
    and `python -m hp_norm_plugin` must be able to say so, so importing the package alone does not.
    """
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_FROM[name]}"), name)
    globals()[name] = value  # found without this function from now on: 2 us a call
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_FROM])

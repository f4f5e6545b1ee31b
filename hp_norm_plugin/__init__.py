"""Fused residual-add + RMSNorm for LLM serving: CUDA and CPU operators, and a vLLM plugin."""

from hp_norm_plugin.ops import (
    LibraryError,
    LibraryStatus,
    fused_add_rms_norm,
    fused_add_rms_norm_,
    library_status,
    load_libraries,
    rms_norm,
    supports,
)

__version__ = "0.1.0"
__all__ = [
    "LibraryError",
    "LibraryStatus",
    "fused_add_rms_norm",
    "fused_add_rms_norm_",
    "library_status",
    "load_libraries",
    "rms_norm",
    "supports",
]

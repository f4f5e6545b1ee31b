"""Finds the compiled libraries and loads them into torch."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from hp_norm_plugin import dispatch, settings

LIB = Path(__file__).parent / "lib"
CPU_LIBRARY = LIB / "libhp_norm_cpu.so"
CUDA_LIBRARY = LIB / "libhp_norm_cuda.so"
REBUILD = "HP_NORM_CUDA=require pip install --no-build-isolation --force-reinstall ."


class LibraryError(ImportError):
    """The compiled library is missing, or does not load under this torch."""


@dataclass(frozen=True)
class LibraryStatus:
    """Which libraries are there and loaded; `cuda_error` says why the CUDA one is not."""

    cpu_library: Path | None
    cuda_library: Path | None
    cuda_archs: tuple[str, ...]
    cuda_loaded: bool
    cuda_error: str | None
    digest: str


def _load_cuda() -> str | None:
    """Load the CUDA library; returns why it could not be."""
    if not torch.version.cuda:
        return f"torch {torch.__version__} is a build without CUDA"
    if not CUDA_LIBRARY.is_file():
        return f"{CUDA_LIBRARY.name} was not built; build it where nvcc is: {REBUILD}"
    try:
        torch.ops.load_library(str(CUDA_LIBRARY))
    except OSError as error:
        return f"{CUDA_LIBRARY.name} does not load ({error}); rebuild it: {REBUILD}"
    if settings.read_flag(settings.PDL).value == "0":
        ctypes.CDLL(str(CUDA_LIBRARY)).hp_norm_limit_dependent_launch(ctypes.c_int64(0))
    return None


@functools.cache
def load_libraries() -> LibraryStatus:
    """Load the libraries into torch, once a process.

    Returns
    -------
    LibraryStatus
        A CUDA library that is missing or does not load is told there, not raised.

    Raises
    ------
    LibraryError
        Where the CPU library, which holds the operators' schemas, is missing or does not load.

    """
    if not CPU_LIBRARY.is_file():
        raise LibraryError(f"{CPU_LIBRARY.name} was not built; build it: {REBUILD}")
    try:
        torch.ops.load_library(str(CPU_LIBRARY))
    except OSError as error:
        raise LibraryError(
            f"{CPU_LIBRARY.name} does not load under torch {torch.__version__} ({error}); "
            f"rebuild it: {REBUILD}"
        ) from error
    dispatch.complete()
    cuda_error = _load_cuda()
    files = [path for path in (CPU_LIBRARY, CUDA_LIBRARY) if path.is_file()]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    info_file = LIB / "build_info.json"
    info = json.loads(info_file.read_text()) if info_file.is_file() else {"archs": []}
    return LibraryStatus(
        cpu_library=CPU_LIBRARY,
        cuda_library=CUDA_LIBRARY if CUDA_LIBRARY.is_file() else None,
        cuda_archs=tuple(info["archs"]),
        cuda_loaded=cuda_error is None,
        cuda_error=cuda_error,
        digest=digest,
    )


library_status = load_libraries


def native_library(path: Path) -> ctypes.CDLL:
    """The C interface of a loaded library, for launch rules and tuning."""
    load_libraries()
    return ctypes.CDLL(str(path))

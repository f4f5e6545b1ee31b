"""What a provider leaves behind in L2, taken back before the next one is timed."""

from __future__ import annotations

import ctypes
import functools

NOT_SUPPORTED = 801  # CUDA_ERROR_NOT_SUPPORTED: a device that keeps no lines


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def reset_persisting() -> None:
    """Make every line of L2 an ordinary one again; returns when it has happened.

    Lines that a kernel asked L2 to keep (``evict_last``) outlive the kernel, and thousands of calls
    of the next provider on the same tensors: at 256 x 12288 and 14336, FlashInfer took 7 to 10 %
    less time behind our operator, on lines that ours had kept (H200, 2026-11-26,
    docs/notes/2026-11-26-lines-kept-for-others.md).

    Raises
    ------
    RuntimeError
        The driver refused; nothing of this process may be running on the device.

    """
    status = _driver().cuCtxResetPersistingL2Cache()
    if status not in (0, NOT_SUPPORTED):
        raise RuntimeError(f"cuCtxResetPersistingL2Cache: error {status}")

"""Which GPUs the compiled library has code for."""

from __future__ import annotations

from collections.abc import Iterable

FIRST_WITH_CLUSTERS = 90


def library_covers(sm: int, archs: Iterable[str]) -> bool:
    """Return whether a library compiled for `archs` runs on compute capability `sm`.

    Parameters
    ----------
    sm
        10 * major + minor, e.g. 90.
    archs
        As in `LibraryStatus.cuda_archs`: numbers such as "90" for machine code, and "PTX" when
        the newest of them is also there as PTX. Machine code runs on its own minor version and
        later ones of the same major version; PTX is compiled by the driver for anything newer, but
        for the clusters of sm_90 and later there is code only in PTX from there on.

    """
    names = tuple(archs)
    numbers = sorted(int(name) for name in names if name.isdigit())
    same_major = any(n // 10 == sm // 10 and n <= sm for n in numbers)
    newer = bool(numbers) and "PTX" in names and sm >= numbers[-1]
    newer = newer and (sm < FIRST_WITH_CLUSTERS or numbers[-1] >= FIRST_WITH_CLUSTERS)
    return same_major or newer

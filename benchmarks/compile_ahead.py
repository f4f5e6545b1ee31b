"""Compile what the providers compile at run time before anything is timed, in parallel.

Over the whole grid compilation takes far longer than the measurement: Inductor compiles one
kernel per shape, QuACK and FlashInfer's CuTe kernels one per hidden size, FlashInfer's CUDA
kernels one library.  What survives on disk is compiled in worker processes; the main process then
only loads it.  What does not (CuTe kernels of FlashInfer) is compiled here in the meantime.
Nothing is lost when the time is up or a worker fails: the cell compiles the rest itself.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import torch

from benchmarks import providers
from benchmarks.provider import Provider, one_line
from benchmarks.shapes import Case

log = logging.getLogger(__name__)

Task = tuple[str, Case]


def tasks(loaded: Iterable[Provider], cases: Sequence[Case]) -> list[Task]:
    """One task per compilation: the provider and a case that triggers it.

    Shapes come largest first within a provider, because a worker that starts on them last would
    keep the others waiting.
    """
    found: dict[tuple, Task] = {}
    for provider in loaded:
        for case in sorted(cases, key=lambda case: -case.tensor_bytes):
            one_row = replace(case, num_tokens=1)
            key, trigger = {
                "install": (None, case),
                "process": ((), one_row),
                "hidden_size": ((one_row,), one_row),
                "shape": ((case,), case),
            }[provider.compiles_per]
            if key is not None:
                found.setdefault((provider.name, *key), (provider.name, trigger))
    return list(found.values())


def compile_case(provider: Provider, case: Case, device: torch.device) -> None:
    """Make one call, which compiles what the case needs."""
    options = {"device": device, "dtype": case.torch_dtype}
    x = torch.zeros(case.num_tokens, case.hidden_size, **options)
    residual = torch.zeros_like(x) if case.op == "fused_add" else None
    provider.bind(case)(x, residual, torch.ones(case.hidden_size, **options))


def hide_main_module() -> None:
    """Make Inductor's cache keys the same in this process and in the workers.

    The key holds the pickle of ``torch.contiguous_format``, which pickle names by the first loaded
    module that has it.  ``multiprocessing`` lists the script that was started as ``__mp_main__``,
    early in a worker and late or early in its parent, and pickle skips ``__main__`` alone.
    """
    sys.modules.pop("__mp_main__", None)


_in_worker: dict[str, Provider] = {}


def _start_worker(device: str) -> None:
    import torch._inductor.config as inductor

    hide_main_module()
    torch.set_grad_enabled(False)
    # The workers share the device, so what they would find by trying configurations is noise:
    # keep it out of the cache, and let the main process try them alone on the device.
    inductor.autotune_local_cache = False
    inductor.compile_threads = 1
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(device)


def _compile_in_worker(task: Task, device: str) -> None:
    name, case = task
    if name not in _in_worker:
        _in_worker[name] = providers.load(name, torch.device(device))
    compile_case(_in_worker[name], case, torch.device(device))


def run(
    loaded: Sequence[Provider],
    cases: Sequence[Case],
    device: torch.device,
    seconds: float,
    workers: int | None = None,
    advance: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> None:
    """Compile for all cases within a time; ``advance(name, done, total)`` reports progress."""
    by_name = {provider.name: provider for provider in loaded}
    todo = tasks(loaded, cases)
    in_workers = [task for task in todo if by_name[task[0]].disk_cache]
    here = [task for task in todo if not by_name[task[0]].disk_cache]
    if not todo:
        return
    deadline = time.monotonic() + seconds
    count = workers or min(16, os.cpu_count() or 1, max(1, len(in_workers)))
    done, errors = 0, Counter()

    def finished(task: Task, error: BaseException | None) -> None:
        nonlocal done
        done += 1
        if error is not None:
            errors[f"{task[0]}: " + one_line(f"{type(error).__name__}: {error}")] += 1
        advance(task[0], done, len(todo))

    hide_main_module()
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(count, context, _start_worker, (str(device),)) as pool:
            futures: dict[Future, Task] = {
                pool.submit(_compile_in_worker, task, str(device)): task for task in in_workers
            }
            for task in here:
                finished(task, _compile_here(by_name[task[0]], task[1], device))
            pending = set(futures)
            while pending and time.monotonic() < deadline:
                completed, pending = wait(pending, timeout=0.5)
                for future in completed:
                    finished(futures[future], future.exception())
            if pending:
                log.warning("compile ahead: time is up, %d left to the cells", len(pending))
                pool.shutdown(wait=False, cancel_futures=True)
    except BrokenProcessPool as error:
        errors[one_line(str(error))] += 1
    for text, times in errors.items():
        log.warning("compile ahead: %s (%d times); left to the cells", text, times)


def _compile_here(provider: Provider, case: Case, device: torch.device) -> Exception | None:
    try:
        compile_case(provider, case, device)
    except Exception as error:  # reported by the caller; the cell will write it into its row
        return error
    return None

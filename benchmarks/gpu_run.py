"""``python -m benchmarks.gpu_run``: what CI cannot run, on all GPUs of a machine, in two stages.

First the benchmark's grids, the GPU tests and the sanitizer, one job a GPU at a time; then, when no
compiler runs any more, the served models.  Each job writes a log and its results to one folder and
has a time limit of its own, so that one that hangs leaves the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import terminal
from benchmarks.environment import ROOT

GRID = ("-m", "benchmarks.run")
BF16 = ("--dtype", "bf16")
PYTEST = ("-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider")
SERVE = ("examples/serve_llama.py",)
LLAMA = ("--model", "Llama-3.1-8B", "--batch-sizes", "1", "8", "32", "128")
QWEN = ("--model", "Qwen3-8B", "--batch-sizes", "1", "32", "128")
TIMED_OUT = -1
PATIENCE = 30.0  # seconds in which a job may end its own children


@dataclass(frozen=True)
class Job:
    """Arguments of Python, ``{out}`` standing for the folder, and the seconds they may take."""

    name: str
    arguments: tuple[str, ...]
    seconds: int
    stage: int = 1


@dataclass(frozen=True)
class Done:
    """How a job ended: its exit status, or TIMED_OUT."""

    job: Job
    gpu: int
    status: int
    seconds: float


def _serve(name: str, seconds: int, *arguments: str) -> Job:
    return Job(name, (*SERVE, *arguments, "--out", f"{{out}}/{name}"), seconds, stage=2)


def _offline(name: str, *arguments: str, engines: int, kv_cache_gib: float) -> Job:
    """Engines of a model, so many of each setting, all of them alive at once."""
    return _serve(name, 480, "offline", *arguments, "--engines", str(engines), "--repeats", "6",
                  "--kv-cache-gib", str(kv_cache_gib))  # fmt: skip


def _swap(name: str, *arguments: str) -> Job:
    """Compilations of a model in one engine; an even number of turns, half of them backwards."""
    return _serve(name, 480, "swap", *arguments, "--engines", "3", "--repeats", "4")


def _starts(name: str, *arguments: str, starts: int) -> Job:
    """Starts in one compile cache, with the plugin and without it in turn."""
    return _serve(name, 360, "cache", *arguments, "--starts", str(starts),
                  "--batch-sizes", "1", "4", "--prefill-batch", "0",
                  "--kv-cache-gib", "2", "--memory", "0.2")  # fmt: skip


# In the order in which they start: the longest first.
JOBS = (
    Job("fused-bf16", (*GRID, "--op", "fused_add", *BF16, "--out", "{out}/fused-bf16.csv"), 420),
    Job("fused-fp16", (*GRID, "--op", "fused_add", "--dtype", "fp16", "--out",
                       "{out}/fused-fp16.csv"), 420),
    Job("plain-bf16", (*GRID, "--op", "plain", *BF16, "--out", "{out}/plain-bf16.csv"), 420),
    Job("tests", (*PYTEST, "-m", "gpu and not sanitizer"), 180),
    Job("dtypes", (*GRID, "--op", "fused_add", "plain", "--dtype", "bf16", "fp16", "--providers",
                   "hp_norm", "copy", "--out", "{out}/dtypes.csv"), 180),
    Job("sanitizer", (*PYTEST, "-m", "sanitizer", "tests/test_ops_cuda.py"), 120),
    Job("founding", (*GRID, "--founding", "--providers", "hp_norm", "flashinfer_cute",
                     "flashinfer_cuda", "copy", "--out", "{out}/founding.csv"), 120),
    _offline("llama", *LLAMA, engines=3, kv_cache_gib=4.5),
    _swap("llama-swap", *LLAMA),
    _offline("qwen", *QWEN, engines=2, kv_cache_gib=5),
    _swap("qwen-swap", *QWEN),
    # What stands aside has one graph for both settings, so it is compared in one cache.
    _swap("gemma", "--model", "Gemma-3-4B-text", "--batch-sizes", "1", "32", "128",
          "--may-stand-aside", "--one-cache"),
    _swap("llama-fp8", *LLAMA, "--quantization", "fp8", "--may-stand-aside", "--one-cache"),
    _starts("cache-starts", "--model", "Llama-3.2-1B", starts=3),
    # That what stands aside has one key in processes with the plugin and without it.
    _starts("gemma-starts", "--model", "Gemma-3-4B-text", "--may-stand-aside", starts=2),
    _starts("fp8-starts", "--model", "Llama-3.2-1B", "--quantization", "fp8",
            "--may-stand-aside", starts=2),
)  # fmt: skip


def run_job(job: Job, gpu: int, out: Path, running: list[subprocess.Popen]) -> Done:
    """Run one job on one GPU; what it prints goes to ``<out>/<name>.txt``.

    While it runs, its process is in ``running``.
    """
    command = [sys.executable, *(part.replace("{out}", str(out)) for part in job.arguments)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu), "PYTHONUNBUFFERED": "1"}
    started = time.monotonic()
    with (out / f"{job.name}.txt").open("w") as log:
        # A session of its own: what a job starts has to go with it.
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        running.append(process)
        try:
            status = process.wait(job.seconds)
        except subprocess.TimeoutExpired:
            end(process)
            status = TIMED_OUT
        running.remove(process)
    return Done(job, gpu, status, time.monotonic() - started)


def end(process: subprocess.Popen) -> None:
    """End a job and what it started: asked first, since engines have sessions of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_jobs(jobs: Sequence[Job], gpus: Sequence[int], out: Path, console: Console) -> list[Done]:
    """Run the jobs stage by stage, in each as many at a time as there are GPUs.

    Ctrl-C ends the jobs that run.
    """
    out.mkdir(parents=True, exist_ok=True)
    done: list[Done] = []
    running: list[subprocess.Popen] = []
    for stage in sorted({job.stage for job in jobs}):
        waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            if job.stage == stage:
                waiting.put(job)

        def worker(gpu: int, waiting: queue.SimpleQueue[Job] = waiting) -> None:
            while True:
                try:
                    job = waiting.get_nowait()
                except queue.Empty:
                    return
                ended = run_job(job, gpu, out, running)
                done.append(ended)
                console.print(f"{job.name}: {words(ended)}, {ended.seconds:.0f} s on GPU {gpu}")

        threads = [threading.Thread(target=worker, args=(gpu,)) for gpu in gpus]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            with contextlib.suppress(queue.Empty):
                while True:
                    waiting.get_nowait()
            for process in list(running):
                end(process)
            raise
    return done


def words(done: Done) -> str:
    """How a job ended, in words."""
    if done.status == TIMED_OUT:
        return f"stopped after its {done.job.seconds} s"
    return "ended with 0" if done.status == 0 else f"FAILED with {done.status}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0 when every job ended with 0."""
    names = [job.name for job in JOBS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_run", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the results and the logs")
    parser.add_argument("--gpus", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="JOB",
                        help=f"of {', '.join(names)}")  # fmt: skip
    args = parser.parse_args(arguments)
    console = terminal.console()
    jobs = [job for job in JOBS if job.name in args.only]
    done = run_jobs(jobs, args.gpus, args.out.resolve(), console)
    table = Table("job", "GPU", "seconds", "", title=str(args.out))
    for ended in sorted(done, key=lambda ended: names.index(ended.job.name)):
        table.add_row(ended.job.name, str(ended.gpu), f"{ended.seconds:.0f}", words(ended))
    console.print(table)
    return int(any(ended.status for ended in done))


if __name__ == "__main__":
    sys.exit(main())

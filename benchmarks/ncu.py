"""``python -m benchmarks.ncu``: hardware counters of one call, from Nsight Compute.

Where does the time between the limit and what is reached go?  For each provider and shape this
runs ``ncu --clock-control none`` on one call and prints DRAM throughput, L2 hit rate, achieved
occupancy and the stalls that cost most.  Counters need permission: root, or the driver's option
NVreg_RestrictProfilingToAdminUsers=0.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from rich.table import Table

from benchmarks import providers, shapes, terminal, timing
from benchmarks.environment import ROOT
from benchmarks.provider import one_line
from benchmarks.providers import OURS
from benchmarks.shapes import positive_int

_STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
STALLS = ("long_scoreboard", "barrier", "lg_throttle", "short_scoreboard", "membar", "wait")
# Column of ours: (metric, factor from ncu's base unit).
METRICS = {
    "us": ("gpu__time_duration.sum", 1e-3),
    "read_gb_s": ("dram__bytes_read.sum.per_second", 1e-9),
    "write_gb_s": ("dram__bytes_write.sum.per_second", 1e-9),
    "dram_pct": ("dram__throughput.avg.pct_of_peak_sustained_elapsed", 1.0),
    "l2_hit_pct": ("lts__t_sector_hit_rate.pct", 1.0),
    "occupancy_pct": ("sm__warps_active.avg.pct_of_peak_sustained_active", 1.0),
    "registers": ("launch__registers_per_thread", 1.0),
    "waves": ("launch__waves_per_multiprocessor", 1.0),
    **{f"stall_{name}": (_STALL.format(name), 1.0) for name in STALLS},
}


class ProfileError(RuntimeError):
    """Nsight Compute is missing or refused; the message is the one-line reason."""


def command(provider: str, case: shapes.Case, protocol: str) -> list[str]:
    """The command line that profiles one call.

    ncu flushes all caches before a kernel by default, which is the cold protocol; for the cached
    one it must leave them alone.
    """
    metrics = ",".join(metric for metric, _ in METRICS.values())
    caches = "none" if protocol == timing.CACHED else "all"
    ncu = ["ncu", "--csv", "--page", "raw", "--print-units", "base", "--metrics", metrics]
    ncu += ["--clock-control", "none", "--cache-control", caches, "--profile-from-start", "off"]
    target = [sys.executable, "-m", "benchmarks.ncu", "--target", provider]
    target += ["--op", case.op, "--dtype", case.dtype]
    target += ["--tokens", str(case.num_tokens), "--hidden", str(case.hidden_size)]
    return [*ncu, *target]


def parse(text: str) -> pd.DataFrame:
    """One row per kernel from ncu's raw CSV: ``kernel`` and the columns of METRICS.

    Raises
    ------
    ProfileError
        When the output holds no table; with ncu's error and the last line of the profiled process.

    """
    lines = [line for line in text.splitlines() if line.strip()]
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        errors = [line for line in lines if line.startswith("==ERROR==")]
        said = [line for line in lines if not line.startswith("==")]
        reason = "; ".join([*errors[:1], *said[-1:]])
        raise ProfileError(one_line(f"ncu: {reason or 'no table in its output'}"))
    header, _units, *data = (line for line in lines[start:] if line.startswith('"'))
    raw = pd.read_csv(io.StringIO("\n".join([header, *data])), thousands=",")
    found = raw[["Kernel Name"]].set_axis(["kernel"], axis=1)
    for column, (metric, factor) in METRICS.items():
        # A metric that this GPU or this ncu does not have is no column, or "n/a".
        values = raw.get(metric, pd.Series(float("nan"), raw.index))
        found[column] = pd.to_numeric(values, errors="coerce") * factor
    return found


def profile(provider: str, case: shapes.Case, protocol: str) -> pd.DataFrame:
    """Run ncu on one call of a provider.

    Raises
    ------
    ProfileError
        With one line, where ncu is not installed, may not read counters, or saw no kernel.

    """
    if shutil.which("ncu") is None:
        raise ProfileError("ncu: not found; it comes with the CUDA toolkit (Nsight Compute)")
    done = subprocess.run(
        command(provider, case, protocol), capture_output=True, text=True, cwd=ROOT, check=False
    )
    output = done.stdout + done.stderr
    if "ERR_NVGPUCTRPERM" in output:
        raise ProfileError("ncu: no permission to read counters (ERR_NVGPUCTRPERM)")
    found = parse(output)
    if found.empty:
        raise ProfileError(one_line(f"ncu: it profiled no kernel: {done.stderr}"))
    found.insert(0, "provider", provider)
    found.insert(1, "num_tokens", case.num_tokens)
    found.insert(2, "hidden_size", case.hidden_size)
    return found


@torch.no_grad()
def run_target(name: str, case: shapes.Case) -> None:
    """Make the call that ncu watches: the third one, on inputs that the first two have not seen."""
    device = torch.device("cuda", torch.cuda.current_device())
    call = providers.load(name, device).bind(case)
    sets = timing.InputSets(case, timing.Plan(timing.COLD, num_sets=3, calls=3), device)
    for index in range(2):
        sets.call(call, index)
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    sets.call(call, 2)
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def table_of(found: pd.DataFrame) -> Table:
    """The counters, one kernel a row, with its two largest stalls (warps waiting per issue)."""
    table = Table()
    numbers = [name for name in METRICS if not name.startswith("stall_")]
    for column in ("provider", "tokens x hidden", *numbers, "largest stalls"):
        table.add_column(column)
    for _, row in found.iterrows():
        stalls = row[[f"stall_{name}" for name in STALLS]].astype(float).nlargest(2)
        texts = [f"{name.removeprefix('stall_')} {value:.1f}" for name, value in stalls.items()]
        shape = f"{row['num_tokens']} x {row['hidden_size']}"
        values = [f"{row[name]:.4g}" for name in numbers]
        table.add_row(row["provider"], shape, *values, ", ".join(texts))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ncu", description=__doc__)
    parser.add_argument("--op", choices=shapes.OPS, default="fused_add")
    parser.add_argument("--dtype", choices=tuple(shapes.DTYPES), default="bf16")
    parser.add_argument("--tokens", nargs="+", type=positive_int, default=[1, 64, 1024, 4096])
    parser.add_argument("--hidden", nargs="+", type=positive_int, default=[4096, 8192])
    parser.add_argument("--providers", nargs="+", default=[OURS, "flashinfer_cute", "inductor"])
    parser.add_argument("--protocol", choices=("cached", "cold"))
    parser.add_argument("--out", type=Path, help="write the counters to this CSV too")
    parser.add_argument("--target", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    cases = list(shapes.grid([args.op], [args.dtype], args.tokens, args.hidden))
    if args.target:
        run_target(args.target, cases[0])
        return 0
    console = terminal.console()
    found = []
    for case in cases:
        for name in args.providers:
            protocol = args.protocol or timing.protocol_for(case.num_tokens)
            try:
                found.append(profile(name, case, protocol))
            except ProfileError as error:
                console.print(f"{name}, {case}: {error}", style="red", markup=False)
    if not found:
        return 2
    frame = pd.concat(found, ignore_index=True)
    if args.out:
        frame.to_csv(args.out, index=False, float_format="%.4g")
    console.print(table_of(frame))
    return 0


if __name__ == "__main__":
    sys.exit(main())

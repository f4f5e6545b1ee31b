"""What a row says about where it was measured: commit, device, clocks, driver, versions."""

from __future__ import annotations

import datetime
import logging
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import timing

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Environment:
    """The machine and the code that all rows of a run share."""

    commit: str
    date: str
    device: str
    driver: str
    cuda: str
    torch: str
    l2_bytes: int


def commit() -> str:
    """The commit that is measured: ``HP_NORM_COMMIT``, or git's HEAD, ``+dirty`` when edited."""
    given = os.environ.get("HP_NORM_COMMIT")
    if given:
        return given
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        edited = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + "+dirty" if edited else head


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def describe(device: torch.device) -> Environment:
    """Describe the device and the software."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    if device.type == "cpu":
        threads = torch.get_num_threads()
        name = f"{cpu_name()}, {threads} thread{'s' * (threads > 1)}"
        return Environment(commit(), now, name, "", "", torch.__version__, timing.CPU_CACHE_BYTES)
    properties = torch.cuda.get_device_properties(device)
    return Environment(
        commit=commit(),
        date=now,
        device=properties.name,
        driver=Clocks(device).driver,
        cuda=torch.version.cuda or "",
        torch=torch.__version__,
        l2_bytes=properties.L2_cache_size,
    )


def cpu_name() -> str:
    """The processor's name as Linux gives it, or the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


class Clocks:
    """Reads the SM and memory clock; everything is None or empty where NVML is not installed."""

    def __init__(self, device: torch.device) -> None:
        self.driver = ""
        self._nvml = None
        if device.type != "cuda":
            return
        try:
            import pynvml
        except ImportError:
            log.warning("no clocks in the results: nvidia-ml-py is not installed")
            return
        try:
            pynvml.nvmlInit()
            uuid = torch.cuda.get_device_properties(device).uuid
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            self.driver = pynvml.nvmlSystemGetDriverVersion()
        except pynvml.NVMLError as error:
            log.warning("no clocks in the results: NVML says %s", error)
            return
        self._nvml = pynvml

    def read(self) -> tuple[int | None, int | None]:
        """The SM and the memory clock in MHz at this moment."""
        if self._nvml is None:
            return None, None
        kinds = (self._nvml.NVML_CLOCK_SM, self._nvml.NVML_CLOCK_MEM)
        sm, memory = (self._nvml.nvmlDeviceGetClockInfo(self._handle, kind) for kind in kinds)
        return sm, memory


def free_bytes(device: torch.device) -> int:
    """Memory that a case may still take, the allocator's unused blocks included."""
    if device.type == "cpu":
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)

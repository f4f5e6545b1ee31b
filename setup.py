"""Builds the two libraries of hp_norm_plugin/lib on libtorch's stable ABI.

libhp_norm_cpu.so    schemas and the CPU implementation; needs a C++ compiler
libhp_norm_cuda.so   the CUDA implementation; needs nvcc, no GPU and no CUDA build of torch

Environment:
  HP_NORM_CUDA=auto|require|0   auto (default): build it where nvcc is found, and say so where not
  HP_NORM_CUDA_ARCHS="90;100"   architectures to compile for (default: all below); the newest also
                                as PTX, for what comes after it
"""

import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
DEFAULT_ARCHS = "80;89;90;100;103;120"
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000ULL"  # torch 2.11
CXX_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
# The contract fixes every rounding, so the compiler may not fuse a multiply with an add.
CPU_FLAGS = [*CXX_FLAGS, "-ffp-contract=off", "-Wno-psabi"]
AVX512 = ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mf16c"]
ROW_KERNELS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mf16c"],
    "avx512": AVX512,
    "avx512bf16": [*AVX512, "-mavx512bf16"],
}


def say(text: str) -> None:
    """One line that is seen even where the build tool hides standard output."""
    print(f"hp_norm: {text}", file=sys.stderr, flush=True)


def run(command: list[str]) -> None:
    """Run a compiler, and show its command where it fails."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"hp_norm: failed: {' '.join(command)}\n{result.stdout}{result.stderr}")


@functools.cache
def version_of(compiler: str) -> str:
    """What a compiler says of itself; nothing where it does not run, which `run` tells."""
    try:
        return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    except OSError:
        return ""


def find_nvcc() -> str | None:
    """Nvcc of CUDA_HOME, of PATH, of /usr/local/cuda, or of the nvidia-cuda-nvcc package."""
    candidates = [Path(home, "bin", "nvcc") for home in [os.environ.get("CUDA_HOME")] if home]
    if on_path := shutil.which("nvcc"):
        candidates.append(Path(on_path))
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    for site in sys.path:
        candidates += sorted(Path(site).glob("nvidia/cu1*/bin/nvcc"), reverse=True)
    return next((str(path) for path in candidates if path.is_file()), None)


def with_includes(source: Path) -> list[Path]:
    """The source and all that it includes by quoted name, in a fixed order."""
    found = [source]
    for path in found:  # grows on the way
        for name in re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE):
            included = (path.parent / name).resolve()
            if included not in found:
                found.append(included)
    return found


class BuildLibraries(build_ext):
    """Compiles csrc/ into hp_norm_plugin/lib of the build folder, or of the tree when in place."""

    def run(self) -> None:
        """Compile what is out of date, link, and write build_info.json."""
        base = ROOT if self.inplace else Path(self.build_lib)
        self.lib = base / "hp_norm_plugin" / "lib"
        self.lib.mkdir(parents=True, exist_ok=True)
        self.objects = ROOT / "build" / "objects"
        self.objects.mkdir(parents=True, exist_ok=True)
        import torch
        from torch.utils import cpp_extension

        torch_dir = Path(torch.__file__).parent
        self.includes = [
            arg for path in cpp_extension.include_paths() for arg in ("-isystem", path)
        ]
        self.link = [f"-L{torch_dir / 'lib'}", "-Wl,--no-as-needed"]
        self.torch_version = torch.__version__
        info = {"torch": torch.__version__, "cuda": None, "archs": []}
        jobs = [*self.cpu_jobs(), *self.cuda_jobs(info)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda job: self.compile(*job), jobs))
        self.link_libraries(info)
        (self.lib / "build_info.json").write_text(json.dumps(info, indent=1) + "\n")

    def compile(self, command: list[str], source: Path, target: Path) -> None:
        """Run one compilation, unless compiler, command, source and headers are as they were."""
        stamp = target.with_suffix(".key")
        # The source's path within the tree: the objects are as good in a copy of the tree.
        versions = version_of(command[0]), self.torch_version
        words = [*command, str(source.relative_to(ROOT)), *versions]
        key = hashlib.sha256(" ".join(words).encode())
        for path in with_includes(source):
            key.update(path.read_bytes())
        if target.is_file() and stamp.is_file() and stamp.read_text() == key.hexdigest():
            return
        run([*command, "-c", str(source), "-o", str(target)])
        stamp.write_text(key.hexdigest())

    def cpu_jobs(self) -> list[tuple[list[str], Path, Path]]:
        """The compilations of the CPU library: (command, source, object)."""
        cxx = os.environ.get("CXX", "g++")
        x86 = platform.machine() in ("x86_64", "AMD64")
        flags = [*CPU_FLAGS, STABLE_ABI, *self.includes, *(["-DHP_NORM_X86"] if x86 else [])]
        jobs = [
            ([cxx, *flags], CSRC / name, self.objects / f"{Path(name).stem}.o")
            for name in ("ops.cpp", "rules.cpp", "cpu/rms_norm.cpp")
        ]
        for name, target_flags in ROW_KERNELS.items() if x86 else [("baseline", [])]:
            define = f"-DHP_NORM_ROW_KERNEL=norm_rows_{name}"
            jobs.append(
                (
                    [cxx, *flags, *target_flags, define],
                    CSRC / "cpu/row_kernel.cpp",
                    self.objects / f"row_kernel_{name}.o",
                )
            )
        self.cpu_objects = [str(job[2]) for job in jobs]
        return jobs

    def cuda_jobs(self, info: dict) -> list[tuple[list[str], Path, Path]]:
        """The compilations of the CUDA library; none, and a line that says so, without nvcc."""
        self.cuda_objects = []
        wanted = os.environ.get("HP_NORM_CUDA", "auto")
        if wanted not in ("auto", "require", "0"):
            sys.exit(f"hp_norm: HP_NORM_CUDA: must be auto, require or 0, got {wanted}")
        self.nvcc = find_nvcc() if wanted != "0" else None
        if self.nvcc is None:
            reason = "HP_NORM_CUDA=0" if wanted == "0" else "nvcc was not found"
            if wanted == "require":
                sys.exit(f"hp_norm: HP_NORM_CUDA=require, but {reason}; set CUDA_HOME or PATH")
            say(f"{reason}: building the CPU library alone")
            return []
        archs = os.environ.get("HP_NORM_CUDA_ARCHS", DEFAULT_ARCHS).replace(",", ";").split(";")
        archs = [arch.strip() for arch in archs if arch.strip()]
        if not archs or not all(arch.isdigit() for arch in archs):
            sys.exit(f"hp_norm: HP_NORM_CUDA_ARCHS: must be numbers such as 90;100, got {archs}")
        archs = sorted(set(archs), key=int)
        targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        targets.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
        version = version_of(self.nvcc)
        info.update(cuda=version.split("release ")[-1].split(",")[0], archs=[*archs, "PTX"])
        command = [
            self.nvcc,
            "-std=c++20",
            "-O3",
            "--compress-mode=size",
            "-Xcompiler",
            "-fPIC,-fvisibility=hidden",
            "-Werror",
            "all-warnings",
            "--threads",
            "2",
            "-DUSE_CUDA",
            STABLE_ABI,
            *self.includes,
            *targets,
        ]
        sources = sorted((CSRC / "cuda").glob("*.cu"))
        jobs = [(command, source, self.objects / f"cuda_{source.stem}.o") for source in sources]
        self.cuda_objects = [str(job[2]) for job in jobs]
        return jobs

    def link_libraries(self, info: dict) -> None:
        """Link the objects into the libraries, and say what was built."""
        cxx = os.environ.get("CXX", "g++")
        cpu = self.lib / "libhp_norm_cpu.so"
        run([cxx, "-shared", *self.cpu_objects, "-o", str(cpu), *self.link, "-ltorch_cpu", "-lc10"])
        cuda = self.lib / "libhp_norm_cuda.so"
        cuda.unlink(missing_ok=True)
        if self.cuda_objects:
            # libtorch.so is what loads libtorch_cuda.so, the home of the current stream.
            run(
                [
                    self.nvcc,
                    "-shared",
                    "-cudart",
                    "static",
                    *self.cuda_objects,
                    "-o",
                    str(cuda),
                    self.link[0],
                    "-Xlinker",
                    "--no-as-needed",
                    "-ltorch",
                    "-ltorch_cpu",
                    "-lc10",
                ]
            )
        say(
            f"built {cpu.name}"
            + (f" and {cuda.name} for {' '.join(info['archs'])}" if self.cuda_objects else "")
        )

    def get_outputs(self) -> list[str]:
        """The files that a wheel takes along."""
        lib = Path(self.build_lib) / "hp_norm_plugin" / "lib"
        return [str(path) for path in sorted(lib.glob("*")) if path.suffix in (".so", ".json")]


class Wheel(bdist_wheel):
    """One wheel for every Python: the libraries use no Python API."""

    def get_tag(self) -> tuple[str, str, str]:
        """Any Python 3, no ABI of it, this platform."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("hp_norm_plugin.lib.libhp_norm_cpu", sources=[])],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": Wheel},
)

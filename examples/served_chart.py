#!/usr/bin/env python3
"""Draw README's chart of served models from what `serve_llama.py offline` or `swap` wrote.

    python examples/served_chart.py docs/img/serve-h200.png A.json B.json

A panel a file: time per output token of each decode, time to the first token of the prefill.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from serving import report


def panel(result: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Return each workload's on/off ratio and spread, by the time that it is judged by."""
    bars = report.offline_bars(result)
    return bars["TPOT"] + [bar for bar in bars["TTFT"] if bar[0].startswith("prefill")]


def name_of(result: dict[str, Any]) -> str:
    """Return the model that was served, how it was quantised, and how it was compared."""
    asked = result["arguments"]
    model = ", ".join(filter(None, [asked["model"], asked["quantization"]]))
    return f"{model}\nserve_llama.py {asked['mode']}"


def main() -> None:
    """Draw the chart."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("results", type=Path, nargs="+", help="the JSON of a run")
    args = parser.parse_args()
    found = [json.loads(path.read_text()) for path in args.results]
    panels = {name_of(result): panel(result) for result in found}
    title = f"vLLM {found[0]['state']['on']['vllm']}, TPOT (decode) and TTFT (prefill)"
    report.chart(args.out, title, panels)


if __name__ == "__main__":
    main()

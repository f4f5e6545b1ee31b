"""A process that answers commands: JSON lines on stdin, one reply each.

Started by `serving.client` as `python worker.py REPLY_FD KIND CONFIG`. Replies go to the descriptor
REPLY_FD, since vLLM writes to stdout.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

KINDS = {"engine": "Engine", "load": "Load"}  # module of this package, and its class


def main() -> int:
    """Serve commands until stdin closes or `quit`."""
    # Run as a script this folder would be the first place of imports, and its parent none.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    reply = os.fdopen(int(sys.argv[1]), "w", buffering=1)

    def answer(message: dict[str, Any]) -> None:
        reply.write(json.dumps(message) + "\n")

    kind = sys.argv[2]
    try:
        served = getattr(importlib.import_module(f"serving.{kind}"), KINDS[kind])(
            json.loads(sys.argv[3])
        )
    except Exception as error:
        traceback.print_exc()
        answer({"error": f"{type(error).__name__}: {error}"})
        return 1
    answer({"ready": served.start_seconds})
    for line in sys.stdin:
        command = json.loads(line)
        method = command.pop("do")
        if method == "quit":
            break
        try:
            answer({"result": getattr(served, method)(**command)})
        except Exception as error:
            traceback.print_exc()
            answer({"error": f"{type(error).__name__}: {error}"})
    return 0


if __name__ == "__main__":
    sys.exit(main())

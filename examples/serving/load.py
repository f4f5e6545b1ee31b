"""vLLM's own benchmark client, `vllm bench serve`, kept in one process.

Its imports take 19 s on two cores (2026-11-26), as long as many a drive, so one process serves all.
"""

from __future__ import annotations

import argparse
import time
from typing import Any


class Load:
    """The client of `vllm bench serve`."""

    def __init__(self, _config: dict[str, Any]) -> None:
        started = time.perf_counter()
        from vllm.benchmarks import serve

        self._serve = serve
        self.start_seconds = time.perf_counter() - started

    def drive(self, arguments: list[str]) -> None:
        """Run it once, with the command line of `vllm bench serve`."""
        parser = argparse.ArgumentParser()
        self._serve.add_cli_args(parser)
        try:
            self._serve.main(parser.parse_args(arguments))
        except SystemExit as error:  # it would end this process, and the reason with it
            raise RuntimeError(f"vllm bench serve ended with status {error.code}") from error

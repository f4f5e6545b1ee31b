"""The parent's side of `serving.worker`: start, ask, and a clear error when it dies."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.child_process import ChildProcess, EngineError

WORKER = Path(__file__).with_name("worker.py")


def child_environment(variables: dict[str, str]) -> dict[str, str]:
    """Return the environment of an engine or server: this process's, and `variables`.

    Two defaults, both overridable by the caller's environment: no access to a model hub, and
    vLLM's own sampler instead of FlashInfer's, which compiles itself at the first token.
    """
    defaults = {"HF_HUB_OFFLINE": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
    return {**defaults, **os.environ, **variables}


class EngineClient(ChildProcess):
    """A running engine, or another kind of `serving.worker`."""

    def __init__(
        self,
        name: str,
        config: dict[str, Any],
        environment: dict[str, str],
        log: Path,
        kind: str = "engine",
    ) -> None:
        self.kind = kind
        read_fd, write_fd = os.pipe()
        command = [sys.executable, str(WORKER), str(write_fd), kind, json.dumps(config)]
        super().__init__(
            name, command, environment, log, stdin=subprocess.PIPE, pass_fds=(write_fd,), text=True
        )
        os.close(write_fd)
        self._replies = os.fdopen(read_fd)

    def wait_until_ready(self, timeout: float, tick: Callable[[], None] = lambda: None) -> float:
        """Wait for the engine to have started; returns the seconds that it took."""
        return self._receive(timeout, tick)["ready"]

    def ask(self, do: str, timeout: float = 600.0, **arguments: Any) -> Any:
        """Run one command in the engine and return its result.

        Raises
        ------
        EngineError
            The command failed, the engine died, or `timeout` seconds passed.

        """
        self.send(do, **arguments)
        return self._receive(timeout)["result"]

    def send(self, do: str, **arguments: Any) -> None:
        """Send a command without waiting."""
        if self._process.stdin is None:
            raise EngineError(f"{self.kind} {self.name}: not started")
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self.broken_off("died") from None

    def end(self) -> None:
        """End the engine, then its whole process group."""
        super().end()
        self._replies.close()
        # What a dead engine did not read: Python 3.13 complains of it where it collects the pipe.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def _ask_to_end(self) -> None:
        with contextlib.suppress(EngineError):  # it is gone already
            self.send("quit")

    def _receive(self, timeout: float, tick: Callable[[], None] = lambda: None) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while not select.select([self._replies], [], [], 0.5)[0]:
            tick()
            if time.monotonic() > deadline:
                raise self.failure(f"gave no answer within {timeout:.0f} s")
        line = self._replies.readline()
        if not line:
            raise self.broken_off("died")
        message = json.loads(line)
        if "error" in message:
            raise self.failure(message["error"])
        return message

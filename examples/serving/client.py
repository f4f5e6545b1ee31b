"""The parent's side of `serving.worker`: start, ask, and a clear error when it dies."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")


class EngineError(RuntimeError):
    """An engine did not start, died, or refused a command; the text ends with its log."""


def child_environment(variables: dict[str, str]) -> dict[str, str]:
    """Return the environment of an engine or server: this process's, and `variables`.

    Two defaults, both overridable by the caller's environment: no access to a model hub, and
    vLLM's own sampler instead of FlashInfer's, which compiles itself at the first token.
    """
    defaults = {"HF_HUB_OFFLINE": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
    return {**defaults, **os.environ, **variables}


def end_of(log: Path, lines: int = 25) -> str:
    """Return the last lines of a log, indented."""
    text = log.read_text(errors="replace").splitlines()[-lines:] if log.is_file() else []
    return "\n".join(f"    {line}" for line in text)


def explain_log(log: Path) -> str:
    """Return a hint for the usual reasons of a failed start, or an empty string."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    if "out of memory" in text or "No available memory for the cache blocks" in text:
        return "out of memory: use a smaller --model, --max-model-len or --memory"
    if "less than desired GPU memory utilization" in text:
        return "the GPU is in use by another process: lower --memory"
    if "ddress already in use" in text:
        return "the port is in use: choose another with --port"
    return ""


class EngineClient:
    """A running engine, or another kind of `serving.worker`.

    Use as a context manager: leaving it ends the process and its children.
    """

    def __init__(
        self,
        name: str,
        config: dict[str, Any],
        environment: dict[str, str],
        log: Path,
        kind: str = "engine",
    ) -> None:
        self.name = name
        self.kind = kind
        self.log = log
        read_fd, write_fd = os.pipe()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as sink:
            self._process = subprocess.Popen(
                [sys.executable, str(WORKER), str(write_fd), kind, json.dumps(config)],
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=subprocess.STDOUT,
                pass_fds=(write_fd,),
                env=environment,
                text=True,
                # A group of its own, so that vLLM's engine core goes with it.
                start_new_session=True,
            )
        os.close(write_fd)
        self._replies = os.fdopen(read_fd)

    def __enter__(self) -> EngineClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

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

    def pause(self) -> None:
        """Stop the engine's processes where they are.

        On a CPU an idle engine still polls, and takes from the other what is measured.
        """
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let the engine's processes run on."""
        os.killpg(self._process.pid, signal.SIGCONT)

    def send(self, do: str, **arguments: Any) -> None:
        """Send a command without waiting."""
        if self._process.stdin is None:
            raise EngineError(f"{self.kind} {self.name}: not started")
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure("died") from None

    def close(self) -> None:
        """End the engine: politely, then its whole process group."""
        if self._process.poll() is None:
            try:
                self.resume()
                self.send("quit")
                self._process.wait(10)
            except (EngineError, ProcessLookupError, subprocess.TimeoutExpired):
                pass  # the group is ended below either way
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # all gone already
        self._process.wait()
        self._replies.close()

    def _receive(self, timeout: float, tick: Callable[[], None] = lambda: None) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while not select.select([self._replies], [], [], 0.5)[0]:
            tick()
            if time.monotonic() > deadline:
                raise self._failure(f"gave no answer within {timeout:.0f} s")
        line = self._replies.readline()
        if not line:
            raise self._failure("died")
        message = json.loads(line)
        if "error" in message:
            raise self._failure(message["error"])
        return message

    def _failure(self, what: str) -> EngineError:
        hint = explain_log(self.log)
        text = f"{self.kind} {self.name}: {what}" + (f" ({hint})" if hint else "")
        return EngineError(f"{text}\n  end of {self.log}:\n{end_of(self.log)}")

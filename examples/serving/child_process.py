"""A process that is started here: how it and all that it starts end, and why it failed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any, Self

PATIENCE = 10.0  # seconds in which a process may end by itself

# What vLLM says of an engine core, a process of its own, that SIGKILL ended.
CORE_KILLED = re.compile(r"Failed core proc\(s\): \{[^}]*: -9\b")


class EngineError(RuntimeError):
    """An engine did not start, died, or refused a command; the text ends with its log."""


def end_of(log: Path, lines: int = 25) -> str:
    """Return the last lines of a log, indented."""
    text = log.read_text(errors="replace").splitlines()[-lines:] if log.is_file() else []
    return "\n".join(f"    {line}" for line in text)


def explain(log: Path, status: int | None = None) -> str:
    """Return a hint for the usual reasons of a failure, or an empty string.

    `status` is the exit status of the process, None while it runs.
    """
    text = log.read_text(errors="replace") if log.is_file() else ""
    if status == -signal.SIGKILL or CORE_KILLED.search(text):
        return "killed; most likely the system was out of memory: use a smaller --model"
    if "LocalEntryNotFoundError" in text:
        return "not on this machine: download the model before, or set HF_HUB_OFFLINE=0"
    if "larger than the available KV cache" in text or "No available memory for the cache" in text:
        return "no room for one request: use a larger --kv-cache-gib or a smaller --max-model-len"
    if "out of memory" in text:
        return "out of memory: use a smaller --model, --max-model-len or --memory"
    if "less than desired GPU memory utilization" in text:
        return "the GPU is in use by another process: lower --memory"
    if "ddress already in use" in text:
        return "the port is in use: choose another with --port"
    return ""


class ChildProcess:
    """A process in a group of its own, so that what it starts goes with it.

    A context manager: leaving it ends the whole group.
    """

    kind = "process"

    def __init__(
        self, name: str, command: list[str], environment: dict[str, str], log: Path, **options: Any
    ) -> None:
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as sink:
            self._process = subprocess.Popen(
                command, stdout=sink, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True, **options,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def end(self) -> None:
        """End the group: politely, then by force."""
        try:
            self.resume()
            self._ask_to_end()
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pass  # the whole group is killed next
        finally:
            # Also when a second Ctrl-C cuts the wait short: the terminal does not reach the group.
            self.signal(signal.SIGKILL)
            self._process.wait()

    def _ask_to_end(self) -> None:
        self.signal(signal.SIGTERM)

    def signal(self, number: int) -> None:
        """Send a signal to the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def pause(self) -> None:
        """Stop the group where it is.

        On a CPU an idle engine still polls, and takes from the other what is measured.
        """
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the group run on."""
        self.signal(signal.SIGCONT)

    def failure(self, what: str) -> EngineError:
        """Return the error to raise, with the exit status, a hint and the end of the log."""
        status = self._process.poll()
        hint = explain(self.log, status)
        text = f"{self.kind} {self.name}: {what}"
        text += f" (exit status {status})" if status is not None else ""
        text += f" ({hint})" if hint else ""
        return EngineError(f"{text}\n  end of {self.log}:\n{end_of(self.log)}")

    def broken_off(self, what: str) -> EngineError:
        """Return the error to raise when a pipe or a connection to the process broke off."""
        # A process that dies closes them a moment before it has an exit status.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        return self.failure(what)

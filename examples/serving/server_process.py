"""A `vllm serve` process: start, ask, and a clear error when it fails."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.client import EngineError, end_of, explain_log


def check_port(port: int) -> None:
    """Raise ValueError when nothing could listen on `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ValueError(f"--port: {port} cannot be used ({error.strerror})") from None


class Server:
    """One `vllm serve`. A context manager: leaving it ends the server and all it started."""

    kind = "server"

    def __init__(
        self, name: str, port: int, command: list[str], environment: dict[str, str], log: Path
    ) -> None:
        self.name, self.port, self.log = name, port, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as sink:
            self._process = subprocess.Popen(
                command, stdout=sink, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            pass  # the whole group is killed next
        self.signal(signal.SIGKILL)
        self._process.wait()

    def signal(self, number: int) -> None:
        """Send a signal to the server and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def pause(self) -> None:
        """Stop it where it is (on a CPU, while the other is measured)."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it run on."""
        self.signal(signal.SIGCONT)

    def post(self, path: str, body: dict[str, Any], timeout: float = 300.0) -> Any:
        """Post JSON and return the answer, parsed."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                text = answer.read()
        except (urllib.error.URLError, TimeoutError) as error:
            raise self.failure(f"{path}: {error}") from None
        return json.loads(text) if text else None

    def rpc(self, method: str, **kwargs: str) -> Any:
        """Call a method of the worker probe; vLLM offers it in VLLM_SERVER_DEV_MODE."""
        answer = self.post("/collective_rpc", {"method": method, "kwargs": kwargs})
        return answer["results"] if answer else None

    def wait_until_ready(self, timeout: float, tick: Callable[[], None]) -> None:
        """Wait until the server answers, or raise EngineError with the end of its log."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise self.failure(f"did not start (exit status {self._process.returncode})")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2):
                    return
            except (OSError, urllib.error.URLError):
                tick()
                time.sleep(0.5)
        raise self.failure(f"did not start within {timeout:.0f} s")

    def failure(self, what: str) -> EngineError:
        """Return the error to raise, with a hint and the end of the log."""
        hint = explain_log(self.log)
        text = f"server {self.name}: {what}" + (f" ({hint})" if hint else "")
        return EngineError(f"{text}\n  end of {self.log}:\n{end_of(self.log)}")

"""A `vllm serve` process: start, ask, and a clear error when it fails."""

from __future__ import annotations

import http.client
import json
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.child_process import ChildProcess


def check_port(port: int) -> None:
    """Raise ValueError when nothing could listen on `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ValueError(f"--port: {port} cannot be used ({error.strerror})") from None


class Server(ChildProcess):
    """One `vllm serve`."""

    kind = "server"

    def __init__(
        self, name: str, port: int, command: list[str], environment: dict[str, str], log: Path
    ) -> None:
        self.port = port
        super().__init__(name, command, environment, log)

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
        # Not only urllib's errors: a server that dies over a request is a connection reset.
        except (OSError, http.client.HTTPException) as error:
            raise self.broken_off(f"{path}: {error}") from None
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
                raise self.failure("did not start")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2):
                    return
            except OSError:
                tick()
                time.sleep(0.5)
        raise self.failure(f"did not start within {timeout:.0f} s")

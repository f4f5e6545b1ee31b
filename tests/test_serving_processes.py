"""The processes of examples/serve_llama.py: how they fail, and how they end."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import EXAMPLES, default_signals

pytest.importorskip("rich", reason="examples need rich")
import serve_llama  # noqa: E402
from serving import child_process, client  # noqa: E402
from serving.child_process import EngineError, explain  # noqa: E402
from serving.client import EngineClient  # noqa: E402
from serving.server_process import Server, check_port  # noqa: E402

STUBBORN = """
import os, signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
open(f"{sys.argv[0]}.{os.getpid()}", "w").close()
time.sleep(600)
"""


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ends(pid):
    """Whether a process ends within seconds; what nobody has waited for yet has ended, too."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_port_in_use():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port: {port} cannot be used"):
            check_port(port)


@pytest.mark.parametrize(
    ("log", "hint"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", "out of memory: use"),
        ("Free memory is less than desired GPU memory utilization (0.9", "lower --memory"),
        ("OSError: [Errno 98] Address already in use", "the port is in use"),
        ("failed. Failed core proc(s): {'EngineCore_DP0': -9}", "the system was out of memory"),
        ("failed. Failed core proc(s): {'EngineCore_DP0': 1}", ""),
        ("raise LocalEntryNotFoundError(", "or set HF_HUB_OFFLINE=0"),
        ("KV cache is needed, which is larger than the available KV cache memory (0.01 GiB).",
         "use a larger --kv-cache-gib"),
        ("No available memory for the cache blocks. Try", "use a larger --kv-cache-gib"),
        ("KeyError: 'x'", ""),
    ],
)  # fmt: skip
def test_the_usual_failures_have_a_hint(tmp_path, log, hint):
    path = tmp_path / "log"
    path.write_text(log)
    assert hint in explain(path)
    assert bool(explain(path)) == bool(hint)


def test_a_server_that_does_not_start_shows_the_end_of_its_log(tmp_path):
    command = [sys.executable, "-c", "print('CUDA out of memory'); raise SystemExit(3)"]
    with (
        Server("on", 1, command, dict(os.environ), tmp_path / "log") as process,
        pytest.raises(EngineError) as error,
    ):
        process.wait_until_ready(30, lambda: None)
    text = str(error.value)
    assert text.startswith("server on: did not start (exit status 3) (out of memory: use")
    assert text.endswith("    CUDA out of memory")


@pytest.mark.parametrize(
    ("last", "how"),
    [
        ("sys.exit(1)", "(exit status 1)\n"),
        ("os.kill(os.getpid(), 9)", "(exit status -9) (killed; most likely the system was out of"),
    ],
)
def test_an_engine_that_dies_is_an_error_with_its_log(tmp_path, monkeypatch, last, how):
    script = tmp_path / "worker.py"
    script.write_text(f"import os, sys; print('no such device', flush=True); {last}")
    monkeypatch.setattr(client, "WORKER", script)
    log = tmp_path / "log"
    with EngineClient("on", {}, dict(os.environ), log) as engine, pytest.raises(EngineError) as e:
        engine.wait_until_ready(30)
    assert str(e.value).startswith(f"engine on: died {how}")
    assert "no such device" in str(e.value)
    assert engine._process.stdin.closed, "or Python 3.13 complains when it collects the pipe"


def test_a_server_that_dies_over_a_request_is_an_error_with_its_log(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import os, socket\n"
        f"with socket.create_server(('127.0.0.1', {port})) as listener:\n"
        "    print('up', flush=True)\n"
        "    listener.accept()[0].recv(1)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    log = tmp_path / "log"
    with Server("on", port, [sys.executable, "-c", code], dict(os.environ), log) as process:
        wait_for(lambda: "up" in log.read_text())
        with pytest.raises(EngineError) as error:
            process.rpc("hp_norm_state")
    text = str(error.value)
    assert text.startswith("server on: /collective_rpc: ")
    assert "(exit status -9) (killed; most likely the system was out of memory" in text


@pytest.fixture
def stubborn(tmp_path):
    """A script that no polite signal ends, and the processes that run it."""
    script = tmp_path / "stubborn.py"
    script.write_text(STUBBORN)

    def pids():
        return [int(path.suffix[1:]) for path in tmp_path.glob(f"{script.name}.*")]

    yield script, pids
    for pid in pids():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


@pytest.mark.parametrize("kind", ["engine", "server"])
def test_a_second_interrupt_skips_the_wait_and_not_the_kill(stubborn, kind, tmp_path, monkeypatch):
    script, pids = stubborn
    monkeypatch.setattr(client, "WORKER", script)
    environment, log = dict(os.environ), tmp_path / "log"
    if kind == "engine":
        process = EngineClient("on", {}, environment, log)
    else:
        process = Server("on", 1, [sys.executable, str(script)], environment, log)
    wait_for(pids)
    wait = process._process.wait

    def interrupted(timeout=None):
        if timeout is None:
            return wait()
        raise KeyboardInterrupt

    process._process.wait = interrupted
    with pytest.raises(KeyboardInterrupt), process:
        pass
    assert ends(*pids())


@pytest.mark.parametrize(
    ("mode", "children", "number", "patience", "statuses"),
    [
        ("offline", 2, signal.SIGTERM, 0.2, {128 + signal.SIGTERM}),
        ("offline", 2, signal.SIGHUP, 0.2, {128 + signal.SIGHUP}),
        ("server", 3, signal.SIGHUP, 0.2, {128 + signal.SIGHUP}),
        # A Ctrl-C for each wait, and maybe one more when Python itself is ending.
        ("server", 3, signal.SIGINT, 60.0, {130, -signal.SIGINT}),
    ],
)
def test_an_interrupted_run_ends_what_it_started(
    stubborn, tmp_path, mode, children, number, patience, statuses
):
    script, pids = stubborn
    code = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\n"
        "import pathlib\n"
        "from serving import child_process, client, models, server\n"
        f"child_process.PATIENCE = {patience}\n"
        f"client.WORKER = pathlib.Path({str(script)!r})\n"
        "models.resolve = lambda name: models.Model('x', 'x', 'auto', 1)\n"
        f"server.serve_command = lambda *_: [sys.executable, {str(script)!r}]\n"
        "server.check_port = lambda port: None\n"
        "import serve_llama\n"
        "serve_llama.has_gpu = lambda: True\n"  # so they are started all at once
        f"arguments = [{mode!r}, '--port', '1', '--out', {str(tmp_path / 'out')!r}]\n"
        "sys.exit(serve_llama.main(arguments))\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code], preexec_fn=default_signals)
    wait_for(lambda: run.poll() is not None or len(pids()) == children)
    run.send_signal(number)
    while number == signal.SIGINT and run.poll() is None:
        time.sleep(0.4)
        run.send_signal(number)
    assert run.wait(60) in statuses
    assert [ends(pid) for pid in pids()] == [True] * children


def test_nohup_keeps_its_word():
    numbers = (signal.SIGHUP, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        serve_llama.end_by_signals()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_leaving_a_server_ends_its_children_too(tmp_path, monkeypatch):
    """Also when it is paused, and when it ignores a polite signal."""
    monkeypatch.setattr(child_process, "PATIENCE", 0.2)
    child = "import time; time.sleep(600)"
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    log = tmp_path / "log"
    process = Server("on", 1, [sys.executable, "-c", code], dict(os.environ), log)
    pid_file = tmp_path / "pid"
    wait_for(lambda: pid_file.is_file() and pid_file.read_text())
    process.pause()
    process.__exit__(None, None, None)
    assert ends(int(pid_file.read_text()))

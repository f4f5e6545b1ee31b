"""The processes of examples/serve_llama.py: how they fail and end; and its server mode."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import EXAMPLES

pytest.importorskip("rich", reason="examples need rich")
import serve_llama  # noqa: E402
from rich.console import Console  # noqa: E402
from serving import child_process, client, models, server  # noqa: E402
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
    run = subprocess.Popen([sys.executable, "-c", code])
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


def test_the_server_gets_the_engines_configuration(tmp_path):
    args = serve_llama.parse(["server", "--out", str(tmp_path)], gpu=False)
    model = models.Model("tiny", "/models/tiny", "auto", 2)
    command = server.serve_command(model, 8731, args)
    joined = " ".join(command)
    assert "/models/tiny" in command
    assert "--port 8731" in joined and "--no-enable-prefix-caching" in joined
    assert "--worker-extension-cls hp_norm_plugin.vllm.probe.WorkerProbe" in joined
    assert json.loads(command[command.index("--compilation-config") + 1]) == {
        "pass_config": {"fuse_norm_quant": False}
    }


def test_one_process_drives_again_and_again(tmp_path):
    """The benchmark client is imported once; a bad command line is an error, not its end."""
    package = tmp_path / "vllm" / "benchmarks"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "serve.py").write_text(
        "import os\n"
        "def add_cli_args(parser): parser.add_argument('--to', required=True)\n"
        "def main(args): open(args.to, 'a').write(f'{os.getpid()} ')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    seen = tmp_path / "seen"
    with EngineClient("client", {}, environment, tmp_path / "log", "load") as client:
        client.wait_until_ready(60)
        client.ask("drive", arguments=["--to", str(seen)])
        with pytest.raises(EngineError, match="load client: "):
            client.ask("drive", arguments=["--to"])
        client.ask("drive", arguments=["--to", str(seen)])
    first, second = seen.read_text().split()
    assert first == second


def test_loads_are_rates_or_concurrencies():
    args = SimpleNamespace(request_rates=[2.5], batch_sizes=[1, 8])
    assert server.loads(args) == [{"--request-rate": "2.5"}]
    args.request_rates = None
    assert [load["--max-concurrency"] for load in server.loads(args)] == ["1", "8"]


class FakeServer(contextlib.nullcontext):
    """Takes 200 us a step, 4 of them for its five norms with the plugin off, and 8 with it on."""

    kind = "server"
    asked: dict[str, list[int]] = {}

    def __init__(self, name, port, command, environment, log):
        self.name, self.port = name, port
        self.steps = 0
        self.asked = FakeServer.asked.setdefault(name, [])

    def __enter__(self):
        return self

    def wait_until_ready(self, timeout, tick):
        pass

    def pause(self):
        pass

    resume = pause

    def rpc(self, method):
        if method == "hp_norm_state":
            return [{"reason": "faked", "layers": {"operator": 5}, "left": [], "first_gpc": []}]
        if method == "hp_norm_profile_start":
            self.steps = 0
            return None
        ours = self.name == "on"
        norm = {"name": "hp_norm" if ours else "rms_norm", "time_us": self.steps * (4.0 + 4 * ours)}
        rest = {"name": "product", "time_us": self.steps * 200.0 - norm["time_us"]}
        # The prefill is a step of its own kind, which the profile is to be without.
        prefill = {"name": "prefill", "count": 1, "time_us": 999.0}
        return [[{**norm, "count": 5 * self.steps}, {**rest, "count": self.steps}, prefill]]

    def post(self, path, body):
        assert path == "/v1/completions" and len(body["prompt"]) == 16
        self.steps += body["max_tokens"]
        self.asked.append(body["max_tokens"])
        return {"choices": [{"text": "w5" * body["max_tokens"]}]}


class FakeLoad(contextlib.nullcontext):
    """Writes what `vllm bench serve` does, by the percentiles that it is asked for."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def wait_until_ready(self, timeout):
        pass

    def ask(self, do, timeout, arguments):
        given = dict(zip(arguments, arguments[1:], strict=False))
        result = {"completed": int(given["--num-prompts"]), "output_throughput": 100.0}
        for metric in given["--percentile-metrics"].split(","):
            for percentile in given["--metric-percentiles"].split(","):
                result[f"p{percentile}_{metric}_ms"] = 3.0
            result[f"median_{metric}_ms"] = 2.0
        folder = Path(given["--result-dir"])
        (folder / given["--result-filename"]).write_text(json.dumps(result))


@pytest.fixture
def faked(monkeypatch):
    """Have server mode start no process."""
    monkeypatch.setattr(server, "Server", FakeServer)
    monkeypatch.setattr(server, "EngineClient", FakeLoad)
    monkeypatch.setattr(server, "check_port", lambda port: None)
    monkeypatch.setattr(FakeServer, "asked", {})


@pytest.mark.parametrize(("repeats", "ratio"), [("1", "1.0000"), ("2", "1.0000 ±0.0000")])
def test_a_whole_run_of_server_mode(faked, tmp_path, repeats, ratio):
    """Percentiles, the norms' share of a step, and no spread of a single drive."""
    words = ["server", "--batch-sizes", "4", "--repeats", repeats, "--out", str(tmp_path)]
    args = serve_llama.parse(words, gpu=False)
    console = Console(record=True, width=140)
    result = serve_llama.run_server(models.Model("tiny", "tiny", "auto", 2), args, console)
    path = serve_llama.keep(args, result)
    lines = console.export_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if "│" in line]
    latencies = [[f"{what} {p} ms", {"p50": "2.00", "p99": "3.00"}[p]]
                 for what in ("TTFT", "TPOT", "ITL") for p in ("p50", "p99")]  # fmt: skip
    assert [row[1:3] for row in rows[:-2]] == [*latencies, ["tokens/s", "100.00"]]
    assert {row[4] for row in rows[:-2]} == {ratio}
    assert rows[-2:] == [
        ["off, decode 1", "200.0", "4.0", "2.0%", "5", "0"],
        ["on, decode 1", "200.0", "8.0", "4.0%", "5", "5"],
    ]
    assert result["ok"] and result["verdict"] == (
        "the operator ran 5 times a decode step (5 norm layers on it), 0 times with the plugin "
        "off; 17 greedy tokens agree"
    )
    # A first profile, and two that are subtracted; the text is that of the last.
    assert FakeServer.asked == {"off": [1, 1, 17], "on": [1, 1, 17]}
    assert result["texts"] == {"off": "w5" * 17, "on": "w5" * 17}
    kept = json.loads(path.read_text(), parse_constant=pytest.fail)
    names = {one["plugin"]: {k["name"] for k in one["kernels"]} for one in kept["profiles"]}
    assert names == {"off": {"rms_norm", "product"}, "on": {"hp_norm", "product"}}
    assert kept["profiles"][0]["summary"]["norm_us_per_step"] == 4.0
    assert (kept["rows"][0]["p99_tpot_ms"]["spread"] is None) == (repeats == "1")


def test_a_run_of_server_mode_that_is_cut_off_shows_what_it_measured(faked, tmp_path, monkeypatch):
    """Of its two loads the second one fails, when the first has had all of its drives."""
    drives = iter(range(4))

    class Broken(FakeLoad):
        def ask(self, do, timeout, arguments):
            if next(drives, None) is None:
                raise EngineError("load client: died")
            super().ask(do, timeout, arguments)

    monkeypatch.setattr(server, "EngineClient", Broken)
    words = ["server", "--batch-sizes", "4", "8", "--repeats", "1", "--out", str(tmp_path)]
    args = serve_llama.parse(words, gpu=False)
    console = Console(record=True, width=140)
    with pytest.raises(EngineError, match="load client: died"):
        serve_llama.run_server(models.Model("tiny", "tiny", "auto", 2), args, console)
    shown = console.export_text()
    assert "tiny, vllm serve: what was measured" in shown and "serve_llama_server.json" in shown
    assert "max-concurrency 4" in shown and "max-concurrency 8" not in shown
    kept = json.loads((tmp_path / "serve_llama_server.json").read_text())
    assert [row["load"] for row in kept["rows"]] == ["max-concurrency 4"]
    assert kept["arguments"]["batch_sizes"] == [4, 8] and len(kept["profiles"]) == 2


def test_servers_are_driven_there_and_back(faked, tmp_path, monkeypatch):
    ports = []

    class Noted(FakeLoad):
        def ask(self, do, timeout, arguments):
            ports.append(int(arguments[arguments.index("--port") + 1]))
            super().ask(do, timeout, arguments)

    monkeypatch.setattr(server, "EngineClient", Noted)
    words = ["server", "--batch-sizes", "4", "--repeats", "2", "--out", str(tmp_path)]
    args = serve_llama.parse(words, gpu=False)
    serve_llama.run_server(models.Model("tiny", "tiny", "auto", 2), args, Console(quiet=True))
    off, on = args.port, args.port + 1
    assert ports == [off, on, on, off, off, on]

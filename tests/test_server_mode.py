"""The server mode of examples/serve_llama.py."""

import contextlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("rich", reason="examples need rich")
import serve_llama  # noqa: E402
from rich.console import Console  # noqa: E402
from serving import models, server  # noqa: E402
from serving.child_process import EngineError  # noqa: E402
from serving.client import EngineClient  # noqa: E402


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

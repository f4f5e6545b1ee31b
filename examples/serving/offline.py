"""Offline comparison: engines with the plugin off and on, measured in turn in one run."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import Progress

from hp_norm_plugin.vllm.probe import WORKER_EXTENSION
from serving import kernel_profile
from serving.children import alone, progress_bar, start_all
from serving.client import EngineClient, child_environment
from serving.comparison import OFF, ON, named, summarise, turns
from serving.models import Model

QUEUED_PREFILLS = 4


def engine_config(
    model: Model, args: argparse.Namespace, worker_extension: str = WORKER_EXTENSION
) -> dict[str, Any]:
    """Return the configuration that every engine gets: only their environments differ."""
    batches = sorted({*args.batch_sizes, args.prefill_batch} - {0})
    longest = max(args.input_len + args.output_len, args.prefill_len + 1)
    # Batches that a CUDA graph holds exactly, and no others: capturing the default list of sizes
    # would be most of the start.
    compilation: dict[str, Any] = {"cudagraph_capture_sizes": batches} if args.gpu else {}
    if args.quantization is None:
        # Asking for another norm turns vLLM's norm + quantisation pass on. An unquantised model
        # has nothing for it to match; fixed here, both engines compile with the same passes.
        compilation["pass_config"] = {"fuse_norm_quant": False}
    llm: dict[str, Any] = {
        "model": model.path,
        "skip_tokenizer_init": model.num_layers is not None,
        "load_format": model.load_format,
        "dtype": "bfloat16",
        "seed": args.seed,
        "max_model_len": args.max_model_len or -(-longest // 16) * 16,
        "max_num_seqs": max(batches),
        "max_num_batched_tokens": max(args.prefill_batch * args.prefill_len, 2048),
        "enable_prefix_caching": False,
        "kv_cache_memory_bytes": int(args.kv_cache_gib * 2**30),
        "worker_extension_cls": worker_extension,
        "compilation_config": compilation,
        "disable_log_stats": True,
    }
    if args.gpu:
        llm["gpu_memory_utilization"] = args.memory
    if args.quantization:
        llm["quantization"] = args.quantization
    if args.enforce_eager:
        llm["enforce_eager"] = True
    return {"llm": llm, "fill_weights": model.random_weights, "seed": args.seed}


def start(
    stack: contextlib.ExitStack,
    model: Model,
    args: argparse.Namespace,
    progress: Progress,
    plans: dict[str, dict[str, str]],
    worker_extension: str = WORKER_EXTENSION,
) -> dict[str, EngineClient]:
    """Start engines; `plans` has the environment variables of each by its name."""
    config = engine_config(model, args, worker_extension)
    # On a CPU the engine runs inside the one process: three would each load torch and vLLM, which
    # is most of a tiny model's start.
    common = {} if args.gpu else {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    clients = (
        EngineClient(
            name,
            config,
            child_environment({**common, **variables}),
            Path(args.out) / f"engine_{name}.log",
        )
        for name, variables in plans.items()
    )
    return start_all(stack, clients, args, progress)


def workloads(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what `Engine.measure` is asked for, with the kind of each.

    Of a mode other than offline and swap, which have no prefill, the decodes alone.
    """
    works: list[dict[str, Any]] = [
        {"kind": "decode", "batch": batch, "input_len": args.input_len,
         "output_len": args.output_len}
        for batch in args.batch_sizes
    ]  # fmt: skip
    if args.prefill_batch and args.mode in ("offline", "swap"):
        works.append(
            {"kind": "prefill", "batch": args.prefill_batch, "input_len": args.prefill_len,
             "output_len": 1, "queued": QUEUED_PREFILLS}
        )  # fmt: skip
    return works


def measure(
    engines: dict[str, EngineClient],
    args: argparse.Namespace,
    progress: Progress,
    keep: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Measure every workload on each engine in turn; one row a workload, kept as they come."""
    works = workloads(args)
    task = progress.add_task(
        "measuring", total=len(works) * (args.repeats + args.warmup) * len(engines)
    )
    rows = []
    for work in works:
        request = {k: v for k, v in work.items() if k != "kind"}
        runs: dict[str, Any] = {
            name: {"first_token_s": [], "all_tokens_s": [], "tokens": []} for name in engines
        }
        for name, counts in turns(engines, args.warmup, args.repeats):
            progress.update(
                task, description=f"{work['kind']} batch {work['batch']}, plugin {name}"
            )
            with alone(engines[name], args):
                result = engines[name].ask("measure", seed=args.seed, **request)
            if counts:
                for field, values in runs[name].items():
                    values.append(result[field])
            progress.update(task, advance=1)
        rows.append(summarise(work, runs))
        keep({"rows": rows})
    progress.update(task, visible=False)
    return rows


def run(
    model: Model, args: argparse.Namespace, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Start the engines, measure, profile, compare.

    `keep` is handed what there is after each workload, so that a run that is cut off leaves it.

    Returns
    -------
    dict
        `rows` as `summarise` makes them, `profiles` of a decode and of the prefill, and `state`
        of each engine.

    Raises
    ------
    EngineError
        An engine did not start or died.

    """
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(progress_bar())
        plans = {OFF: {"HP_NORM_PLUGIN": "0"}, ON: {"HP_NORM_PLUGIN": args.plugin}}
        others = {name: {**plans[ON], **variables} for name, variables in args.variants.items()}
        for number in range(2, args.engines + 1):
            others |= {named(setting, number): plans[setting] for setting in (OFF, ON)}

        def new_cache() -> str:
            return stack.enter_context(tempfile.TemporaryDirectory(prefix="hp_norm_cache_"))

        if args.one_cache:
            root = {"VLLM_CACHE_ROOT": new_cache()}
            plans = {name: {**root, **variables} for name, variables in {**plans, **others}.items()}
        else:
            # Compiled anew: two engines of one compile cache share the choices of its autotuning,
            # and what compiling once more differs by would not show.
            for name, variables in others.items():
                plans[name] = {"VLLM_CACHE_ROOT": new_cache(), **variables}
        if others:
            args.memory = min(args.memory, 0.9 / len(plans))
        return look(start(stack, model, args, progress, plans), args, progress, keep)


def look(
    engines: dict[str, EngineClient],
    args: argparse.Namespace,
    progress: Progress,
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Measure and profile engines that are alive, and return what `run` does."""
    state = {}
    for name, engine in engines.items():
        with alone(engine, args):
            state[name] = engine.ask("state")
    rows = measure(engines, args, progress, keep)
    return {"rows": rows, "profiles": _profiles(engines, args), "state": state}


def _profiles(engines: dict[str, EngineClient], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Profile the first decode and the prefill, off and on; or all of them on every engine."""
    profiles = []
    batches = args.batch_sizes if args.profile_all else args.batch_sizes[:1]
    for work in workloads(args):
        if work["kind"] == "decode" and work["batch"] not in batches:
            continue
        asked = {"batch": work["batch"], "input_len": work["input_len"],
                 "output_len": kernel_profile.output_len(work["output_len"])}  # fmt: skip
        for name in engines if args.profile_all else (OFF, ON):
            with alone(engines[name], args):
                taken = engines[name].ask("profile", seed=args.seed, **asked)
            named = {"plugin": name, "kind": work["kind"], **asked}
            profiles.append({**named, **kernel_profile.summarised(taken)})
    return profiles


def graphs(result: dict[str, Any]) -> str:
    """Return who compiled and who loaded how many graphs, in words."""
    words = []
    for name, state in result["state"].items():
        counted = state["compile"]
        compiled = counted.get("num_aot_compiles", 0)
        loaded = counted.get("num_aot_artifacts_loaded", 0)
        words.append(f"{name} compiled {compiled}, loaded {loaded}")
    return "graphs of one compile cache: " + "; ".join(words)


def verdict(result: dict[str, Any]) -> tuple[bool, str]:
    """Return whether the operator ran with the plugin on, and not with it off; and one sentence."""
    calls = {
        name: max(
            profile["summary"]["hp_norm_per_step"]
            for profile in result["profiles"]
            if profile["plugin"] == name and profile["kind"] == "decode"
        )
        for name in (OFF, ON)
    }
    state = result["state"][ON]
    if calls[OFF] > 0:
        return False, f"the operator ran {calls[OFF]:g} times a step with the plugin off"
    if calls[ON] == 0:
        left = [f"{n} {why}" for why, n in state["layers"].items() if why != "operator"]
        why = "; ".join([state["reason"], *left, *state["left"]])
        return False, f"the operator did not run: {why}"
    ran = (
        f"the operator ran {calls[ON]:g} times a decode step "
        f"({state['layers'].get('operator', 0)} norm layers on it), 0 times with the plugin off"
    )
    return True, "; ".join([ran, *state["first_gpc"]])

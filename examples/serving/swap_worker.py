"""Methods for a vLLM worker that keep several compilations of one model and change between them.

Weights, KV cache and process stay where they are, so what two of them differ by is their graphs.
It uses what vLLM has for compiling a running model again when its parallelism changes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from hp_norm_plugin.vllm import registration, token_ranges
from hp_norm_plugin.vllm.host import IR_OPS
from hp_norm_plugin.vllm.probe import WorkerProbe, compile_counters
from serving.graph_times import GraphTimes, back_to_back

WORKER_EXTENSION = "serving.swap_worker.WorkerSwap"
# Who has the CUDA graphs has the memory pool for the next ones, too: by the names that vLLM's
# newer and older model runner have for the graphs.
POOLS = {"graphs": "pool", "concrete_cudagraph_entries": "graph_pool"}


@dataclass(frozen=True)
class Graphs:
    """A compilation of the model: its compiled functions, and the CUDA graphs of whole steps."""

    compiled: list[Any]
    cuda: dict[Any, Any]
    priority: dict[str, list[str]]
    cache_dir: str  # below the cache folder that it was compiled in
    counters: dict[str, int]  # vLLM's, of this compilation

    def of_step(self, num_tokens: int) -> torch.cuda.CUDAGraph | None:
        """Return the CUDA graph of a whole decode step of so many tokens, or None."""
        for size, graph in self.cuda.items():
            if size.num_tokens == num_tokens:
                return getattr(graph, "cudagraph", graph)  # the older model runner wraps it
        return None


class WorkerSwap(WorkerProbe):
    """Mixed into vLLM's worker class."""

    def hp_norm_keep(self, name: str) -> None:
        """Keep the compilation in use under a name."""
        from vllm import envs

        config = self.vllm_config  # type: ignore[attr-defined]
        kept = self.__dict__.setdefault("_hp_norm_graphs", {})
        kept[name] = Graphs(
            compiled=[module.aot_compiled_fn for module in self._compiled_modules()],
            cuda=self._cuda(),
            priority={op: getattr(config.kernel_config.ir_op_priority, op) for op in IR_OPS},
            cache_dir=os.path.relpath(
                config.compilation_config.local_cache_dir, envs.VLLM_CACHE_ROOT
            ),
            counters=compile_counters(),
        )
        self._hp_norm_used = name

    def hp_norm_use(self, name: str) -> None:
        """Have the next steps run a compilation that was kept, and `hp_norm_state` tell of it."""
        from vllm import envs

        graphs = self._hp_norm_graphs[name]
        for module, compiled in zip(self._compiled_modules(), graphs.compiled, strict=True):
            module.aot_compiled_fn = compiled
        self._set_cuda(graphs.cuda)
        config = self.vllm_config  # type: ignore[attr-defined]
        _set_priority(config, graphs.priority)
        cache_dir = os.path.join(envs.VLLM_CACHE_ROOT, graphs.cache_dir)
        config.compilation_config.local_cache_dir = cache_dir
        self._hp_norm_used = name

    def hp_norm_state(self) -> dict[str, Any]:
        """Return what `WorkerProbe` does, with the counters of the compilation in use."""
        counters = self._hp_norm_graphs[self._hp_norm_used].counters
        return {**super().hp_norm_state(), "compile": counters}

    def hp_norm_compile(
        self, name: str, with_plugin: bool, cache_root: str, new_pool: bool
    ) -> None:
        """Compile the model again, as an engine does at its start, and keep it under a name.

        What vLLM derives at its start from who is asked for norms stays as it was: whether to fuse
        a norm with a quantisation behind it.

        Parameters
        ----------
        name
            What `hp_norm_use` is to call it.
        with_plugin
            Whether the operator's providers are asked for the norms of this compilation.
        cache_root
            vLLM's cache folder for it. In a new one nothing is found, and Inductor times its
            launches again; in one that holds this graph it is loaded.
        new_pool
            Whether its CUDA graphs lie elsewhere than those of the compilation before, or where
            those lie: they never run at the same time.

        """
        from vllm.compilation.wrapper import reset_compile_wrapper
        from vllm.config import set_current_vllm_config

        config = self.vllm_config  # type: ignore[attr-defined]
        runner = self.model_runner  # type: ignore[attr-defined]
        with _cache_root(cache_root), set_current_vllm_config(config):
            _choose(config, with_plugin)
            for module in self._compiled_modules():
                reset_compile_wrapper(module)
            self._set_cuda({})
            if new_pool:
                self._new_pool()
            # As at a start: a run with the most tokens, then the CUDA graphs.
            if hasattr(runner, "warming_up_model"):
                runner.warming_up_model()  # on a CPU with what it compiles with
            else:
                runner.profile_run()
            self.compile_or_warm_up_model()  # type: ignore[attr-defined]
            self.hp_norm_keep(name)

    def hp_norm_replay(
        self, names: list[str], num_tokens: int, rounds: int, replays: int
    ) -> dict[str, list[float]]:
        """Replay the CUDA graph of a decode step of each compilation, in turn, back to back.

        Every replay repeats the last step that the engine did.

        Parameters
        ----------
        names
            Compilations that were kept.
        num_tokens
            Requests of the step, a token each: a graph was captured for exactly so many.
        rounds, replays
            How often each compilation has its turn, and how many replays a turn has.

        Returns
        -------
        dict
            Seconds a replay, of each turn, by name; none where there is no such graph.

        Raises
        ------
        RuntimeError
            The last step had fewer requests: attention would do less than in such a step.

        """
        graphs = {name: self._hp_norm_graphs[name].of_step(num_tokens) for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        if None in graphs.values():
            return seconds
        buffers = getattr(self.model_runner, "input_buffers", None)  # type: ignore[attr-defined]
        if buffers is not None and not bool((buffers.seq_lens[:num_tokens] > 0).all()):
            raise RuntimeError(f"swap: the last step had fewer than {num_tokens} requests")
        for _ in range(rounds):
            for name, graph in graphs.items():
                seconds[name].append(back_to_back(graph, replays))
        return seconds

    def hp_norm_watch(self, num_tokens: int) -> None:
        """Time the CUDA graph of every decode step of so many requests, as it is replayed."""
        graph = self._hp_norm_graphs[self._hp_norm_used].of_step(num_tokens)
        self._hp_norm_watched = GraphTimes(graph).start() if graph is not None else None

    def hp_norm_watched(self) -> dict[str, Any]:
        """Stop that, and return what `GraphTimes.stop` does; nothing where there is no graph."""
        return self._hp_norm_watched.stop() if self._hp_norm_watched is not None else {}

    def _compiled_modules(self) -> list[Any]:
        """Return the parts of the model that vLLM compiles, each ahead of time."""
        from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper

        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        found = [
            module
            for module in model.modules()
            if isinstance(module, TorchCompileWithNoGuardsWrapper)
            and not getattr(module, "do_not_compile", False)
        ]
        if not found or any(getattr(m, "aot_compiled_fn", None) is None for m in found):
            raise RuntimeError("swap: vLLM has to compile the model, and ahead of time")
        return found

    def _cuda(self) -> dict[Any, Any]:
        holder, name = self._cuda_holder()
        return getattr(holder, name) if holder is not None else {}

    def _set_cuda(self, graphs: dict[Any, Any]) -> None:
        holder, name = self._cuda_holder()
        if holder is None:
            return
        setattr(holder, name, graphs)
        if hasattr(holder, "_graphs_captured"):  # or it would look for those that are not there yet
            holder._graphs_captured = bool(graphs)

    def _new_pool(self) -> None:
        """Have the next CUDA graphs lie elsewhere than those before.

        A product can take 7 % longer by where its input lies (H200,
        docs/gpu/2026-11-26-h200-addresses.txt).
        """
        holder, name = self._cuda_holder()
        if holder is not None:
            setattr(holder, POOLS[name], torch.cuda.graph_pool_handle())

    def _cuda_holder(self) -> tuple[Any, str]:
        """Return who has the CUDA graphs of whole steps, by name: none on a CPU."""
        runner = self.model_runner  # type: ignore[attr-defined]
        if getattr(runner, "cudagraph_manager", None) is not None:
            return runner.cudagraph_manager, "graphs"
        if hasattr(runner.model, "concrete_cudagraph_entries"):
            return runner.model, "concrete_cudagraph_entries"
        if torch.cuda.is_available():
            raise RuntimeError("swap: the CUDA graphs of this vLLM were not found")
        return None, ""


def _choose(config: Any, with_plugin: bool) -> None:
    """Give a configuration the priority, and the ranges of token numbers, of a setting."""
    from vllm.platforms import current_platform

    platforms = current_platform.get_default_ir_op_priority
    if not hasattr(platforms, "puts_hp_norm_first"):
        done = registration()
        why = done.reason if done is not None else "the plugin was not loaded"
        raise RuntimeError(f"swap: the IR adapter is needed, got: {why}")
    compilation = config.compilation_config
    ends = {*compilation.compile_ranges_endpoints} - {token_ranges.LAST}
    compilation.compile_ranges_endpoints = sorted(ends)
    _set_priority(config, {op: [] for op in IR_OPS})  # what is there would be taken for the user's
    chosen = (platforms if with_plugin else platforms.__wrapped__)(config)
    _set_priority(config, {op: getattr(chosen, op) for op in IR_OPS})


def _set_priority(config: Any, names: dict[str, list[str]]) -> None:
    """Set which providers are asked for each operator, in the configuration and in this process."""
    priority = config.kernel_config.ir_op_priority
    for op, providers in names.items():
        setattr(priority, op, providers)
    priority.set_default()


@contextlib.contextmanager
def _cache_root(path: str) -> Iterator[None]:
    """Have vLLM's cache in another folder: it has read its environment by now."""
    from vllm import envs

    before = envs.VLLM_CACHE_ROOT
    envs.disable_envs_cache()
    os.environ["VLLM_CACHE_ROOT"] = path
    try:
        yield
    finally:
        os.environ["VLLM_CACHE_ROOT"] = before
        envs.enable_envs_cache()

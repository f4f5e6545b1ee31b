"""Methods for a vLLM worker that show which norm really ran: a profile by kernel name.

Hand `WORKER_EXTENSION` to vLLM as `worker_extension_cls` and call the methods through
`LLM.collective_rpc("hp_norm_profile_start")`. A count of kernels holds where a flag or a counter
in Python would not: under torch.compile and CUDA graphs the host runs no code of ours at all. On a
CPU the profile lists operators instead, the same way.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

from hp_norm_plugin.vllm.host import IR_OPS

WORKER_EXTENSION = "hp_norm_plugin.vllm.probe.WorkerProbe"


class WorkerProbe:
    """Mixed into vLLM's worker class; every name starts with hp_norm_, so none can collide."""

    def hp_norm_profile_start(self) -> None:
        """Start a profile of this worker's kernels (on a CPU: of its operators)."""
        activity = torch.profiler.ProfilerActivity
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        self._hp_norm_profiler = torch.profiler.profile(
            activities=[activity.CUDA] if on_gpu else [activity.CPU]
        )
        self._hp_norm_profiler.start()

    def hp_norm_profile_stop(self) -> list[dict[str, Any]]:
        """Stop the profile.

        Returns
        -------
        list of dict
            `name`, `count` and `time_us` (own time, summed) of each kernel, the longest first; on a
            GPU also `until_next_us`, from its start to the start of the kernel behind it: what a
            step pays for it, gaps and overlaps included.

        """
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        if on_gpu:
            torch.cuda.synchronize()
        self._hp_norm_profiler.stop()
        field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        rows = [
            {"name": event.key, "count": event.count, "time_us": float(getattr(event, field))}
            for event in self._hp_norm_profiler.key_averages()
        ]
        if on_gpu:
            pays = until_next(self._hp_norm_profiler.events())
            rows = [{**row, "until_next_us": pays.get(row["name"], 0.0)} for row in rows]
        del self._hp_norm_profiler
        return sorted(rows, key=lambda row: -row["time_us"])

    def hp_norm_state(self) -> dict[str, Any]:
        """Return what this worker has: the adapter, its layers, and how its graph came to be.

        Returns
        -------
        dict
            `adapter` and `reason` of `register`; `layers` as `report.count_layers`; `left`, as
            `report.describe_left`; `first_gpc`, the words on where products begin;
            `priority` of each IR op; `compile`, vLLM's compile counters; `cache_dir`, the graph's
            folder under vLLM's cache; `pass_config`.

        """
        from hp_norm_plugin.vllm import first_product, registration, report

        done = registration()
        adapter = done.adapter if done is not None else None
        vllm_config = self.vllm_config  # type: ignore[attr-defined]
        compilation = vllm_config.compilation_config
        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        return {
            "adapter": adapter,
            "reason": done.reason if done is not None else "the plugin was not loaded",
            "layers": report.count_layers(model, vllm_config, adapter) if adapter else {},
            "left": report.describe_left(vllm_config, adapter),
            "first_gpc": first_product.choices(),
            "priority": _ir_priority(),
            "compile": compile_counters(),
            "mode": str(compilation.mode),
            "cudagraph_mode": str(compilation.cudagraph_mode),
            "cache_dir": _cache_dir(compilation),
            "pass_config": {k: repr(v) for k, v in vars(compilation.pass_config).items()},
        }

    def hp_norm_fill_weights(self, seed: int | str) -> int:
        """Fill a model of dummy weights with ones of a trained model's size, the same per seed.

        vLLM's dummy weights are about 1e-3 everywhere, norms included: eps outweighs the
        variance, and a norm that did nothing would not be noticed.

        Returns
        -------
        int
            How many tensors were filled. Quantised ones and their scales are left.

        """
        from hp_norm_plugin.vllm import policy

        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        config = self.vllm_config.model_config  # type: ignore[attr-defined]
        # Such a model adds one to its norms' weights itself.
        mean_of_norms = 0.0 if policy.converts_weights(config) else 1.0
        filled = 0
        with torch.no_grad():
            for index, (name, value) in enumerate(sorted(model.named_parameters())):
                if value.dtype != config.dtype:
                    continue
                generator = torch.Generator(device=value.device).manual_seed(int(seed) + index)
                noise = torch.empty_like(value).normal_(0.0, 1.0, generator=generator)
                if value.dim() == 1 and "norm" in name:
                    value.copy_(noise.mul_(0.1).add_(mean_of_norms))
                elif value.dim() >= 2:
                    value.copy_(noise.mul_(0.02))
                else:
                    continue
                filled += 1
        return filled


def kernels(events: Iterable[Any]) -> list[tuple[float, float, str]]:
    """Start and end, in microseconds, and name of each kernel, in the order of their starts."""
    return sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in events
        if event.device_type == torch.autograd.DeviceType.CUDA
    )


def until_next(events: Iterable[Any]) -> dict[str, float]:
    """Microseconds from the start of each kernel to the start of the next, summed by name."""
    summed: dict[str, float] = defaultdict(float)
    for (start, _, name), (next_start, _, _) in itertools.pairwise(kernels(events)):
        summed[name] += next_start - start
    return summed


def _cache_dir(compilation: Any) -> str:
    # Where vLLM's cache lies says nothing about the graph, and is the machine's own business.
    from vllm import envs

    found = str(getattr(compilation, "local_cache_dir", None) or "")
    return found.removeprefix(f"{envs.VLLM_CACHE_ROOT}/")


def _ir_priority() -> dict[str, list[str]]:
    try:
        from vllm import ir
    except ImportError:  # this vLLM has no IR
        return {}
    return {name: getattr(ir.ops, name).get_priority() for name in IR_OPS}


def compile_counters() -> dict[str, int]:
    """Return what vLLM has counted of its compilations in this process, by name."""
    try:
        from vllm.compilation.counter import compilation_counter
    except ImportError:  # an internal module; its absence only leaves the table empty
        return {}
    return {k: int(v) for k, v in dataclasses.asdict(compilation_counter).items()}

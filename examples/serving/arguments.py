"""The command line of examples/serve_llama.py."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from hp_norm_plugin.vllm import quantization
from serving import cache, offline
from serving.comparison import OFF, ON, more_of


@dataclass(frozen=True)
class Limits:
    """Between which values a number must be."""

    least: float
    most: float | None = None
    above: bool = False  # whether `least` itself is too little

    def allow(self, value: float) -> bool:
        """Whether a number is one of them; nan is not."""
        enough = value > self.least if self.above else value >= self.least
        return enough and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        if self.above:
            words = f"above {self.least}"
            return words if self.most is None else f"{words} and at most {self.most}"
        return f"at least {self.least}" if self.most is None else f"{self.least} to {self.most}"


# Of a list, for each of its members.
LIMITS = {
    "batch_sizes": Limits(1),
    "input_len": Limits(1),
    "output_len": Limits(2),
    "prefill_batch": Limits(0),
    "prefill_len": Limits(1),
    "repeats": Limits(1),
    "warmup": Limits(0),
    "engines": Limits(1),
    "memory": Limits(0, 1, above=True),
    "kv_cache_gib": Limits(0, 1024, above=True),
    "max_model_len": Limits(1),
    "seed": Limits(0, 2**32 - 1),  # NumPy's, which vLLM seeds, too
    "seeds": Limits(1),
    "port": Limits(1, 65534),  # and the next one
    "request_rates": Limits(0, above=True),
    "num_prompts": Limits(1),
    "starts": Limits(2, len(cache.ORDER)),
}

# Options that would change what is compared, with their names here, and the modes that have them.
MODES = {
    "--engines": ("engines", ("offline", "swap")),
    "--variant": ("variants", ("offline",)),
    "--one-cache": ("one_cache", ("offline", "swap")),
    "--request-rates": ("request_rates", ("server",)),
}


class Variant(argparse.Action):
    """Collects `NAME VARIABLE=VALUE ...` as the variables of each name."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Add one variant."""
        name, *settings = values
        if not settings or not all(setting.find("=") > 0 for setting in settings):
            got = " ".join(values)
            parser.error(f"--variant: must be NAME VARIABLE=VALUE [VARIABLE=VALUE ...], got {got}")
        engine = more_of(OFF, [name]) or more_of(ON, [name])
        if engine or name in namespace.variants:
            parser.error(f"--variant: the name must be new, got {name}")
        variables = dict(setting.split("=", 1) for setting in settings)
        namespace.variants = {**namespace.variants, name: variables}


def _parser(gpu: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Serve a model with vLLM, with and without hp_norm_plugin, and compare.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    modes = ["offline", "server", "tokens", "cache", "swap"]
    add(
        "mode", nargs="?", choices=modes, default="offline",
        help="offline: engines. server: vllm serve under load. tokens: greedy tokens. "
        "cache: starts in one compile cache. swap: one engine, its graphs swapped",
    )  # fmt: skip
    add(
        "--model",
        default="Llama-3.1-8B" if gpu else "tiny-llama",
        help="a name of examples/models, a directory, or a hub name",
    )
    add("--plugin", default="auto", choices=["auto", "ir", "layer"], help="HP_NORM_PLUGIN when on")
    add(
        "--batch-sizes", type=int, nargs="+", default=[1, 8, 32, 128] if gpu else [1, 4],
        help="requests that decode at the same time",
    )  # fmt: skip
    add("--input-len", type=int, default=128 if gpu else 16, help="tokens of each one's prompt")
    add("--output-len", type=int, default=129 if gpu else 17, help="tokens that each generates")
    add("--prefill-batch", type=int, default=8 if gpu else 2, help="0: no prefill measurement")
    add("--prefill-len", type=int, default=1024 if gpu else 128, help="tokens of each one's prompt")
    add("--repeats", type=int, default=6 if gpu else 3, help="pairs off, on of each workload")
    add("--warmup", type=int, default=1, help="pairs before them that are not counted")
    add("--quantization", default=None, help="vLLM's, such as fp8 (online)")
    add(
        "--may-stand-aside",
        action="store_true",
        help="exit with 0 when the plugin leaves every norm to vLLM, too",
    )
    add("--enforce-eager", action="store_true", help="no compilation, no CUDA graphs")
    add(
        "--engines", type=int, default=1,
        help="offline: of each setting; equal ones differ by 1 %%. swap: compilations of each",
    )  # fmt: skip
    add(
        "--variant",
        dest="variants",
        nargs="+",
        action=Variant,
        default={},
        metavar=("NAME", "VARIABLE=VALUE"),
        help="offline: another engine, plugin on, with these variables; may be given again",
    )
    add(
        "--one-cache",
        action="store_true",
        help="offline, swap: one new compile cache, as on a user's machine; the first fills it",
    )
    add("--profile-all", action="store_true", help="profile every engine at every batch size")
    add("--memory", type=float, default=0.45, help="gpu_memory_utilization of each engine")
    add(
        "--kv-cache-gib", type=float, default=12.0 if gpu else 0.5,
        help="KV cache of each engine, which must hold every batch",
    )  # fmt: skip
    add(
        "--max-model-len", type=int, default=None,
        help="vLLM's; without it what the requests need",
    )  # fmt: skip
    add("--seed", type=int, default=0, help="of random weights and of the prompts")
    add("--seeds", type=int, default=3, help="tokens: how many prompts")
    add("--port", type=int, default=8731, help="server: this port and the next are used")
    add(
        "--request-rates", type=float, nargs="+",
        help="server: requests a second, instead of concurrencies; inf: all at once",
    )  # fmt: skip
    add("--num-prompts", type=int, default=64 if gpu else 8, help="server: requests of one drive")
    add("--starts", type=int, default=5 if gpu else 3, help="cache: on, off, on, off, on")
    add("--out", default="serve_llama_out", help="directory for the JSON and the logs")
    return parser


def parse(argv: list[str] | None, gpu: bool) -> argparse.Namespace:
    """Parse the command line; the defaults depend on whether there is a GPU."""
    parser = _parser(gpu)
    args = parser.parse_args(argv)
    args.gpu = gpu
    args.batch_sizes = list(dict.fromkeys(args.batch_sizes))
    for name, limits in LIMITS.items():
        given = getattr(args, name)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not limits.allow(value):
                parser.error(f"--{name.replace('_', '-')}: must be {limits}, got {value}")
    longest = max(work["input_len"] + work["output_len"] for work in offline.workloads(args))
    if args.max_model_len is not None and args.max_model_len < longest:
        # vLLM would cut answers short, without a word, and a token's time would be wrong.
        rule = f"must be at least {longest}, the tokens of the longest request"
        parser.error(f"--max-model-len: {rule}, got {args.max_model_len}")
    if args.mode == "swap" and (args.plugin == "layer" or args.enforce_eager or args.variants):
        parser.error("swap: needs the IR adapter and compilation, and has no --variant")
    if args.mode == "swap" and args.quantization in quantization.WEIGHTS_ALONE:
        rule = "must be one that the plugin leaves alone (vLLM decides on fusions when it starts)"
        parser.error(f"swap: --quantization: {rule}, got {args.quantization}")
    if args.mode == "swap" and args.output_len < 4:
        rule = "must be at least 4 (graphs are replayed in the middle, behind the prefill)"
        parser.error(f"swap: --output-len: {rule}, got {args.output_len}")
    for option, (name, modes) in MODES.items():
        if args.mode not in modes and getattr(args, name) != parser.get_default(name):
            parser.error(f"{option}: is for {' and '.join(modes)}, got mode {args.mode}")
    return args
